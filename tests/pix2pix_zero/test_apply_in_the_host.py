"""Edits in jobs of the standalone host: what strength 0 gives, batches, masks, the cache, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("gradio")

from lib_methods.denoiser import Unsupported
from lib_methods.hosts import HostSampling
from lib_methods.pix2pix_zero import apply, guidance, infotext
from lib_methods.pix2pix_zero import edit as edit_module
from lib_methods.pix2pix_zero.guidance import NO_GRADIENTS
from lib_methods.pix2pix_zero.inversion import Trajectory
from tests.fabric.small_model import picture
from tests.pix2pix_zero.jobs import CAPTION, HIRES, IMG2IMG, TARGET, TXT2IMG, edit, left, speak_up
from tests.pix2pix_zero.seam import acting, spread
from tests.shared.jobs import REPO, pixels, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

STRAIGHT = ("Euler", "Heun", "DDIM")  # samplers whose steps direct inversion can correct exactly
HALF = Image.new("L", (64, 64))
HALF.paste(255, (32, 0, 64, 64))


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    host = start_host(checkpoints("sd1"), extension_dirs=[REPO])
    speak_up()
    return host


@pytest.fixture(autouse=True)
def _clean(host: Running) -> Iterator[None]:
    """A cache of its own for every test, and nothing on the model after it."""
    apply.CACHE.clear()
    yield
    assert left() == []


def drawn(host: Running, job: dict[str, Any], **more: Any) -> Tensor:
    """The latents that a job ends with; more: of the edit, None for a job without one."""
    return host.latents(script_args=None if more.get("edit", True) is None else edit(**more), **job)


def own_latent(host: Running, job: dict[str, Any]) -> Tensor:
    """What the job starts from."""
    seen: list[Tensor] = []

    def look(sampling: HostSampling) -> None:
        own = sampling.own_latent()
        assert own is not None
        seen.append(own)

    with acting(host, look, False):
        host.latents(**job)
    return seen[0]


def away(one: Tensor, other: Tensor) -> float:
    """Mean difference, as a share of the mean size."""
    return float((one - other).abs().mean() / other.abs().mean())


@pytest.mark.parametrize("sampler", STRAIGHT)
def test_strength_0_gives_the_picture_with_direct_inversion(host: Running, sampler: str) -> None:
    job = {**IMG2IMG, "sampler_name": sampler, "cfg_scale": 7.0}
    own = own_latent(host, job)
    for regularisation in ("off", "paper"):
        assert spread(drawn(host, job, strength=0, inversion="direct", regularisation=regularisation), own) < 2e-4
    assert away(drawn(host, job, inversion="direct"), own) > 0.05


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "UniPC", "PLMS", "LMS", "DPM2"])
def test_other_samplers_come_closer_with_direct_inversion(host: Running, sampler: str) -> None:
    """Their steps lean on earlier ones, or on a level in between, where the correction is not exact."""
    job = {**IMG2IMG, "sampler_name": sampler, "steps": 10}
    own = own_latent(host, job)
    ddim, direct = (away(drawn(host, job, strength=0, inversion=how), own) for how in ("ddim", "direct"))
    assert direct < 0.5 * ddim


@pytest.fixture
def edits(monkeypatch: pytest.MonkeyPatch) -> list[apply.Edit]:
    """Every edit that is attached."""
    attached: list[apply.Edit] = []
    attach = apply.attach

    def keep(*args: Any, **kwargs: Any) -> Any:
        found = attach(*args, **kwargs)
        attached.extend([] if found is None else [found])
        return found

    monkeypatch.setattr(apply, "attach", keep)
    return attached


def reconstruction(edit: apply.Edit) -> Tensor:
    """As the host decodes it."""
    return edit.reference.final() / edit.sampling.at_end(torch.ones(1))


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_strength_0_gives_the_reconstruction(host: Running, sampler: str, edits: list[apply.Edit]) -> None:
    """Also where it is not exact; and in txt2img what would have been drawn."""
    found = drawn(host, {**IMG2IMG, "sampler_name": sampler}, strength=0)
    assert spread(found, reconstruction(edits[0])) < 2e-4
    txt2img = {**TXT2IMG, "sampler_name": sampler}
    assert spread(drawn(host, txt2img, strength=0), drawn(host, txt2img, edit=None)) < 2e-4


@pytest.mark.parametrize("job", [IMG2IMG, TXT2IMG, HIRES], ids=["img2img", "txt2img", "Hires.fix"])
def test_off_is_bit_identical(host: Running, job: dict[str, Any]) -> None:
    plain = host.generate(**job)
    off = host.generate(script_args=edit(enabled=False), **job)
    assert same(plain, off)
    assert plain.infotexts == off.infotexts


@pytest.mark.parametrize("cfg_scale", [1.0, 0.5])
@pytest.mark.parametrize("job", [IMG2IMG, TXT2IMG], ids=["img2img", "txt2img"])
def test_the_edit_is_there_without_guidance_by_the_prompt(host: Running, job: dict[str, Any], cfg_scale: float) -> None:
    still, moved = (drawn(host, {**job, "cfg_scale": cfg_scale}, strength=s, structure=0) for s in (0, 4))
    assert away(moved, still) > 0.01


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_every_image_gets_its_own_edit(host: Running, sampler: str) -> None:
    """In a batch and over several: as if each had been made alone."""
    job = {**IMG2IMG, "sampler_name": sampler}
    targets = (TARGET, "green star", "grey")
    alone = [host.latents(script_args=edit(target=target), **job) for target in targets]
    assert away(alone[0], alone[1]) > 0.02
    pair = host.latents(script_args=edit(target="|".join(targets)), batch_size=2, **job)
    for index in range(2):
        assert spread(pair[index : index + 1], alone[index]) < 1e-3
    third = host.latents(script_args=edit(target="|".join(targets)), n_iter=3, **job)
    assert spread(third, alone[2]) < 1e-3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool, int]]:
    """Level, gradients and rows of every run of the model that the sampler does not ask for."""
    from lib_methods.hosts.a1111_editing import A1111EditSampling

    seen: list[tuple[float, bool, int]] = []
    predict = A1111EditSampling.predict

    def watched(self: Any, x: Tensor, sigma: float, cond: Any, gradients: bool = False) -> Tensor:
        seen.append((sigma, gradients, len(x)))
        return predict(self, x, sigma, cond, gradients)

    monkeypatch.setattr(A1111EditSampling, "predict", watched)
    return seen


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM"])
def test_no_step_is_left_out(host: Running, sampler: str, asked: list[tuple[float, bool, int]]) -> None:
    known: list[Tensor] = []

    def look(sampling: HostSampling) -> None:
        known.append(sampling.sigmas)

    with acting(host, look, False):
        drawn(host, {**IMG2IMG, "sampler_name": sampler})
    levels = known[0].tolist()[:-1]
    inversion, sampling = asked[: len(levels)], asked[len(levels) :]
    assert inversion == [(level, False, 1) for level in reversed(levels)]
    assert [round(level, 4) for level, _, _ in sampling] == [round(level, 4) for level in levels for _ in range(2)]
    assert [gradients for _, gradients, _ in sampling] == [False, True] * len(levels)


@pytest.mark.parametrize("inversion", ["ddim", "direct"])
def test_only_the_interval_is_guided_and_no_more_is_run_than_needed(
    host: Running, inversion: str, asked: list[tuple[float, bool, int]]
) -> None:
    """The reference is known without the model where the inversion is exact; nothing is run to show the sheets."""
    host.generate(script_args=edit(inversion=inversion, start=0.2, end=0.6, show=True), **IMG2IMG)
    steps = 10 if inversion == "direct" else 5
    reference = [gradients for _, gradients, _ in asked[steps:]]
    if inversion == "direct":
        assert reference == [False, True, False, True]
    else:
        assert reference == [False, False, True, False, True, False, False]


def test_the_aspect_is_kept(host: Running) -> None:
    job = {**IMG2IMG, "init_images": [picture(5, 96, 64)], "width": 96, "height": 64}
    made = host.generate(script_args=edit(strength=0, inversion="direct", show=True), **job)
    assert made.images[0].size == (96, 64)
    assert spread(drawn(host, job, strength=0, inversion="direct"), own_latent(host, job)) < 2e-4


@pytest.mark.parametrize("guidance_", ["gradient", "soft blend"])
@pytest.mark.parametrize("trouble", ["error", "interrupt"])
def test_nothing_is_left_behind_in_the_middle(
    host: Running, guidance_: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules import shared

    plain = host.generate(**IMG2IMG)
    guide, calls = edit_module.Edit.guide, []

    def stumble(self: Any, call: Any, found: Any) -> Tensor:
        calls.append(call.step)
        if len(calls) == 2 and trouble == "error":
            raise RuntimeError("in the middle")
        if len(calls) == 2:
            shared.state.interrupt()
        return guide(self, call, found)

    with monkeypatch.context() as patch:
        patch.setattr(edit_module.Edit, "guide", stumble)
        if trouble == "error":
            with pytest.raises(RuntimeError, match="in the middle"):
                host.generate(script_args=edit(guidance=guidance_, show=True), **IMG2IMG)
        else:
            made = host.generate(script_args=edit(guidance=guidance_, show=True), **IMG2IMG)
            assert infotext.PSNR_KEY not in made.infotexts[0]  # the reference did not come to its end
            assert infotext.ERROR_KEY not in made.infotexts[0]
    assert len(calls) == 2
    assert left() == []
    assert same(plain, host.generate(**IMG2IMG))


def test_an_error_in_the_gradient_leaves_nothing_behind(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("in the gradient")

    plain = host.generate(**IMG2IMG)
    with monkeypatch.context() as patch:
        patch.setattr(guidance, "map_losses", fail)
        with pytest.raises(RuntimeError, match="in the gradient"):
            host.generate(script_args=edit(), **IMG2IMG)
    assert left() == []
    assert same(plain, host.generate(**IMG2IMG))


def test_where_no_gradients_can_be_taken_the_soft_blend_steps_in(
    host: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise Unsupported(NO_GRADIENTS)

    monkeypatch.setattr(guidance, "gradient", refuse)
    made = host.generate(script_args=edit(structure=0.1), **IMG2IMG)
    assert edit_module.BLENDED in made.comments
    assert infotext.ERROR_KEY not in made.infotexts[0]
    assert not same(made, host.generate(script_args=edit(guidance="off"), **IMG2IMG))


def test_the_blend_holds_the_maps(host: Running) -> None:
    """A full blend attends as the reference does, whatever the direction's keys are."""
    loose, held = (drawn(host, IMG2IMG, guidance="soft blend", structure=s) for s in (0, 1))
    assert away(held, loose) > 0.01
    own = own_latent(host, IMG2IMG)
    assert spread(drawn(host, IMG2IMG, guidance="soft blend", strength=0, inversion="direct"), own) < 2e-4


@pytest.mark.parametrize("sampler", STRAIGHT)
@pytest.mark.parametrize("inversion", ["ddim", "direct"])
def test_what_a_mask_keeps_is_the_reconstruction(
    host: Running, sampler: str, inversion: str, edits: list[apply.Edit]
) -> None:
    job = {**IMG2IMG, "sampler_name": sampler}
    mask = {"mask": encoded(HALF), "mask_mode": "change white"}
    made = drawn(host, job, inversion=inversion, **mask)
    still = reconstruction(edits[0])
    assert spread(made[..., :4], still[..., :4]) < 2e-4
    assert away(made[..., 4:], still[..., 4:]) > 0.02
    other = drawn(host, job, inversion=inversion, mask=encoded(HALF), mask_mode="keep white")
    assert spread(other[..., 4:], still[..., 4:]) < 2e-4


@pytest.mark.parametrize("guidance_", ["gradient", "off"])
def test_a_mask_by_word_lets_only_that_part_change(host: Running, guidance_: str) -> None:
    fields = {"mask_mode": "by word", "mask_level": 0.9, "inversion": "direct", "guidance": guidance_}
    made, own = drawn(host, IMG2IMG, **fields), own_latent(host, IMG2IMG)
    changed = (made - own).abs().amax(1) > 1e-3
    assert changed.any() and not changed.all()


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_the_tabs_own_mask_is_kept_as_well(host: Running, sampler: str) -> None:
    job = {**IMG2IMG, "sampler_name": sampler, "mask": HALF, "inpainting_fill": 1, "mask_blur": 0}
    plain, made = pixels(host.generate(**job)), pixels(host.generate(script_args=edit(), **job))
    assert (plain[:, :, :24] == made[:, :, :24]).all()
    assert not (plain[:, :, 40:] == made[:, :, 40:]).all()
    both = drawn(host, job, mask=encoded(HALF), mask_mode="keep white", inversion="direct")
    assert spread(both[..., 4:], own_latent(host, job)[..., 4:]) < 1e-3  # the host keeps the rest


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


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
@pytest.mark.parametrize("name", JOBS)
def test_every_kind_of_job(host: Running, name: str, kind: str) -> None:
    job = {**(IMG2IMG if kind == "img2img" else TXT2IMG), **JOBS[name]}
    plain = host.generate(**job)
    made = host.generate(script_args=edit(), **job)
    assert infotext.ERROR_KEY not in made.infotexts[0]
    assert not any((a == b).all() for a, b in zip(pixels(plain), pixels(made)))
    assert same(made, host.generate(script_args=edit(), **job))
    assert same(plain, host.generate(**job))


@pytest.mark.parametrize("name", ["long prompt", "long negative", "prompts of unequal length"])
def test_strength_0_holds_for_chunks_of_tokens(host: Running, name: str) -> None:
    txt2img = {**TXT2IMG, **JOBS[name]}
    made = drawn(host, txt2img, strength=1e-7, structure=0.1)  # not 0, where nothing is held
    assert spread(made, drawn(host, txt2img, edit=None)) < 5e-3


def test_a_blend_that_does_not_fit_says_so(host: Running) -> None:
    made = host.generate(script_args=edit(guidance="soft blend", caption=CAPTION + ", thing" * 60), **IMG2IMG)
    assert edit_module.OTHER_LENGTH in made.comments


def test_both_passes_of_hires_fix_have_the_direction(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second with a sampler of its own, and a stochastic one if it likes."""
    first = host.generate(script_args=edit(show=True), **HIRES, hr_sampler_name="Euler a")
    assert infotext.ERROR_KEY not in first.infotexts[0]
    seen: list[bool] = []
    shifted = edit_module.Shift._of

    def watched(self: Any, row: Any, added: Any) -> Any:
        seen.append(self.sampling.is_hires)
        return shifted(self, row, added)

    monkeypatch.setattr("lib_methods.pix2pix_zero.shift.Shift._of", watched)
    made = host.generate(script_args=edit(show=True), **HIRES, hr_sampler_name="DDIM")
    assert infotext.ERROR_KEY not in made.infotexts[0]
    assert made.images[0].size == (96, 96)
    assert set(seen) == {False, True} and seen == sorted(seen)


def test_a_batch_that_gives_up_has_nothing_of_the_one_before(host: Running) -> None:
    job = {**IMG2IMG, "prompt": [CAPTION, "a grey box"], "seed": [1, 2], "n_iter": 2}
    plain = host.generate(**job)
    made = host.generate(script_args=edit(mask_mode="by word"), **job)
    assert not (pixels(plain)[0] == pixels(made)[0]).all()
    assert (pixels(plain)[1] == pixels(made)[1]).all()
    assert 'The word "circle" is not in the caption' in made.comments
    assert infotext.ERROR_KEY in made.infotexts[1]


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
    from lib_methods.hosts.a1111_editing import A1111EditSampling
    from modules import shared

    whole = drawn(host, IMG2IMG, inversion="direct")
    apply.CACHE.clear()
    predict, calls = A1111EditSampling.predict, []

    def impatient(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            shared.state.interrupt()
        return predict(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(A1111EditSampling, "predict", impatient)
        made = host.generate(script_args=edit(inversion="direct"), **IMG2IMG)
    assert len(calls) == 3
    assert infotext.ERROR_KEY not in made.infotexts[0]
    assert torch.equal(drawn(host, IMG2IMG, inversion="direct"), whole)
    assert steps == [(0, 10), (0, 3), (3, 10)]


def test_finish_this_image_does_not_cut_the_inversion(host: Running, steps: list[tuple[int, int]]) -> None:
    from modules import shared

    def stop(sampling: HostSampling) -> None:
        shared.state.stop_generating()

    with acting(host, stop, False):  # the second batch is not begun
        host.latents(script_args=edit(), n_iter=2, **IMG2IMG)
    assert steps == [(0, 5)]


def test_a_model_that_gives_no_numbers_is_told(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from lib_methods.hosts.a1111_editing import A1111EditSampling

    def broken(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x * float("nan")

    monkeypatch.setattr(A1111EditSampling, "predict", broken)
    made = host.generate(script_args=edit(), **IMG2IMG)
    assert "not a number (NaN)" in made.comments
    assert "cannot be inverted" in made.infotexts[0]
    assert len(apply.CACHE) == 0
