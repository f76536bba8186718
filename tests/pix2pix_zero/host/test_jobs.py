"""Edits in every kind of job of the standalone host; what is kept of an inversion, and what ends one early."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods.denoiser import Sampling
from lib_methods.pix2pix_zero import apply
from lib_methods.pix2pix_zero import edit as edit_module
from lib_methods.pix2pix_zero.inversion import Trajectory
from lib_methods.pix2pix_zero.settings import CONTROLS
from tests.fabric.small_model import picture
from tests.hosts.seam import acting, spread
from tests.pix2pix_zero.jobs import CAPTION, HIRES, IMG2IMG, TXT2IMG, drawn, edit, interrupted
from tests.shared.jobs import check, pixels
from tests.standalone.conftest import Running

pytestmark = pytest.mark.usefixtures("clean")
JOBS: dict[str, dict[str, Any]] = {
    "AND": {"prompt": "a red circle AND a blue square :0.5"},
    "negative prompt": {"negative_prompt": "grey"},
    "long prompt": {"prompt": "a red circle, " + "shiny " * 80},
    "long negative": {"negative_prompt": "grey " * 90},
    "padded": {"negative_prompt": "grey " * 90, "override_settings": {"pad_cond_uncond": True}},
    "prompts of unequal length": {
        "prompt": ["a red circle", "a red circle, " + "shiny " * 80],
        "seed": [1, 2],
        "batch_size": 2,
    },
    "slices": {"override_settings": {"batch_cond_uncond": False}},
    "skipped rows": {"s_min_uncond": 2.0},
    "clip skip": {"override_settings": {"CLIP_stop_at_last_layers": 2}},
    "one step": {"steps": 1, "denoising_strength": 1.0},
}


IN_TXT2IMG = ("AND", "prompts of unequal length", "skipped rows", "one step")


@pytest.mark.parametrize(("name", "base"), [*((n, IMG2IMG) for n in JOBS), *((n, TXT2IMG) for n in IN_TXT2IMG)])
def test_every_kind_of_job(host: Running, name: str, base: dict[str, Any]) -> None:
    job = {**base, **JOBS[name]}
    check(host, job.pop("kind"), job, edit(), CONTROLS.title)


@pytest.mark.parametrize("name", ["long prompt", "long negative", "prompts of unequal length"])
def test_strength_0_holds_for_chunks_of_tokens(host: Running, name: str) -> None:
    txt2img = {**TXT2IMG, **JOBS[name]}
    made = drawn(host, txt2img, strength=1e-7, structure=0.1)  # not 0, where nothing is held
    assert spread(made, drawn(host, txt2img, edit=None)) < 5e-3


def test_a_blend_that_does_not_fit_says_so(host: Running) -> None:
    made = host.generate(script_args=edit(guidance="soft blend", caption=CAPTION + ", thing" * 60), **IMG2IMG)
    assert edit_module.OTHER_LENGTH in made.comments


def test_both_passes_of_hires_fix_have_the_direction(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second with its own sampler, which may be stochastic."""
    first = host.generate(script_args=edit(show=True), **HIRES, hr_sampler_name="Euler a")
    assert CONTROLS.error_key not in first.infotexts[0]
    seen: list[bool] = []
    shifted = edit_module.Shift._of

    def watched(self: Any, row: Any, added: Any) -> Any:
        seen.append(self.sampling.is_hires)
        return shifted(self, row, added)

    monkeypatch.setattr("lib_methods.pix2pix_zero.edit.Shift._of", watched)
    made = host.generate(script_args=edit(show=True), **HIRES, hr_sampler_name="DDIM")
    assert CONTROLS.error_key not in made.infotexts[0]
    assert made.images[0].size == (96, 96)
    assert set(seen) == {False, True} and seen == sorted(seen)


def test_a_batch_that_gives_up_has_nothing_of_the_one_before(host: Running) -> None:
    job = {**IMG2IMG, "prompt": [CAPTION, "a grey box"], "seed": [1, 2], "n_iter": 2}
    plain = host.generate(**job)
    made = host.generate(script_args=edit(mask_mode="by word"), **job)
    assert not (pixels(plain)[0] == pixels(made)[0]).all()
    assert (pixels(plain)[1] == pixels(made)[1]).all()
    assert 'The word "circle" is not in the caption' in made.comments
    assert CONTROLS.error_key in made.infotexts[1]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How far each inversion was when it was begun and when it ended."""
    seen: list[tuple[int, int]] = []
    invert = apply.invert

    def watched(*args: Any, **kwargs: Any) -> Trajectory:
        partial = args[5]
        found = invert(*args, **kwargs)
        seen.append((0 if partial is None else partial.done, found.done))
        return found

    monkeypatch.setattr(apply, "invert", watched)
    return seen


def test_an_inversion_is_found_again_where_nothing_has_changed(host: Running, steps: list[tuple[int, int]]) -> None:
    from modules import shared

    first, again = (drawn(host, IMG2IMG) for _ in range(2))
    assert torch.equal(first, again)
    drawn(host, {**IMG2IMG, "seed": 77}, target="grey", strength=2)
    assert steps == [(0, 5), (5, 5), (5, 5)]
    del steps[:]
    drawn(host, {**IMG2IMG, "override_settings": {"CLIP_stop_at_last_layers": 2}})
    drawn(host, {**IMG2IMG, "prompt": "a blue circle"})
    drawn(host, {**IMG2IMG, "init_images": [picture(8)]})
    drawn(host, {**IMG2IMG, "denoising_strength": 0.6})
    shared.sd_model.loaded_networks = [type("Net", (), {"name": "x", "mtime": 1})()]
    try:
        drawn(host, IMG2IMG)
    finally:
        shared.sd_model.loaded_networks = []
    assert [begun for begun, _ in steps] == [0] * 5


def test_an_interrupted_inversion_goes_on_where_it_was(
    host: Running, steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn(host, IMG2IMG, inversion="direct")
    apply.CACHE.clear()
    made = interrupted(host, monkeypatch, IMG2IMG, inversion="direct")
    assert CONTROLS.error_key not in made.infotexts[0]
    assert torch.equal(drawn(host, IMG2IMG, inversion="direct"), whole)
    assert steps == [(0, 10), (0, 3), (3, 10)]


def test_finish_this_image_does_not_cut_the_inversion(host: Running, steps: list[tuple[int, int]]) -> None:
    from modules import shared

    def stop(sampling: Sampling) -> None:
        shared.state.stop_generating()

    with acting(host, stop, False):  # the second batch is not begun
        host.latents(script_args=edit(), n_iter=2, **IMG2IMG)
    assert steps == [(0, 5)]


def test_a_model_that_gives_no_numbers_is_told(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_methods.hosts.a1111.editing import A1111Editing

    def broken(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x * float("nan")

    monkeypatch.setattr(A1111Editing, "predict", broken)
    made = host.generate(script_args=edit(), **IMG2IMG)
    assert "is NaN" in made.comments
    assert "cannot be inverted" in made.infotexts[0]
    assert len(apply.CACHE) == 0
