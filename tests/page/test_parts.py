"""The page's parts that need no browser: masks, result files, infotext into controls, defaults, settings."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from standalone import host as standalone_host

standalone_host.import_modules()

from lib_methods.errors import UserError  # noqa: E402
from standalone.api.errors import BadRequest  # noqa: E402
from standalone.host import checkpoints, shared  # noqa: E402
from standalone.infotext.fields import TXT2IMG  # noqa: E402
from standalone.page import controls, extras, jobs, layout, paste, results, tab  # noqa: E402


def layer(box: tuple[int, int, int, int], alpha: int = 255, size: tuple[int, int] = (32, 16)) -> Image.Image:
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste((255, 255, 255, alpha), box)
    return image


def test_every_layer_counts_for_the_mask():
    background = Image.new("RGBA", (32, 16), (9, 9, 9, 255))
    picture, mask = tab.inpaint_inputs(
        {"background": background, "layers": [layer((0, 0, 4, 4)), None, layer((8, 8, 12, 12))]}
    )
    assert picture is background
    assert mask is not None
    painted = np.asarray(mask) == 255
    assert painted.sum() == 32
    assert painted[:4, :4].all()
    assert painted[8:12, 8:12].all()


@pytest.mark.parametrize("editor", [None, {}, {"background": None, "layers": []}])
def test_without_a_picture_there_is_no_mask(editor: Any):
    assert tab.inpaint_inputs(editor) == (None, None)


def test_a_breath_of_paint_is_no_mask():
    background = Image.new("RGBA", (32, 16))
    assert tab.inpaint_inputs({"background": background, "layers": [layer((0, 0, 4, 4), alpha=5)]})[1] is None


def test_files_carry_their_infotext_and_saved_ones_are_used(tmp_path: Path):
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    path = Path(results.as_file(image, "a cat\nSteps: 1", tmp_path / "scratch"))
    assert path.parent == tmp_path / "scratch"
    with Image.open(path) as read:
        assert read.info["parameters"] == "a cat\nSteps: 1"
    assert results.as_file(image, "a cat\nSteps: 1", tmp_path / "scratch") == str(path)
    saved = tmp_path / "saved.png"
    image.save(saved)
    image.already_saved_as = str(saved)  # type: ignore[attr-defined]
    assert results.as_file(image, "x", tmp_path) == str(saved)


def test_last_weeks_scratch_files_go_and_todays_stay(tmp_path: Path):
    folder = results.scratch_folder(tmp_path)
    folder.mkdir(parents=True)
    old, new = folder / "old.png", folder / "new.png"
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (time.time() - 2 * results.KEPT_SECONDS,) * 2)
    results.clean_scratch(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["new.png"]


def test_the_last_results_outlive_the_server_but_not_their_images(tmp_path: Path):
    image = tmp_path / "made.png"
    Image.new("RGB", (8, 8)).save(image)
    made = jobs.Shown([str(image)], 0, '{"all_seeds": [7]}', "<p>a cat</p>", "<p>1 s</p>")

    async def work(task_id: str | None, values: Any) -> jobs.Shown:
        return made

    def ask(name: str, task: str) -> tuple[Any, ...]:
        return asyncio.run(getattr(jobs.PageJobs(work, tmp_path), name)(task))

    task = "task(../../one)"
    assert ask("restore", task)[1:] == ({"__type__": "update"},) * 3
    assert ask("generate", task) == ask("restore", task) == made.outputs()
    assert ask("restore", "task(another)")[1:] == ({"__type__": "update"},) * 3
    image.unlink()
    assert ask("restore", task)[1:] == ({"__type__": "update"},) * 3


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", '<img src=x onerror=alert(1)>\n"quoted"'])
def test_texts_are_shown_as_text(text: str):
    for shown in (results.as_html(text), results.error_html(text)):
        assert "<script" not in shown
        assert "<img" not in shown


@pytest.mark.parametrize(
    ("info", "index", "found"),
    [
        (json.dumps({"infotexts": ["a", "b"]}), 1, "b"),
        (json.dumps({"infotexts": ["a"]}), None, "a"),
        (json.dumps({"infotexts": ["a"]}), 7, ""),
        ("", 0, ""),
        ("{", 0, ""),
        ("[]", 0, ""),
        (json.dumps({"infotexts": 3}), 0, ""),
    ],
)
def test_the_infotext_of_a_picture(info: str, index: int | None, found: str):
    assert results.infotext_of(info, index) == found


@pytest.mark.parametrize(
    ("selected", "info", "index"),
    [
        (None, {"index_of_first_image": 1}, 1),
        (0, {"index_of_first_image": 1}, 0),
        (2, {}, 2),
        (9, {}, 0),
        (-1, {"index_of_first_image": 7}, 0),
        (None, {"index_of_first_image": "first"}, 0),
        (None, [], 0),
    ],
)
def test_the_chosen_image_is_the_selected_one_or_the_first_behind_the_grid(selected: int | None, info: Any, index: int):
    gallery = [("a.png", None), "b.png", ("c.png", "words")]
    path = Path(("a.png", "b.png", "c.png")[index])
    assert results.chosen_image(gallery, selected, json.dumps(info)) == (path, index)
    assert results.chosen_image([], selected, json.dumps(info)) == (None, 0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("single", None, ["a.png"], "/"), "There is no image. Add one"),
        (("batch", "a.png", None, "/"), "There are no images. Add some"),
        (("folder", "a.png", None, None), "whole path"),
        (("folder", "a.png", None, "~nobody/pictures"), "whole path|no such folder"),
    ],
)
def test_without_images_extras_say_so(values: Any, told: str):
    with pytest.raises((UserError, BadRequest), match=told):
        extras.sources_of(*values)


@pytest.mark.parametrize("option", [{"listen": True}, {"allowed_hosts": ["steer.lan"]}])
def test_on_a_network_extras_read_no_folder_of_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: dict[str, Any]
):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert len(extras.sources_of("folder", None, None, str(tmp_path))) == 1
    for name, value in option.items():
        monkeypatch.setattr(shared.cmd_opts, name, value)
    with pytest.raises(BadRequest, match="only be read without --listen"):
        extras.sources_of("folder", None, None, str(tmp_path))


def test_durations():
    assert [results.duration(seconds) for seconds in (0.04, 59.9, 61, 3600)] == [
        "0.0 s",
        "59.9 s",
        "1 min 1 s",
        "60 min 0 s",
    ]


def components() -> dict[str, Any]:
    import gradio as gr

    with gr.Blocks():
        return {
            "slider": gr.Slider(0, 10, value=1),
            "float": gr.Slider(0, 1, value=0.5),
            "check": gr.Checkbox(False),
            "drop": gr.Dropdown(["Euler", "Heun"], value="Euler"),
            "text": gr.Textbox(""),
        }


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("slider", "7", 7),
        ("float", "0.25", 0.25),
        ("check", "True", True),
        ("check", "False", False),
        ("check", True, True),
        ("drop", "Heun", "Heun"),
        ("text", "a cat", "a cat"),
        ("text", "", ""),
    ],
)
def test_infotext_values_become_the_controls_values(name: str, value: Any, wanted: Any):
    found = paste.fitting(components()[name], value)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value"), [("slider", "many"), ("slider", "1e999"), ("drop", "Magic"), ("text", None), ("float", "")]
)
def test_what_does_not_fit_changes_nothing(name: str, value: Any):
    found = paste.fitting(components()[name], value)
    assert found.get("__type__") == "update"
    assert "value" not in found


def test_old_sampler_names_in_a_pasted_infotext_set_sampler_and_schedule():
    import gradio as gr

    from modules import sd_samplers, sd_schedulers

    schedules = [item.label for item in sd_schedulers.schedulers]
    names = sd_samplers.visible_sampler_names()
    with gr.Blocks():
        fields = {
            "sampler_name": gr.Dropdown(names),
            "scheduler": gr.Dropdown(schedules),
            "hr_sampler_name": gr.Dropdown(["Use same sampler", *names]),
            "hr_scheduler": gr.Dropdown(["Use same scheduler", *schedules]),
        }
    pasted = paste.table_fields(TXT2IMG, fields)

    def values(infotext: str) -> list[Any]:
        found = paste.updates(paste.parse(f"a\nSteps: 3, {infotext}, Seed: 1, CFG scale: 7"), pasted)
        wanted = list(fields.values())
        return [value for (control, _), value in zip(pasted, found) if control in wanted]

    old = "Sampler: DPM++ 2M SDE Karras, Hires sampler: k_euler_a"
    assert values(old) == ["DPM++ 2M SDE", "Karras", "Euler a", "Automatic"]
    assert values("Sampler: dpm++ 2m karras")[:2] == ["DPM++ 2M", "Automatic"]  # Karras is its own
    foreign = values("Sampler: Restart, Schedule type: Beta")
    assert all("value" not in value for value in foreign[:2])  # the controls stay as they are


def test_a_prompt_is_not_taken_for_an_infotext():
    assert paste.looks_like_infotext("a\nSteps: 3, Sampler: Euler")
    assert not paste.looks_like_infotext("a cat\non the steps")


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ({}, 512),
        ({"is_sd2": True, "parameterization": "v"}, 768),
        ({"is_sd2": True, "parameterization": "eps"}, 512),
        ({"is_sdxl": True}, 1024),
    ],
)
def test_sizes_follow_the_family(family: dict[str, Any], size: int):
    found = checkpoints.defaults_of(SimpleNamespace(**family, sd_checkpoint_info=None))
    assert (found.width, found.height) == (size, size)


@pytest.mark.parametrize(
    ("content", "width", "sampler"),
    [
        ('{"width": 64, "sampler_name": "Heun", "cfg_scale": 5}', 64, "Heun"),
        ("not json", 512, "Euler a"),
        ("[1]", 512, "Euler a"),
        ('{"width": "wide", "unknown": 1}', 512, "Euler a"),
    ],
)
def test_a_checkpoint_may_bring_its_own_defaults(tmp_path: Path, content: str, width: int, sampler: str):
    (tmp_path / "mine.defaults.json").write_text(content, encoding="utf-8")
    info = SimpleNamespace(filename=str(tmp_path / "mine.safetensors"))
    found = checkpoints.defaults_of(SimpleNamespace(sd_checkpoint_info=info))
    assert (found.width, found.sampler_name) == (width, sampler)


@pytest.mark.parametrize(
    ("given", "examples"), [('["a <b>", "c"]', ("a <b>", "c")), ("[]", ()), ("[1]", None), ('"a"', None)]
)
def test_a_checkpoint_may_bring_its_own_examples(tmp_path: Path, given: str, examples: tuple[str, ...] | None):
    (tmp_path / "defaults.json").write_text(f'{{"examples": {given}}}', encoding="utf-8")
    info = SimpleNamespace(filename=str(tmp_path / "mine.safetensors"))
    found = checkpoints.defaults_of(SimpleNamespace(sd_checkpoint_info=info)).examples
    assert found == (checkpoints.Defaults.examples if examples is None else examples)
    shown = controls.first_run_html(found)
    assert shown.count("<button") == len(found)
    assert '<b>"' not in shown and ("a &lt;b&gt;" in shown) == ("a <b>" in found)


def test_the_controls_begin_with_todays_names_of_a_checkpoints_own_sampler():
    import gradio as gr

    with gr.Blocks():
        row = controls.sampler_row("txt2img", checkpoints.Defaults(sampler_name="k_dpmpp_2m_sde_ka"))
    assert (row["sampler_name"].value, row["scheduler"].value) == ("DPM++ 2M SDE", "Karras")


def test_settings_with_folders_of_the_server_have_no_control():
    from modules import shared

    shown = [key for key, info in shared.opts.data_labels.items() if layout.is_shown(key, info)]
    assert "CLIP_stop_at_last_layers" in shown
    assert not any(key.startswith("outdir_") for key in shown)


def test_seed_and_size_are_sent_as_the_settings_say(monkeypatch: pytest.MonkeyPatch):
    from modules import shared

    infotext = "a cat\nSteps: 4, Sampler: Euler, CFG scale: 3, Seed: 9, Size: 64x96"
    opts = SimpleNamespace(send_seed=True, send_size=True)
    monkeypatch.setattr(shared, "opts", opts)
    monkeypatch.setattr(paste, "parse", lambda text: {"Prompt": "a cat", "Seed": "9", "Size-1": "64", "Size-2": "96"})
    assert set(paste.sendable(infotext)) == {"Prompt", "Seed", "Size-1", "Size-2"}
    opts.send_seed = False
    assert set(paste.sendable(infotext)) == {"Prompt", "Size-1", "Size-2"}
    opts.send_size = False
    assert paste.sendable(infotext) == {"Prompt": "a cat"}
    assert paste.sendable("") == {}


@pytest.mark.parametrize(
    ("prompt", "counted"),
    [
        ("", (0, 75)),
        ("a red circle", (3, 75)),
        ("a (red:1.3) circle", (3, 75)),
        ("a red circle <lora:more:0.5>", (3, 75)),
        ("a AND a red circle", (3, 75)),
        ("a [red:dark blue striped:0.5] circle", (5, 75)),
        ("cat " * 75, (75, 75)),
        ("cat " * 76, (76, 150)),
        ("a BREAK b", (76, 150)),
        ("[[[(((red", (1, 75)),
    ],
)
def test_the_counter_counts_what_the_model_reads(prompt: str, counted: tuple[int, int]):
    assert controls.count_tokens(prompt, 20) == counted


def test_the_counter_survives_empty_fields_and_leaves_and_in_negative_prompts():
    assert controls.count_tokens(None, None) == (0, 75)  # type: ignore[arg-type]
    assert controls.count_tokens("a AND b", 20, positive=False) == (3, 75)
    assert "3/75" in controls.counter_html("a red circle", 20)
