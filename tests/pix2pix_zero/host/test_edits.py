"""Edits in jobs of the standalone host: what strength 0 gives, batches, masks, and what is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lib_methods.denoiser import Sampling, Unsupported, editing_of
from lib_methods.pix2pix_zero import apply, guidance
from lib_methods.pix2pix_zero import edit as edit_module
from lib_methods.pix2pix_zero.guidance import NO_GRADIENTS
from lib_methods.pix2pix_zero.session import PSNR_KEY
from lib_methods.pix2pix_zero.settings import CONTROLS
from tests.fabric.small_model import picture
from tests.hosts.seam import acting, spread
from tests.pix2pix_zero.jobs import (
    HIRES,
    IMG2IMG,
    TARGET,
    TXT2IMG,
    away,
    drawn,
    edit,
    left,
    own_latent,
)
from tests.shared.jobs import pixels, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

STRAIGHT = ("Euler", "Euler a", "Heun", "DDIM")  # samplers whose steps direct inversion can correct exactly
HALF = Image.new("L", (64, 64))
HALF.paste(255, (32, 0, 64, 64))


pytestmark = pytest.mark.usefixtures("clean")


@pytest.mark.parametrize("sampler", STRAIGHT)
def test_strength_0_gives_the_picture_with_direct_inversion(host: Running, sampler: str) -> None:
    job = {**IMG2IMG, "sampler_name": sampler, "cfg_scale": 7.0}
    own = own_latent(host, job)
    for regularisation in ("off", "paper"):
        assert spread(drawn(host, job, strength=0, inversion="direct", regularisation=regularisation), own) < 2e-4
    assert away(drawn(host, job, inversion="direct"), own) > 0.05


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "UniPC"])
def test_other_samplers_come_closer_with_direct_inversion(host: Running, sampler: str) -> None:
    """Their steps lean on earlier ones, or on a level in between, where the correction is not exact."""
    job = {**IMG2IMG, "sampler_name": sampler, "steps": 10}
    own = own_latent(host, job)
    ddim, direct = (away(drawn(host, job, strength=0, inversion=how), own) for how in ("ddim", "direct"))
    assert direct < 0.6 * ddim


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
    return edit.reference.final() / editing_of(edit.sampling).at_end(torch.ones(1))


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DDIM"])
def test_strength_0_gives_the_reconstruction(host: Running, sampler: str, edits: list[apply.Edit]) -> None:
    """Also where it is not exact; and in txt2img what would have been generated, with its noise."""
    found = drawn(host, {**IMG2IMG, "sampler_name": sampler}, strength=0)
    assert spread(found, reconstruction(edits[0])) < 2e-4
    txt2img = {**TXT2IMG, "sampler_name": sampler}
    assert spread(drawn(host, txt2img, strength=0), drawn(host, txt2img, edit=None)) < 2e-4


def test_euler_a_reconstructs_as_euler_does(host: Running) -> None:
    one, other = (drawn(host, {**IMG2IMG, "sampler_name": name}, strength=0) for name in ("Euler a", "Euler"))
    assert spread(one, other) < 2e-4


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
    if sampler == "Euler":
        third = host.latents(script_args=edit(target="|".join(targets)), n_iter=3, **job)
        assert spread(third, alone[2]) < 1e-3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, bool, int]]:
    """Level, gradients and rows of every run of the model that the sampler does not ask for."""
    from lib_methods.hosts.a1111.editing import A1111Editing

    seen: list[tuple[float, bool, int]] = []
    predict = A1111Editing.predict

    def watched(self: Any, x: Tensor, sigma: float, cond: Any, gradients: bool = False) -> Tensor:
        seen.append((sigma, gradients, len(x)))
        return predict(self, x, sigma, cond, gradients)

    monkeypatch.setattr(A1111Editing, "predict", watched)
    return seen


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM"])
def test_no_step_is_left_out(host: Running, sampler: str, asked: list[tuple[float, bool, int]]) -> None:
    known: list[Tensor] = []

    def look(sampling: Sampling) -> None:
        known.append(editing_of(sampling).sigmas)

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
        made = host.generate(script_args=edit(guidance=guidance_, show=True), **IMG2IMG)
    assert (CONTROLS.error_key in made.infotexts[0]) == (trouble == "error")
    if trouble == "interrupt":
        assert PSNR_KEY not in made.infotexts[0]  # the reference did not come to its end
    assert len(calls) == 2
    assert left() == []
    assert same(plain, host.generate(**IMG2IMG))


def test_an_error_in_the_gradient_leaves_nothing_behind(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("in the gradient")

    plain = host.generate(**IMG2IMG)
    with monkeypatch.context() as patch:
        patch.setattr(guidance, "map_losses", fail)
        made = host.generate(script_args=edit(), **IMG2IMG)
    assert CONTROLS.error_key in made.infotexts[0]
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
    assert CONTROLS.error_key not in made.infotexts[0]
    assert not same(made, host.generate(script_args=edit(guidance="off"), **IMG2IMG))


def test_the_blend_holds_the_maps(host: Running) -> None:
    """A full blend attends as the reference does, whatever the direction's keys are."""
    loose, held = (drawn(host, IMG2IMG, guidance="soft blend", structure=s) for s in (0, 1))
    assert away(held, loose) > 0.01
    own = own_latent(host, IMG2IMG)
    assert spread(drawn(host, IMG2IMG, guidance="soft blend", strength=0, inversion="direct"), own) < 2e-4


@pytest.mark.parametrize(("sampler", "inversion"), [*((s, "direct") for s in STRAIGHT), ("Euler", "ddim")])
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
