"""scripts/fabric.py in a running host: what a job does, and what it says, when all is well and when it is not."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_methods.denoiser import Unsupported
from lib_methods.fabric import apply
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.settings import CONTROLS, FabricSettings
from lib_methods.pictures.composites import Composites
from lib_methods.pictures.convert import open_image
from tests.shared import jobs
from tests.shared.jobs import pixels
from tests.shared.pictures import as_file, data_url, noisy
from tests.standalone.conftest import Running

UNKNOWN = "0" * 64


def run(host: Running, arguments: list[Any] | None = None, *, axes: dict[str, Any] | None = None, **more: Any) -> Any:
    """A job of three steps; `arguments` are FABRIC's."""
    scripts = None if arguments is None else {"fabric": arguments}
    return jobs.run(host, scripts, attributes={"fabric_axes": axes} if axes else None, **more)


def fields_of(processed: Any) -> dict[str, Any]:
    return jobs.fields_of(processed, "FABRIC")


@pytest.mark.parametrize(
    "arguments",
    [[False], [True], [True, "", ""], [{"enabled": False, "likes": [UNKNOWN]}], [{"likes": [], "strength": 1.0}]],
)
def test_off_means_off(host: Running, arguments: list[Any]) -> None:
    off = run(host)
    job = run(host, arguments)
    assert np.array_equal(pixels(off), pixels(job))
    assert off.info == job.info
    assert "FABRIC" not in job.info


def test_strength_zero_is_an_ordinary_job(host: Running) -> None:
    job = run(host, [{"likes": [data_url(noisy())], "strength": 0.0}])
    assert np.array_equal(pixels(run(host)), pixels(job))
    assert "FABRIC" not in job.info


def test_a_like_changes_the_picture_and_the_infotext_brings_it_back(host: Running, script: ModuleType) -> None:
    liked = script.STORE.add(noisy(1, 64, 64))
    arguments = [{"likes": [{"image": liked, "weight": 0.5}], "strength": 1.0, "end": 1.0}]
    job = run(host, arguments)
    assert not np.array_equal(pixels(run(host)), pixels(job))
    fields = fields_of(job)
    wanted = FabricSettings(likes=(FeedbackImage(liked, 0.5),), strength=1.0, end=1.0)
    assert fields == {
        "FABRIC likes": f"{liked[:16]}:0.5",
        "FABRIC strength": "1",
        "FABRIC end": "1",
        "FABRIC reference levels": "six",
    }
    pasted = [key(fields) for key in CONTROLS.paste_keys(script.STORE)]
    assert pasted[1] == f"{liked}:0.5"
    assert dict(zip(CONTROLS.names, pasted, strict=True)) == {
        "enabled": True,
        **CONTROLS.values(wanted),
        "cache_limit_mb": None,
    }
    again = run(host, pasted)
    assert np.array_equal(pixels(job), pixels(again))
    assert job.info == again.info


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([{"strenght": 1}], "strenght"),
        ([{"likes": ["../../etc/passwd"]}], "paths are not accepted"),
        ([{"likes": ["data:image/png;base64," + "A" * 80]}], "cannot be read"),
        ([{"start": 0.9, "end": 0.1}], "is after End"),
        ([True, "", "", "much"], "Strength"),
    ],
)
@pytest.mark.parametrize("api", [False, True])
def test_a_request_that_makes_no_sense_is_left_out_and_named(
    host: Running, arguments: list[Any], sentence: str, api: bool
) -> None:
    job = run(host, arguments, api=api)
    assert np.array_equal(pixels(run(host)), pixels(job))
    assert sentence in job.comments
    assert list(fields_of(job)) == [CONTROLS.error_key]
    assert sentence in fields_of(job)[CONTROLS.error_key]


def test_the_page_leaves_out_missing_pictures_and_says_so(host: Running, script: ModuleType) -> None:
    liked = script.STORE.add(noisy(1, 64, 64))
    job = run(host, [True, f"{liked} {UNKNOWN}"])
    assert np.array_equal(pixels(job), pixels(run(host, [True, liked])))
    assert "not on this machine" in job.comments
    assert fields_of(job)["FABRIC likes"] == liked[:16]


def test_the_api_refuses_missing_pictures(host: Running, script: ModuleType) -> None:
    job = run(host, [True, f"{script.STORE.add(noisy())} {UNKNOWN}"], api=True)
    assert np.array_equal(pixels(run(host)), pixels(job))
    assert "not on this machine" in fields_of(job)[CONTROLS.error_key]


def test_the_api_refuses_missing_pictures_before_the_job(host: Running, script: ModuleType) -> None:
    answer = jobs.posted(script, "FABRIC", [{"likes": [UNKNOWN]}])
    assert answer.status_code == 422
    assert "not on this machine" in answer.json()["detail"]
    assert jobs.posted(script, "FABRIC", [{"likes": [script.STORE.add(noisy())]}]).status_code == 200


def test_a_picture_whose_file_was_damaged_is_named(host: Running, script: ModuleType) -> None:
    liked = script.STORE.add(noisy(77, 64, 64))
    (script.STORE.folder / f"{liked}.png").write_bytes(b"damaged")
    job = run(host, [True, liked])
    assert np.array_equal(pixels(run(host)), pixels(job))
    assert "damaged" in fields_of(job)[CONTROLS.error_key]


def test_an_internal_error_is_not_hidden(host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(apply, "attach", fail)
    job = run(host, [True, script.STORE.add(noisy())])
    assert "internal error" in job.comments
    assert "secret" not in job.info
    assert list(fields_of(job)) == [CONTROLS.error_key]


def test_both_passes_of_hires_fix_are_told_apart(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []
    monkeypatch.setattr(apply, "attach", lambda sampling, *rest: passes.append(sampling.is_hires))
    run(host, [True, script.STORE.add(noisy())], enable_hr=True, hr_scale=2.0, denoising_strength=0.5)
    assert passes == [False, True]


def test_a_batch_of_img2img_that_fails_has_nothing_of_the_one_before(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host uses one sampler for all batches of img2img."""
    job: dict[str, Any] = {"init_images": [noisy(3, 64, 64)], "denoising_strength": 0.7, "n_iter": 2}
    plain = host.generate("img2img", **job)
    attach, calls = apply.attach, []

    def second_fails(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Unsupported("No.")
        return attach(*given)

    monkeypatch.setattr(apply, "attach", second_fails)
    made = host.generate("img2img", script_args={"fabric": [True, script.STORE.add(noisy(1, 64, 64))]}, **job)
    assert [np.array_equal(*both) for both in zip(pixels(plain), pixels(made), strict=True)] == [False, True]
    assert "FABRIC likes" in made.infotexts[0] and "FABRIC error" not in made.infotexts[0]
    assert "FABRIC likes" not in made.infotexts[1] and "FABRIC error: No." in made.infotexts[1]


def test_axes_win_over_the_controls(host: Running, script: ModuleType) -> None:
    liked = script.STORE.add(noisy(1, 64, 64))
    job = run(host, [True, liked], axes={"strength": 0.25})
    assert fields_of(job)["FABRIC strength"] == "0.25"
    assert np.array_equal(pixels(job), pixels(run(host, [True, liked, "", 0.25])))


def test_axes_are_added_once_and_cells_do_not_share_values(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = jobs.plot_axes(script, monkeypatch)
    names = [axis.label for axis in axes]
    expected = ("Strength", "Start", "End", "Negative weight", "Reference levels")
    assert names == [f"[FABRIC] {name}" for name in expected]
    cell = SimpleNamespace()
    axes[0].apply(cell, 0.5, [0.5, 1.0])
    copied = SimpleNamespace(**vars(cell))
    axes[1].apply(copied, 0.1, [0.1])
    assert cell.fabric_axes == {"strength": 0.5}
    assert copied.fabric_axes == {"strength": 0.5, "start": 0.1}


def test_pictures_of_the_first_extension_are_missed_aloud(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules import script_callbacks

    said: list[str] = []
    monkeypatch.setattr(script, "warn", said.append)
    script_callbacks.infotext_pasted_callback("", {"fabric_pos_images": '["a.png", "b.png"]', "fabric_start": "0"})
    script_callbacks.infotext_pasted_callback("", {"FABRIC likes": UNKNOWN})
    assert len(said) == 1
    assert "2 image(s) of another extension" in said[0]


def test_hosts_without_the_plot_get_no_axes(host: Running, script: ModuleType) -> None:
    jobs.method_of(script).add_axes()


def test_a_job_used_again_carries_nothing_over(host: Running, script: ModuleType) -> None:
    from modules.processing import process_images
    from standalone.host.scripts.loading import runner_of

    with closing(host.make(script_args={"fabric": [True, script.STORE.add(noisy())]})) as p:
        with_fabric = host.host.queue.run(process_images, p)
        p.script_args = tuple(runner_of(False).default_args())
        without = host.host.queue.run(process_images, p)
    assert "FABRIC" in with_fabric.info
    assert "FABRIC" not in without.info
    assert np.array_equal(pixels(without), pixels(run(host)))


@pytest.mark.parametrize("is_img2img", [False, True])
def test_the_controls_are_the_request_in_order_with_its_defaults(
    host: Running, script: ModuleType, is_img2img: bool
) -> None:
    instance = script.FabricScript()
    for named in jobs.first_values(instance, is_img2img, CONTROLS.names):
        assert named == {"enabled": False, **CONTROLS.values(FabricSettings())}
    assert [key for _, key in instance.infotext_fields] == ["FABRIC", *CONTROLS.keys.values(), "FABRIC compare"]


def line(script: ModuleType, steps: Any = 20, enabled: bool = True, **changed: Any) -> str:
    """The line that the page shows."""
    method = script.FabricScript()
    shown = method.line(enabled, *{**CONTROLS.defaults, **changed}.values(), steps)
    assert ("steer-problem" in shown) == ('role="alert"' in shown)
    return shown


def test_the_line_says_what_will_happen_or_what_is_wrong(host: Running, script: ModuleType) -> None:
    likes = " ".join(script.STORE.add(noisy(seed)) for seed in (1, 2))
    disliked = script.STORE.add(noisy(3))
    text = "2 likes, 1 dislike, steps 1-16 of 20, strength 0.8 shared"
    assert text in line(script, likes=likes, dislikes=disliked)
    text = "Switched off (2 likes, steps 1-8 of 10, strength 0.8 shared)."
    assert text in line(script, 10, enabled=False, likes=likes)
    assert "No feedback yet" in line(script, enabled=False)
    for changed, problem in (
        ({"start": 0.9, "end": 0.1}, "is after End"),
        ({"likes": f"{disliked} {UNKNOWN}"}, "1 like, steps 1-16 of 20, strength 0.8 shared. The liked image 00000000"),
    ):
        shown = line(script, **changed)
        assert problem in shown
        assert "steer-problem" in shown


@pytest.mark.parametrize("steps", [None, 0, "20", 7.0])
def test_the_line_survives_an_empty_steps_field(host: Running, script: ModuleType, steps: Any) -> None:
    assert "steer-problem" not in line(script, steps)


def test_the_grid_of_a_job_cannot_be_liked_and_its_images_can(host: Running, script: ModuleType) -> None:
    handlers = script.page.PageHandlers(script.STORE, script.PRESETS, script.COMPOSITES, str)
    made = run(host, batch_size=2, do_not_save_grid=False)
    assert made.index_of_first_image == 1

    def like(image: Image.Image, file_format: str, origin: str) -> dict[str, Any]:
        text = base64.b64encode(as_file(image, file_format)).decode()
        action = {"do": "add", "list": "likes", "image": f"data:image/png;base64,{text}", "from": origin}
        likes, _, answer = handlers.receive(json.dumps({"nonce": "n", "actions": [action]}), "", "")
        return {"likes": likes, **json.loads(answer)}

    for file_format in ("PNG", "JPEG", "WEBP"):
        refused = like(made.images[0], file_format, "page")
        assert not refused["likes"]
        assert "grid of several images" in refused["note"]
        for image in made.images[1:]:
            assert like(image, file_format, "page")["likes"]
    assert like(made.images[0], "PNG", "file")["likes"], "a file of the user's own may be what it likes"


@pytest.mark.parametrize("keeper", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("text", "several"),
    [
        ("a cat\nSteps: 3, Script: X/Y/Z plot, X Type: Seed, X Values: 1-3", True),
        ("a cat\nSteps: 3, Sampler: Euler", False),
        ("", False),
    ],
)
def test_a_grid_of_an_xyz_plot_is_known_by_its_text(text: str, several: bool, keeper: str) -> None:
    from standalone.host.images import encode

    file = encode(noisy(), f".{keeper.lower()}".replace("jpeg", "jpg"), text, {"parameters": text}, 80)
    assert Composites().holds(open_image(file.data)) == several


def test_a_grid_of_one_image_is_that_image() -> None:
    composites, image = Composites(), noisy()
    composites.remember([image, image], 1)
    assert not composites.holds(image)
