"""Settings: what is stored is checked, by one rule, wherever it comes from; and one bad value costs a sentence."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from tests.api.conftest import SMALL, Server
from tests.api.test_bad_requests import refused


def raw(server: Server, path: str, body: str) -> Any:
    """A request whose body no well-behaved client sends: NaN, a lone surrogate, a thousand brackets."""
    return server.client.post(path, content=body.encode(), headers={"content-type": "application/json"})


def values_to_try(key: str, info: Any) -> list[Any]:
    """Wrong kinds, edges and hostile values for one setting."""
    limits = [info.arguments.get(name) for name in ("minimum", "maximum")]
    edges = [value for limit in limits if limit is not None for value in (limit, limit - 1, limit + 1, limit + 0.5)]
    return [
        *edges,
        *info.choices,
        *(["0", "1e9", "NaN", "", "x" * 20_000, "a\0b", "\ud800", "<img src=x>", "con", "../..", "/etc", "C:\\x"]),
        *([None, True, False, 0, 1, -1, 2.5, 1e308, 10**30, -(10**400), float("inf"), float("-inf"), float("nan")]),
        *([[], [None], [[]], ["Euler"], {}, {"a": 1}, ["x"] * 100_000]),
    ]


def test_every_setting_refuses_a_value_or_a_job_runs_with_it(server: Server, picture: str):
    """A value is refused with a sentence before it is kept, or a job runs with it and the file can be read again."""
    from modules import shared

    opts = shared.opts
    jobs = 0
    for key, info in opts.data_labels.items():
        if info.do_not_save or info.restrict_api or key == "sd_model_checkpoint":
            continue
        tried: set[str] = set()
        for value in values_to_try(key, info):
            try:
                kept = opts.checked(key, value)
            except SettingsError as error:
                sentence = str(error)
                assert key in sentence
                assert len(sentence) < 600
                assert sentence.isprintable()
                continue
            assert json.loads(json.dumps(kept, allow_nan=False)) == kept
            json.dumps(kept, ensure_ascii=False).encode()
            assert opts.checked(key, kept) == kept
            before = opts.data[key]
            if repr(kept) in tried or kept == before or key not in FOR_JOBS:
                continue
            tried.add(repr(kept))
            fields = {**SMALL, **FOR_JOBS[key], "override_settings": {key: value}}
            kind = "img2img" if fields.pop("img2img", False) else "txt2img"
            answer = server.post(
                f"/sdapi/v1/{kind}", **fields, **({"init_images": [picture]} if kind == "img2img" else {})
            )
            assert answer.status_code == 200 or refused(answer), (key, value, answer.text)
            assert opts.data[key] == before
            jobs += 1
    assert jobs > 60


KARRAS = {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}
IMAGE = {"img2img": True, "denoising_strength": 0.5}
SAVED = {"save_images": True, "batch_size": 2}
FOR_JOBS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("samples_format", "grid_format", "jpeg_quality", "n_rows", "save_txt", "grid_save"), SAVED),
    **dict.fromkeys(("sigma_min", "sigma_max", "rho", "always_discard_next_to_last_sigma"), KARRAS),
    **{key: {"sampler_name": "UniPC"} for key in ("uni_pc_order", "uni_pc_variant", "uni_pc_skip_type")},
    **{key: {"sampler_name": "Heun"} for key in ("s_churn", "s_tmin", "s_tmax", "s_noise")},
    **{key: {"sampler_name": "Euler a"} for key in ("eta_ancestral", "eta_noise_seed_delta", "randn_source")},
    **{key: {} for key in ("CLIP_stop_at_last_layers", "emphasis", "comma_padding_backtrack", "hide_samplers")},
    **{key: {} for key in ("show_progress_every_n_steps", "show_progress_type", "live_preview_content")},
    **{key: {} for key in ("s_min_uncond", "skip_early_cond", "infotext_skip_pasting", "upscaler_for_img2img")},
    **dict.fromkeys(("initial_noise_multiplier", "img2img_extra_noise", "img2img_fix_steps"), IMAGE),
    **dict.fromkeys(("img2img_background_color", "inpainting_mask_weight", "overlay_inpaint"), IMAGE),
    "eta_ddim": {"sampler_name": "DDIM"},
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("samples_format", "foo"),
        ("grid_format", "exe"),
        ("uni_pc_order", 0),
        ("img2img_background_color", "#ffffff80"),
        ("img2img_background_color", "rgba(255, 0, 0, 0.5)"),
        ("img2img_background_color", "rgba(255, 0)"),
        ("sigma_min", 1e9),
        ("s_noise", 1e308),
        ("randn_source", "TPU"),
        ("jpeg_quality", None),
        ("hide_samplers", [{"a": []}]),
        ("outdir_txt2img_samples", "../elsewhere"),
        ("outdir_txt2img_samples", "/etc"),
        ("outdir_txt2img_samples", "C:\\Windows"),
        ("outdir_grids", "nul"),
        ("outdir_grids", "a/COM1.txt"),
        ("outdir_grids", "a\0b"),
        ("outdir_grids", "a" * 300),
        ("outdir_grids", "ends with a dot."),
    ],
)
def test_a_value_that_no_job_could_use_is_refused_everywhere(server: Server, key: str, value: Any):
    before = server.get("/sdapi/v1/options").json()
    refused(server.post("/sdapi/v1/options", **{key: value, "samples_save": False}), key)
    assert server.get("/sdapi/v1/options").json() == before
    refused(server.post("/sdapi/v1/txt2img", **SMALL, override_settings={key: value}), key)


@pytest.mark.parametrize("together", [{"rho": 0.1}, {"sigma_min": 5, "sigma_max": 4}])
def test_a_noise_schedule_that_cannot_be_is_refused_with_its_settings(server: Server, together: dict[str, Any]):
    asked = {**SMALL, "steps": 4, "sampler_name": "Euler", "scheduler": "Karras"}
    refused(server.post("/sdapi/v1/txt2img", **asked, override_settings=together), next(iter(together)).split("_")[0])


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"\\ud800"', "[" * 900 + "]" * 900, "9" * 5000, "null"])
@pytest.mark.parametrize("key", ["sigma_max", "infotext_skip_pasting", "img2img_background_color"])
def test_no_value_stops_the_server_from_starting_again(server: Server, key: str, value: str):
    from modules import shared

    refused(raw(server, "/sdapi/v1/options", f'{{"{key}": {value}}}'))
    assert server.get("/sdapi/v1/options").status_code == 200
    assert server.post("/sdapi/v1/options", samples_save=True).status_code == 200
    json.loads(Path(shared.config_filename).read_text(encoding="utf-8"))


def test_settings_that_can_be_are_kept_as_they_are_written(server: Server):
    wanted = {
        "samples_format": "PNG",
        "jpeg_quality": 90.0,
        "eta_ddim": 1,
        "samples_save": 1,
        "img2img_background_color": "rgba(255, 0, 0)",
    }
    assert server.post("/sdapi/v1/options", **wanted).status_code == 200
    answer = server.get("/sdapi/v1/options").json()
    assert {key: answer[key] for key in wanted} == {
        "samples_format": "png",
        "jpeg_quality": 90,
        "eta_ddim": 1.0,
        "samples_save": True,
        "img2img_background_color": "#ff0000",
    }
    assert server.post("/sdapi/v1/options", **answer).status_code == 200  # as clients do: all of it back


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "write permission"),
        (errno.EROFS, "read-only"),
        (5000, "system says"),
    ],
)
def test_settings_that_cannot_be_saved_are_not_kept_in_memory_either(
    server: Server, monkeypatch: pytest.MonkeyPatch, number: int, told: str
):
    from standalone.host.settings import options

    def full(path: Path) -> Any:
        raise OSError(number, "something")

    before = server.get("/sdapi/v1/options").json()
    monkeypatch.setattr(options, "replacing", full)
    refused(server.post("/sdapi/v1/options", jpeg_quality=31, save_txt=True), told)
    assert server.get("/sdapi/v1/options").json() == before


def test_the_settings_tab_follows_the_same_rule(server: Server):
    from standalone.api.errors import BadRequest
    from standalone.page.layout import apply_settings

    with pytest.raises(BadRequest, match="uni_pc_order"):
        server.host.queue.run(lambda: apply_settings({"uni_pc_order": 9, "jpeg_quality": 12}))
    assert server.host.queue.run(lambda: apply_settings({"jpeg_quality": 77.0})) == 1
    assert server.host.queue.run(lambda: apply_settings({"jpeg_quality": 77})) == 0


@pytest.fixture
def others(server: Server, tiny_checkpoint: Path) -> Iterator[Path]:
    """A second checkpoint beside the loaded one, and three that cannot be loaded."""
    import shutil

    from modules import sd_models

    folder = tiny_checkpoint.parent
    made = {name: folder / f"{name}.safetensors" for name in ("second", "cut", "page", "gone")}
    shutil.copyfile(tiny_checkpoint, made["second"])
    made["cut"].write_bytes(tiny_checkpoint.read_bytes()[:5000])
    made["page"].write_text("<!DOCTYPE html><title>404</title>", encoding="utf-8")
    shutil.copyfile(tiny_checkpoint, made["gone"])
    server.host.queue.run(sd_models.list_models)
    made["gone"].unlink()  # deleted since it was listed
    yield folder
    assert server.post("/sdapi/v1/options", sd_model_checkpoint="tiny.safetensors").status_code == 200
    for path in made.values():
        path.unlink(missing_ok=True)
    server.host.queue.run(sd_models.list_models)


def chosen(server: Server) -> tuple[str, str]:
    """The checkpoint of the settings, and that of the next job."""
    model = json.loads(server.txt2img()["info"])["sd_model_name"]
    return server.get("/sdapi/v1/options").json()["sd_model_checkpoint"].partition(" ")[0], model


@pytest.mark.parametrize("name", ["cut", "page", "gone"])
def test_a_checkpoint_that_cannot_be_loaded_is_not_chosen(server: Server, others: Path, name: str):
    file = f"{name}.safetensors"
    refused(server.post("/sdapi/v1/options", sd_model_checkpoint=file, samples_save=False), name)
    assert chosen(server) == ("tiny.safetensors", "tiny")
    assert server.get("/sdapi/v1/options").json()["samples_save"] is True
    for fields in (
        {"override_settings": {"sd_model_checkpoint": file}},
        {"refiner_checkpoint": file, "refiner_switch_at": 0.5},
        {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5, "hr_checkpoint_name": file},
        {"override_settings": {"sd_model_checkpoint": file}, "override_settings_restore_afterwards": False},
    ):
        refused(server.post("/sdapi/v1/txt2img", **{**SMALL, **fields}), name)
        assert chosen(server) == ("tiny.safetensors", "tiny")


def test_choosing_loads_the_checkpoint_at_once(server: Server, others: Path):
    from modules import shared

    assert server.post("/sdapi/v1/options", sd_model_checkpoint="second").status_code == 200
    assert shared.sd_model.sd_checkpoint_info.name == "second.safetensors"
    assert chosen(server) == ("second.safetensors", "second")


def test_a_job_leaves_the_chosen_checkpoint_chosen_even_when_its_file_is_gone(server: Server, others: Path):
    """After a job with another checkpoint the chosen one is read again; when it cannot be, jobs do not stop."""
    assert server.post("/sdapi/v1/options", sd_model_checkpoint="second").status_code == 200
    server.txt2img(override_settings={"sd_model_checkpoint": "tiny.safetensors"})
    (others / "second.safetensors").unlink()
    refused(server.post("/sdapi/v1/txt2img", **SMALL), "second.safetensors", "tiny.safetensors stays loaded")
    assert chosen(server) == ("tiny.safetensors", "tiny")


def test_images_are_not_lost_when_the_checkpoint_cannot_be_put_back(server: Server, others: Path):
    assert server.post("/sdapi/v1/options", sd_model_checkpoint="second").status_code == 200
    fields = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5, "hr_checkpoint_name": "tiny.safetensors"}
    (others / "second.safetensors").unlink()
    assert server.txt2img(**fields)["images"]


def test_settings_that_cannot_be_saved_leave_the_checkpoint(
    server: Server, others: Path, monkeypatch: pytest.MonkeyPatch
):
    from standalone.host.settings import options

    def full(path: Path) -> Any:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(options, "replacing", full)
        refused(server.post("/sdapi/v1/options", sd_model_checkpoint="second"), "disk is full")
    assert chosen(server) == ("tiny.safetensors", "tiny")


def options_in(folder: Path, text: str | bytes) -> Any:
    """Fresh settings that have read a config.json with this text."""
    from modules.options import Options
    from standalone.host.settings.table import all_options

    file = folder / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = Options(all_options(), set())
    found.load(file)
    return found


GOOD = '    "jpeg_quality": 55,\n    "eta_ddim": 0.5'


@pytest.mark.parametrize(
    "bad",
    [
        "NaN",
        "null",
        '"\\ud800"',
        "[" * 200_000 + "]" * 200_000,
        "9" * 6000,
        "1e999",
        '"foo"',
        '{"a": 1}',
        "\n",
        '"not closed',
    ],
)
def test_a_bad_value_in_the_file_costs_that_value_alone(tmp_path: Path, capsys: Any, bad: str):
    text = f'{{\n{GOOD},\n    "sigma_max": {bad},\n    "save_txt": true\n}}'
    found = options_in(tmp_path, text)
    assert (found.jpeg_quality, found.eta_ddim, found.save_txt) == (55, 0.5, True)
    assert found.sigma_max == found.get_default("sigma_max")
    assert (tmp_path / "config.json.damaged").read_text(encoding="utf-8") == text
    assert "config.json.damaged" in capsys.readouterr().err
    found.save(tmp_path / "config.json")  # and what is saved from there on is whole
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["jpeg_quality"] == 55


def test_damaged_files_are_kept_side_by_side(tmp_path: Path, capsys: Any):
    first, second = '{"sigma_max": null}', '{"sigma_max": NaN}'
    for text in (first, second, first, second):  # what is kept already is not kept twice
        options_in(tmp_path, text)
    kept = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.damaged*")}
    assert kept == {"config.json.damaged": first, "config.json.damaged-2": second}
    assert "kept as config.json.damaged-2." in capsys.readouterr().err
    for number in range(30):
        options_in(tmp_path, f'{{"sigma_max": "{number}x"}}')
    assert len(list(tmp_path.glob("*.damaged*"))) == 20
    assert "No copy was kept" in capsys.readouterr().err


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.binary(max_size=8))
def test_no_damage_to_the_file_stops_the_start(tmp_path: Path, where: int, what: bytes):
    whole = f'{{\n{GOOD},\n    "samples_format": "webp",\n    "hide_samplers": ["Heun"]\n}}'.encode()
    cut = min(where, len(whole))
    found = options_in(tmp_path, whole[:cut] + what)
    for key, info in found.data_labels.items():
        assert info.checked(found.data[key]) == found.data[key]
    found.save(tmp_path / "config.json")


def test_a_setting_of_an_extension_is_checked_when_it_is_added(tmp_path: Path):
    from modules.options import OptionInfo

    found = options_in(tmp_path, '{"mine": "many", "other": 4, "third": [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]}')
    for key in ("mine", "other", "third"):
        found.add_option(key, OptionInfo(1, key))
    assert (found.mine, found.other, found.third) == (1, 4, 1)
    assert (tmp_path / "config.json.damaged").is_file()
