"""scripts/guidance.py in a running host: what a job does and says, controls, axes and the API's guard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lib_methods.guiders import apply
from lib_methods.guiders.settings import APG, CONTROLS, METHODS, MIMIC, OFF, PRESETS, SKIMMED, GuidanceSettings
from lib_methods.safetensors import write_tensors
from tests.shared import jobs
from tests.shared.jobs import REPO, loaded, same
from tests.standalone.conftest import Running, checkpoints, start_host

__all__ = ["checkpoints", "start_host"]
TITLE = CONTROLS.title


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


@pytest.fixture
def script(host: Running) -> ModuleType:
    """The script as the host has loaded it."""
    return loaded("guidance.py")


def run(host: Running, arguments: list[Any] | None = None, *, axes: dict[str, Any] | None = None, **more: Any) -> Any:
    """A job of three steps at CFG 9; `arguments` are the script's."""
    scripts = None if arguments is None else {TITLE.lower(): arguments}
    attributes = None if axes is None else {"guidance_axes": axes}
    return jobs.run(host, scripts, attributes=attributes, cfg_scale=9.0, **more)


def fields_of(processed: Any) -> dict[str, Any]:
    return jobs.fields_of(processed, TITLE)


@pytest.mark.parametrize(
    "arguments",
    [
        [False, MIMIC],
        [{"enabled": False}],
        [{"skimming_scale": 9, "outside_scale": 9}],
        [{"method": OFF, "highest_sigma": 0, "lowest_sigma": 0}],
    ],
)
def test_off_means_off(host: Running, arguments: list[Any]) -> None:
    off, job = run(host), run(host, arguments)
    assert same(off, job)
    assert off.info == job.info


@pytest.mark.parametrize(
    "wanted",
    [
        GuidanceSettings(),
        GuidanceSettings(method=MIMIC, mimic_scale=2, cfg_mode="Power Up", cfg_scale_min=3, schedule_value=2.5),
        GuidanceSettings(method=OFF, rescale=0.35, highest_sigma=0, lowest_sigma=0),
        GuidanceSettings(method=APG, apg_eta=0.2, apg_norm=2.5, apg_momentum=-0.5, outside_scale=1),
        GuidanceSettings(perturbation_scale=2, perturbation="SEG", perturbed_layers="coarse", seg_blur=3),
    ],
)
def test_the_infotext_brings_the_picture_back(host: Running, wanted: GuidanceSettings) -> None:
    job = run(host, [CONTROLS.values(wanted)])
    assert not same(run(host), job)
    fields = fields_of(job)
    restored = CONTROLS.from_infotext(fields)
    assert restored == {"enabled": True, **CONTROLS.values(wanted)}
    again = run(host, [key(fields) for key in CONTROLS.paste_keys()])
    assert same(job, again)
    assert job.info == again.info


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([{"mimic_scal": 5}], "mimic_scale"),
        ([True, SKIMMED, 99], "must be between 0 and 30"),
        ([{"cfg_mode": "Linear"}], "must be one of"),
    ],
)
@pytest.mark.parametrize("api", [False, True])
def test_a_request_that_makes_no_sense_is_left_out_and_named(
    host: Running, arguments: list[Any], sentence: str, api: bool
) -> None:
    job = run(host, arguments, api=api)
    assert same(run(host), job)
    assert sentence in job.comments
    assert list(fields_of(job)) == [CONTROLS.error_key]
    assert sentence in fields_of(job)[CONTROLS.error_key]


def test_an_internal_error_is_not_hidden(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(apply, "attach", fail)
    job = run(host, [True])
    assert "internal error" in job.comments
    assert "secret" not in job.info
    assert list(fields_of(job)) == [CONTROLS.error_key]


def test_a_job_used_again_carries_nothing_over(host: Running) -> None:
    from modules.processing import process_images
    from standalone.host.scripts.loading import runner_of

    with closing(host.make(script_args={TITLE.lower(): [True, SKIMMED, 2.0]}, cfg_scale=9.0)) as p:
        on = host.host.queue.run(process_images, p)
        p.script_args = tuple(runner_of(False).default_args())
        off = host.host.queue.run(process_images, p)
    assert TITLE in on.info
    assert TITLE not in off.info
    assert same(off, run(host))


def test_axes_are_added_once_and_switch_the_method_on_and_off(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = jobs.plot_axes(script, monkeypatch)
    by_label = {axis.label.removeprefix(f"[{TITLE}] "): axis for axis in axes}
    assert len(by_label) == len(axes)
    assert list(by_label["Method"].choices()) == list(METHODS)
    assert {"Skimming scale", "CFG rescale", "Interval: highest sigma", "Percentile"} < by_label.keys()
    mimic, skimming = by_label["Mimic scale (0 is off)"].apply, by_label["Skimming scale"].apply
    method, rescale, percentile = (by_label[name].apply for name in ("Method", "CFG rescale", "Percentile"))

    def cell(*applied: tuple[Any, Any]) -> dict[str, Any]:
        p = SimpleNamespace()
        for axis, value in applied:
            before = getattr(p, "guidance_axes", {})
            kept = dict(before)
            axis(p, value, [value])
            assert before == kept  # cells share what they were copied from
        return p.guidance_axes

    assert cell((mimic, 5.0)) == {"enabled": True, "method": MIMIC, "mimic_scale": 5.0}
    assert cell((skimming, 4.0)) == {"enabled": True, "method": SKIMMED, "skimming_scale": 4.0}
    assert cell((method, APG), (rescale, 0.5)) == {"enabled": True, "method": APG, "rescale": 0.5}
    for off in (cell((mimic, 0.0), (percentile, 99.0)), cell((percentile, 99.0), (mimic, 0.0))):
        assert off["enabled"] is False
    named = [{"method": MIMIC, "mimic_scale": 2.0, "threshold_percentile": 99.0}]
    assert same(run(host, [False], axes=cell((mimic, 2.0), (percentile, 99.0))), run(host, named))
    assert same(run(host, [True, MIMIC], axes=cell((mimic, 0.0))), run(host))


def test_hosts_without_the_plot_get_no_axes(host: Running, script: ModuleType) -> None:
    jobs.method_of(script).add_axes()


@pytest.mark.parametrize("is_img2img", [False, True])
def test_the_controls_are_the_request_in_order_with_its_defaults(
    host: Running, script: ModuleType, is_img2img: bool
) -> None:
    for named in jobs.first_values(script.GuidanceScript(), is_img2img, CONTROLS.names):
        assert named == {"enabled": False, **CONTROLS.values(GuidanceSettings())}


def test_a_button_sets_everything_for_a_kind_of_job(host: Running, script: ModuleType) -> None:
    import gradio as gr

    method = script.GuidanceScript()
    method.is_img2img = False
    with gr.Blocks() as page:
        controls = method.ui(False)
    buttons = [block for block in page.blocks.values() if isinstance(block, gr.Button)]
    meant = {
        "Set for SD1 at a high CFG scale": GuidanceSettings(skimming_scale=7, outside_scale=7),
        "Set for SDXL at a high CFG scale": GuidanceSettings(),
        "Set for a v-prediction checkpoint": GuidanceSettings(rescale=0.7, highest_sigma=0, lowest_sigma=0),
    }
    for label, settings in meant.items():
        (button,) = (button for button in buttons if button.value == label)
        (event,) = (event for event in page.fns.values() if (button._id, "click") in event.targets)
        assert event.outputs == controls
        assert CONTROLS.request(event.fn()) == settings


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        (SimpleNamespace(parameterization="eps", is_sdxl=False), "sd1"),
        (SimpleNamespace(parameterization="eps", is_sdxl=True), "sdxl"),
        (SimpleNamespace(parameterization="v", is_sdxl=True), "v_prediction"),
        (None, "sdxl"),
    ],
)
def test_at_a_high_cfg_scale_one_click_above_the_closed_box_turns_the_best_method_on(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch, model: Any, preset: str
) -> None:
    import gradio as gr

    from lib_methods.hosts import models

    monkeypatch.setattr(models, "current_model", lambda: model)
    method = script.GuidanceScript()
    method.is_img2img = False
    with gr.Blocks() as page:
        scale = gr.Slider(1, 30, 7, elem_id="txt2img_cfg_scale")
        method.after_component(scale, elem_id="txt2img_cfg_scale")
        controls = method.ui(False)
    (offer,) = (block for block in page.blocks.values() if getattr(block, "elem_id", "") == "guidance_txt2img_offer")
    changed = [event for event in page.fns.values() if event.outputs == [offer]]
    assert {target for event in changed for target in event.targets} >= {(scale._id, "change")}
    shown = {args: changed[0].fn(*args) for args in ((False, 15), (True, 15), (False, 7), (False, None))}
    assert [update["visible"] for update in shown.values()] == [True, False, False, False]
    assert shown[False, 15]["value"] == "Most checkpoints burn at CFG 15: turn on Guidance"
    (event,) = (event for event in page.fns.values() if (offer._id, "click") in event.targets)
    assert event.outputs == controls
    assert CONTROLS.request(event.fn()) == GuidanceSettings(**PRESETS[preset])


def test_the_line_follows_the_pages_cfg_scale(host: Running, script: ModuleType) -> None:
    method, defaults = script.GuidanceScript(), list(CONTROLS.defaults.values())
    assert "At CFG 15, values that would burn come out as at CFG 5" in method.line(True, *defaults, 15, 20)
    assert "Switched off (At CFG 15" in method.line(False, *defaults, 15, 20)
    assert "Most checkpoints burn at CFG 15: tick the box." in method.line(False, *defaults, 15, 20)
    assert "tick the box" not in method.line(False, *defaults, 7, 20)
    assert "nothing changes" in method.line(True, *defaults, 1.0, 20)
    assert "steer-problem" in method.line(True, SKIMMED, 99, *defaults[2:], 15, 20)


def test_a_checkpoint_without_the_layers_to_perturb_is_named_before_generate(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_methods.hosts import models

    method = script.GuidanceScript()
    line = lambda **changed: method.line(True, *{**CONTROLS.defaults, **changed}.values(), 7, 20)  # noqa: E731
    assert "steer-problem" not in line(perturbation_scale=3)
    monkeypatch.setattr(models, "obstacle", lambda why: apply.NO_MIDDLE if why is apply.without_middle else "")
    assert apply.NO_MIDDLE.replace("'", "&#x27;") in line(perturbation_scale=3)
    assert "steer-problem" not in line(perturbation_scale=3, perturbed_layers="coarse") + line()


@pytest.mark.parametrize(("title", "ours"), [("Dynamic Thresholding (CFG Scale Fix)", False), ("Other", True)])
def test_infotexts_of_an_extension_that_is_installed_are_left_to_it(
    host: Running, script: ModuleType, title: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    from modules import scripts

    other = SimpleNamespace(title=lambda: title)
    monkeypatch.setattr(scripts, "scripts_txt2img", SimpleNamespace(scripts=[other]))
    instance = script.GuidanceScript()
    instance.is_img2img = False
    with gr.Blocks():
        instance.ui(False)
    enabled = instance.infotext_fields[0][1]
    assert enabled({"Dynamic thresholding enabled": "True", "Mimic scale": "5"}) is ours


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        (TITLE, [{"skimming_scale": 5}], 200),
        (TITLE, [True, SKIMMED, 5], 200),
        (TITLE, [{"mimic": 5}], 422),
        (TITLE, [True, 5], 422),
        *(
            (name, arguments, status)
            for name in ("Steer Dynamic thresholding", "dynamic thresholding", "Dynamic Thresholding (CFG Scale Fix)")
            for arguments, status in (([True, 5], 200), ([{"method": "CFG rescale only"}], 200), ([{"mimic": 5}], 422))
        ),
    ],
)
def test_the_api_refuses_what_cannot_be_used(script: ModuleType, name: str, arguments: Any, status: int) -> None:
    answer = jobs.posted(script, name, arguments)
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["detail"].startswith(f"{TITLE}: ")


@pytest.mark.parametrize("is_on", [True, False])
def test_where_the_box_of_another_extension_is_on_this_one_steps_back(
    host: Running, script: ModuleType, is_on: bool
) -> None:
    """Both at once would correct the same prediction twice."""
    said: list[str] = []
    other = SimpleNamespace(title=lambda: "DynamicThresholding (CFG-Fix) Integrated", args_from=1, args_to=3)
    p = SimpleNamespace(extra_generation_params={}, comment=said.append, is_api=True, cfg_scale=9.0, steps=3)
    p.scripts, p.script_args = SimpleNamespace(alwayson_scripts=[other]), [0, is_on, 7.0]
    script.GuidanceScript().begin(p, GuidanceSettings())
    told = str(p.extra_generation_params.get(CONTROLS.error_key, ""))
    assert ('"DynamicThresholding (CFG-Fix) Integrated" is on, too' in told) == is_on
    assert (CONTROLS.keys["skimming_scale"] in p.extra_generation_params) != is_on


def test_a_transformer_is_refused_by_name_and_not_in_the_infotext(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch import nn

    from lib_methods.hosts import models
    from modules import shared

    class QwenImage:
        def __init__(self) -> None:
            inner = nn.Module()
            inner.transformer_blocks = nn.ModuleList()
            unet = SimpleNamespace(model=SimpleNamespace(diffusion_model=inner))
            self.forge_objects = SimpleNamespace(unet=unet)

    sentence = "Guidance does not support Qwen-Image. Choose an SD1, SD2 or SDXL checkpoint."
    model, said = QwenImage(), list[str]()
    monkeypatch.setattr(models, "current_model", lambda: model)
    made = script.GuidanceScript()
    made.is_img2img = False
    assert sentence in made.line(True, *CONTROLS.defaults.values(), 7.0, 20)
    p = SimpleNamespace(extra_generation_params={}, comment=said.append, is_api=True, sd_model=model)
    made.process(p, True)
    assert said == [f"{TITLE}: {sentence}"]
    assert p.extra_generation_params == {}
    assert models.transformer_name(shared.sd_model) == ""
    flux = tmp_path / "flux.safetensors"  # chosen in Forge, which loads it at the next job
    write_tensors(flux, {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(1)})
    told = {"checkpoint_info": SimpleNamespace(filename=str(flux))}
    monkeypatch.setattr(models.sd_models, "model_data", SimpleNamespace(forge_loading_parameters=told), raising=False)
    assert sentence.replace("Qwen-Image", "Flux") in made.line(True, *CONTROLS.defaults.values(), 7.0, 20)
    (chroma := tmp_path / "chroma-Q4_K.gguf").touch()
    told["checkpoint_info"].filename = str(chroma)
    read = {str(chroma): ["distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"]}
    reader = lambda file: SimpleNamespace(tensors=[SimpleNamespace(name=name) for name in read[file]])  # noqa: E731
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace(GGUFReader=reader))
    assert sentence.replace("Qwen-Image", "Chroma") in made.line(True, *CONTROLS.defaults.values(), 7.0, 20)


def test_defaults_saved_under_the_former_name_are_on_the_page(
    host: Running, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {"Dynamic thresholding": True, "Mimic scale": 7, "Method": MIMIC, "Rescale": 0.7}
    keys = {f"customscript/dynamic_thresholding.py/txt2img/{name}/value": value for name, value in saved.items()}
    (tmp_path / "ui-config.json").write_text(json.dumps(keys), "utf-8")
    monkeypatch.setattr(script.GuidanceScript, "ui_config", str(tmp_path / "ui-config.json"))
    meant = GuidanceSettings(method=MIMIC, mimic_scale=7, highest_sigma=0, lowest_sigma=0)
    for named in jobs.first_values(script.GuidanceScript(), False, CONTROLS.names):
        assert named == {"enabled": True, **CONTROLS.values(meant)}
    for named in jobs.first_values(script.GuidanceScript(), True, CONTROLS.names):
        assert named == {"enabled": False, **CONTROLS.defaults}
