"""The order in which a script is called, as in the real WebUI; scripts that fail; the queue as scripts see it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.standalone.conftest import Running

PROBE = Path(__file__).resolve().parents[2] / "webui" / "probe"
STEP = ["cfg_denoiser", "cfg_denoised", "cfg_after_cfg"]
START = ["setup", "before_process", "process"]
BATCH = ["before_process_batch", "after_extra_networks_activate", "process_batch", "process_before_every_sampling"]
IMAGE = ["postprocess_image", "postprocess_maskoverlay", "postprocess_image_after_composite"]
DECODED = ["post_sample", "postprocess_batch", "postprocess_batch_list"]

ANGRY = '''
"""A script whose every hook fails."""
import gradio as gr
from modules import scripts


class Angry(scripts.Script):
    def title(self):
        return "Angry"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(value=True, label="angry", elem_id="angry_box")]


def fail(self, *args, **kwargs):
    raise RuntimeError("the script's own error")


for name in ("setup", "before_process", "process", "before_process_batch", "after_extra_networks_activate",
             "process_batch", "process_before_every_sampling", "before_hr", "post_sample", "postprocess_batch",
             "postprocess_batch_list", "postprocess_image", "postprocess_maskoverlay",
             "postprocess_image_after_composite", "postprocess", "on_mask_blend"):
    setattr(Angry, name, fail)


class NoTitle(scripts.Script):
    def show(self, is_img2img):
        raise RuntimeError("not even this")


class Chooser(scripts.Script):
    def title(self):
        return "Chooser"

    def ui(self, is_img2img):
        number = gr.Number(value=3, label="n", elem_id="chooser_n")
        return [number, gr.Dropdown(choices=["a", ("b", "B")], value="a", label="d")]

    def run(self, p, n, d):
        from modules.processing import process_images
        p.steps = int(n)
        return process_images(p)
'''


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    log = tmp_path / "trace"
    monkeypatch.setenv("LIFECYCLE_PROBE_LOG", str(log))
    return lambda: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extension with scripts that fail, one that cannot be loaded, and one that is chosen."""
    folder = tmp_path_factory.mktemp("angry")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "angry.py").write_text(ANGRY, encoding="utf-8")
    (folder / "scripts" / "broken.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    return folder


@pytest.fixture
def probed(start_host: Any, checkpoints: Any) -> Any:
    import os

    os.environ.setdefault("LIFECYCLE_PROBE_LOG", os.devnull)
    return start_host(checkpoints("sd1"), extension_dirs=[PROBE])


def hooks(calls: list[dict[str, Any]]) -> list[str]:
    return [call["hook"] for call in calls]


def test_two_batches_of_two(probed: Any, trace: Any) -> None:
    probed.generate(steps=2, batch_size=2, n_iter=2)
    calls = trace()
    assert hooks(calls) == [*START, *([*BATCH, *STEP, *STEP, *DECODED, *IMAGE, *IMAGE] * 2), "postprocess"]
    denoiser = [call["kwargs"] for call in calls if call["hook"] == "cfg_denoiser"]
    assert [call["x"] for call in denoiser] == [[4, 4, 8, 8]] * 4
    assert [call["sampling_step"] for call in denoiser] == [0, 0] * 2
    assert all(call["args"] == [True, 7] for call in calls if not call["hook"].startswith("cfg_"))


def test_hires_fix_samples_twice_within_a_batch(probed: Any, trace: Any) -> None:
    probed.generate(
        steps=2, enable_hr=True, hr_scale=2.0, hr_upscaler="Latent", denoising_strength=0.5, hr_second_pass_steps=2
    )
    calls = trace()
    samplings = [*BATCH, *STEP, *STEP, "after_extra_networks_activate", "before_hr", BATCH[-1], *STEP, *STEP]
    assert hooks(calls) == [*START, *samplings, *DECODED, *IMAGE, "postprocess"]
    assert [call["kwargs"]["x"][-1] for call in calls if call["hook"] == "cfg_denoiser"] == [8, 8, 16, 16]


def test_img2img(probed: Any, trace: Any) -> None:
    probed.generate("img2img", steps=4, denoising_strength=0.5, init_images=[Image.new("RGB", (64, 64), (200, 30, 30))])
    assert hooks(trace()) == [*START, *BATCH, *(STEP * 3), *DECODED, *IMAGE, "postprocess"]


@pytest.mark.parametrize("cfg_scale", [1, 5])
def test_and_has_one_row_for_each_part(probed: Any, trace: Any, cfg_scale: float) -> None:
    probed.generate(prompt="a circle AND a square AND a star", steps=1, cfg_scale=cfg_scale)
    (call,) = [entry["kwargs"] for entry in trace() if entry["hook"] == "cfg_denoiser"]
    assert call["x"] == [4, 4, 8, 8]
    assert call["text_cond"][0] == 3
    assert call["text_uncond"][0] == 1


def test_listening_changes_nothing(probed: Any, trace: Any, start_host: Any, checkpoints: Any) -> None:
    listened = probed.latents(batch_size=2, sampler_name="Euler a")
    other = start_host(checkpoints("sd1"), extension_dirs=[])
    assert torch.equal(listened, other.latents(batch_size=2, sampler_name="Euler a"))


def test_failing_scripts_are_logged_and_harm_nothing(
    start_host: Any, checkpoints: Any, extension: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"steps": 2, "enable_hr": True, "hr_upscaler": "Latent", "prompt": "a <lora:x:1> cat"}
    calm = start_host(checkpoints("sd1"), extension_dirs=[])
    expected = calm.generate(**fields)
    angry = start_host(checkpoints("sd1"), extension_dirs=[extension])
    from modules import scripts

    assert [data.script_class.__name__ for data in scripts.scripts_data] == ["Angry", "NoTitle", "Chooser"]
    assert [script.title() for script in scripts.scripts_txt2img.alwayson_scripts] == ["Angry"]
    found = angry.generate(**fields)
    assert list(found.images[0].getdata()) == list(expected.images[0].getdata())
    logged = capsys.readouterr().err
    for word in (
        "setup",
        "process_before_every_sampling",
        "before_hr",
        "postprocess",
        "nothing_of_this_name",
        "not even this",
    ):
        assert word in logged
    mask = Image.new("L", (64, 64), 255)
    image = Image.new("RGB", (64, 64))
    assert angry.generate("img2img", init_images=[image], mask=mask, steps=2).images


def test_the_layout_of_arguments(start_host: Any, checkpoints: Any, extension: Path) -> None:
    running = start_host(checkpoints("sd1"), extension_dirs=[extension, PROBE])
    from modules import scripts

    runner = scripts.scripts_txt2img
    assert runner.default_args() == [0, True, True, 7, 3, "a"], "choice, always-on scripts, then those to choose"
    chooser = runner.script("chooser")
    assert chooser is not None
    assert (chooser.args_from, chooser.args_to, chooser.alwayson) == (4, 6, False)
    number, choice = chooser.api_info.args
    assert (number.label, number.value) == ("n", 3)
    assert (choice.label, choice.value, choice.choices) == ("d", "a", ["a", "b"])
    assert runner.set_named_arg((0, True, True, 7, 3, "a"), "chooser", "chooser_n", 9) == (0, True, True, 7, 9, "a")
    with pytest.raises(RuntimeError, match="nobody not found"):
        runner.set_named_arg((0,), "nobody", "x", 1)
    p = running.make()
    args = list(p.script_args)
    args[0] = 1 + runner.selectable_scripts.index(chooser)
    processed = running.host.queue.run(lambda: runner.run(p, *args))
    p.close()
    assert "Steps: 3" in processed.info
    assert runner.run(p, *([0, *args[1:]])) is None


def test_components_of_a_tab_are_announced(start_host: Any, checkpoints: Any, extension: Path) -> None:
    import gradio as gr

    start_host(checkpoints("sd1"), extension_dirs=[extension])
    from modules import script_callbacks, scripts
    from standalone.host.scripts import loading

    seen: list[tuple[str, Any]] = []
    script_callbacks.on_before_component(lambda component, **kwargs: seen.append(("before", kwargs.get("elem_id"))))
    script_callbacks.on_after_component(lambda component, **kwargs: seen.append(("after", component.elem_id)))
    waited: list[Any] = []
    chooser = scripts.scripts_txt2img.selectable_scripts[0]
    chooser.on_after_component(lambda on: waited.append(on.component.value), elem_id="wanted")
    scripts.scripts_txt2img.apply_on_before_component_callbacks()
    with gr.Blocks(), loading.watch_components(False):
        gr.Textbox(value="here", elem_id="wanted")
        gr.Slider(elem_id="other")
    gr.Textbox(elem_id="outside")
    assert seen == [("before", "wanted"), ("after", "wanted"), ("before", "other"), ("after", "other")]
    assert waited == ["here"]


@pytest.fixture
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[])


def test_no_job_runs_while_the_lock_is_held(host: Running) -> None:
    from modules.call_queue import queue_lock

    seen: list[str] = []
    with queue_lock, queue_lock:  # twice by the same is once
        job = host.host.queue.submit(lambda: seen.append("job"))
        with pytest.raises(TimeoutError):
            job.result(0.2)
        seen.append("held")
    job.result(5)
    assert seen == ["held", "job"]


def test_who_asks_waits_for_the_running_job_and_gives_the_queue_back_after_an_error(host: Running) -> None:
    from modules.call_queue import wrap_queued_call

    started, may_end = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow() -> None:
        started.set()
        may_end.wait(5)
        seen.append("job")

    def fail(word: str) -> None:
        seen.append(word)
        raise ValueError(word)

    host.host.queue.submit(slow)
    started.wait(5)
    threading.Timer(0.1, may_end.set).start()
    with pytest.raises(ValueError, match="mine"):
        wrap_queued_call(fail)("mine")
    assert seen == ["job", "mine"]
    assert host.host.queue.run(lambda: 3) == 3


def test_a_job_may_ask_for_its_own_queue(host: Running) -> None:
    from modules.call_queue import wrap_queued_call

    assert host.host.queue.run(wrap_queued_call(lambda: 5)) == 5


def test_a_queue_that_closes_is_an_error(host: Running) -> None:
    from modules.call_queue import queue_lock

    host.host.queue.close()
    with pytest.raises(Exception, match="shutting down"), queue_lock:
        pass
    host.host.close()
