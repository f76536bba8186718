"""Image conditioning in every kind of job of the standalone host, on a tiny model with 8 input channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_methods.denoiser import Needs, RowPlan
from lib_methods.errors import UserError
from lib_methods.image_cfg import formulas
from tests.fabric.small_model import picture
from tests.image_cfg.jobs import OTHER, PICTURE, edit, spread, unet_runs
from tests.shared.jobs import REPO, pixels
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

HIRES: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
HALF_MASK = Image.new("L", (64, 64))
HALF_MASK.paste(255, (32, 0, 64, 64))
IMG2IMG: dict[str, Any] = {"init_images": [picture(7)], "denoising_strength": 0.7, "steps": 4}

JOBS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "another aspect, DDIM": {"width": 96, "height": 64, "sampler_name": "DDIM"},
    "batch of two, twice": {"batch_size": 2, "n_iter": 2},
    "AND": {"prompt": "a circle AND a red square :0.5 AND grey"},
    "long prompt": {"prompt": "red " * 90, "negative_prompt": "", "sampler_name": "Heun"},
    "long negative, slices": {"negative_prompt": "red " * 90, "override_settings": {"batch_cond_uncond": False}},
    "Hires.fix": HIRES,
    "Hires.fix with another sampler": {**HIRES, "hr_sampler_name": "UniPC", "hr_second_pass_steps": 2},
}


def whole(text_scale: float, image_scale: float, needs: Needs) -> RowPlan:
    """All rows, whether the sum needs them or not."""
    return RowPlan(text_scale, image_scale, True, True)


@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_edited_and_repeats(host: Running, name: str) -> None:
    """The image matters, the image scale matters, and the same request gives the same pixels."""
    job = JOBS[name]
    edited = host.generate(script_args=edit(), **job)
    assert "InstructPix2Pix image: " in edited.infotexts[0]
    assert "error" not in edited.infotexts[0]
    again, other, closer = (
        pixels(host.generate(script_args=edit(**fields), **job))
        for fields in ({}, {"image": OTHER}, {"image_scale": 3.0})
    )
    assert np.array_equal(pixels(edited), again)
    for different in (other, closer):
        assert all(not np.array_equal(a, b) for a, b in zip(pixels(edited), different, strict=True))


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "UniPC", "LCM"])
def test_every_sampler(host: Running, sampler: str) -> None:
    near, far = (
        host.latents(sampler_name=sampler, steps=3, script_args=edit(image_scale=scale)) for scale in (1.2, 2.4)
    )
    assert torch.isfinite(near).all()
    assert spread(near, far) > 1e-3


@pytest.mark.parametrize(("text", "image", "rows"), [(3.0, 1.5, 3), (3.0, 1.0, 2), (1.5, 1.5, 2), (1.0, 1.0, 1)])
@pytest.mark.parametrize("slices", [False, True])
def test_short_cuts_run_fewer_rows_and_change_nothing(
    host: Running, monkeypatch: pytest.MonkeyPatch, text: float, image: float, rows: int, slices: bool
) -> None:
    job: dict[str, Any] = {
        "batch_size": 2,
        "override_settings": {"batch_cond_uncond": not slices},
        "script_args": edit(image_scale=image, text_scale=text),
    }
    with unet_runs() as runs:
        short = host.latents(**job)
    assert sum(runs) == 3 * 2 * rows
    assert not slices or max(runs) == 2, "no slice is larger than the host's own"
    monkeypatch.setattr(formulas, "plan", whole)
    with unet_runs() as runs:
        full = host.latents(**job)
    assert sum(runs) == 3 * 2 * 3
    assert spread(short, full) < 1e-5


@pytest.mark.parametrize("prompt", ["a circle AND a red square :0.5", "a circle :0.4 AND a red square :0.6"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_short_cuts_are_exact_under_and(
    host: Running, monkeypatch: pytest.MonkeyPatch, prompt: str, scale: float
) -> None:
    job: dict[str, Any] = {"prompt": prompt, "script_args": edit(image_scale=scale, text_scale=scale)}
    short = host.latents(**job)
    monkeypatch.setattr(formulas, "plan", whole)
    assert spread(short, host.latents(**job)) < 1e-5


def test_slices_are_the_same_sum(host: Running) -> None:
    jobs: list[dict[str, Any]] = [JOBS["AND"], JOBS["long prompt"], {"batch_size": 2}]
    for job in jobs:
        at_once, sliced = (
            host.latents(**job, script_args=edit(), override_settings={"batch_cond_uncond": batched})
            for batched in (True, False)
        )
        assert spread(at_once, sliced) < 1e-4


def test_outside_of_the_interval_one_row_is_enough(host: Running) -> None:
    with unet_runs() as runs:
        host.generate(steps=6, script_args=edit(start=0.34, end=0.67))
    assert runs == [1, 1, 3, 3, 1, 1]


def test_a_schedule_is_followed(host: Running) -> None:
    """From 4 to 1 in three steps: the last one needs no e(0, 0)."""
    with unet_runs() as runs:
        host.generate(script_args=edit(image_scale=4.0, image_schedule="linear", image_end_scale=1.0))
    assert runs == [3, 3, 2]


def test_skipped_uncond_rows(host: Running) -> None:
    job: dict[str, Any] = {"s_min_uncond": 4.0, "steps": 6, "override_settings": {"s_min_uncond_all": True}}
    with unet_runs() as runs:
        edited = host.generate(script_args=edit(), **job)
    assert set(runs) == {1, 3}
    assert "NGMS: 4" in edited.infotexts[0]
    with unet_runs() as runs:
        host.generate(script_args=edit(), steps=4, override_settings={"skip_early_cond": 0.5})
    assert runs == [1, 1, 1, 3]


def test_the_model_may_be_loaded_anew_in_the_middle_of_a_call(host: Running) -> None:
    """As the WebUI does it when its refiner takes over: the denoiser forgets its inner model and makes another."""
    from modules import script_callbacks

    usual = host.latents(script_args=edit())
    script_callbacks.on_cfg_denoiser(lambda params: params.denoiser.update_inner_model())
    with unet_runs() as runs:
        renewed = host.latents(script_args=edit())
    assert runs == [3, 3, 3]
    assert spread(renewed, usual) == 0


def test_img2img_is_the_hosts_own_at_its_settings(host: Running) -> None:
    """The host's own way with three rows works in img2img: ours gives its image, latents to rounding."""
    for job in (IMG2IMG, {**IMG2IMG, "sampler_name": "DDIM", "mask": HALF_MASK, "inpainting_fill": 1, "batch_size": 2}):
        own = host.latents("img2img", image_cfg_scale=1.7, **job)
        ours = host.latents("img2img", script_args=edit(image=None, image_scale=1.7), **job)
        assert spread(ours, own) < 1e-4


def test_img2img_with_a_picture_of_its_own(host: Running) -> None:
    own, given, same = (
        host.latents("img2img", script_args=edit(image=image), **IMG2IMG)
        for image in (None, PICTURE, encoded(picture(7)))
    )
    assert spread(own, given) > 1e-3
    assert spread(own, same) < 1e-5


def test_img2img_with_latent_resize(host: Running) -> None:
    """The real host's own way ends with an error here: its image has another size than the latents."""
    job = {**IMG2IMG, "init_images": [picture(7, 96, 32)], "resize_mode": 3}
    near, far = (host.latents("img2img", script_args=edit(image=None, image_scale=s), **job) for s in (1.2, 2.4))
    assert spread(near, far) > 1e-3


def test_only_the_masked_part_changes(host: Running) -> None:
    job = {**IMG2IMG, "mask": HALF_MASK, "inpainting_fill": 1, "inpaint_full_res": False, "mask_blur": 0}
    near, far = (host.latents("img2img", script_args=edit(image=None, image_scale=s), **job) for s in (1.2, 2.4))
    changed = (near - far).abs().amax((0, 1, 2))
    assert changed[4:].min() > 0
    assert changed[:4].max() == 0


def test_several_pictures_take_turns(host: Running) -> None:
    pair = host.generate(batch_size=2, n_iter=2, script_args=edit(image=[PICTURE, OTHER, PICTURE]))
    alone = [
        pixels(host.generate(seed=1 + i, script_args=edit(image=image)))[0]
        for i, image in enumerate([PICTURE, OTHER, PICTURE, PICTURE])
    ]
    for one, other in zip(pixels(pair), alone, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1  # other batch sizes round differently


def test_the_second_pass_sees_what_it_should(host: Running) -> None:
    def second(**fields: Any) -> torch.Tensor:
        return host.latents(script_args=edit(**fields), **HIRES)

    usual, first_pass = second(), second(hires_source="first pass")
    assert spread(usual, first_pass) > 1e-3
    assert spread(usual, second(hires_image_scale=3.0)) > 1e-3
    assert spread(usual, second(hires_text_scale=5.0)) > 1e-3
    assert spread(usual, second(hires_image_scale=1.5, hires_text_scale=3.0)) == 0


def test_without_a_picture_it_draws_from_the_words_alone(host: Running) -> None:
    """The real host cannot use such a checkpoint in txt2img at all."""
    job = host.generate(script_args=edit(image=None, image_scale=1.0))
    assert np.array_equal(pixels(job), pixels(host.generate()))
    assert "no image to edit" in job.comments


def test_off_means_off(host: Running) -> None:
    for kind, job in (("txt2img", {}), ("img2img", {**IMG2IMG, "image_cfg_scale": 1.7})):
        before = host.generate(kind, **job)
        host.generate(kind, script_args=edit(), **job)
        after = host.generate(kind, script_args={"instructpix2pix": [{"enabled": False, "image": PICTURE}]}, **job)
        assert np.array_equal(pixels(before), pixels(after))
        assert before.infotexts == after.infotexts


def test_an_exception_in_the_middle_ends_the_method_and_leaves_nothing_behind(
    host: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules import shared

    before = pixels(host.generate(script_args=edit()))

    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("broken in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(formulas, "base", broken)
        (infotext,) = host.generate(script_args=edit()).infotexts
    assert "InstructPix2Pix error: An internal error; " in infotext
    assert "InstructPix2Pix image scale" not in infotext
    unet = shared.sd_model.model.diffusion_model
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unet.modules())
    assert np.array_equal(before, pixels(host.generate(script_args=edit())))
    with monkeypatch.context() as patch:  # a host that takes the model for inpainting cannot go on without the method
        patch.setattr(formulas, "base", broken)
        patch.setattr(
            "standalone.host.jobs.job.txt2img_image_conditioning", lambda _, x, *__: x.new_zeros(len(x), 5, 1, 1)
        )
        with pytest.raises(UserError, match="An internal error"):
            host.generate(script_args=edit())


def test_the_latents_of_the_picture_can_be_scaled(host: Running) -> None:
    """For models in the manner of CosXL-Edit; an SD1 model is known to take them unscaled."""
    auto, unscaled, scaled = (
        host.latents(script_args=edit(latents=latents)) for latents in ("auto", "unscaled", "scaled")
    )
    assert spread(auto, unscaled) == 0
    assert spread(auto, scaled) > 1e-4


def test_sdxl_with_eight_channels(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> None:
    """Conditioning of two parts, and an autoencoder that gives scaled latents: the image's are not."""
    host = start_host(checkpoints("sdxl", in_channels=8), extension_dirs=[REPO])
    for job in ({"sampler_name": "DDIM", "width": 96}, HIRES):
        near, far = (host.latents(script_args=edit(image_scale=scale), **job) for scale in (1.2, 2.4))
        assert spread(near, far) > 1e-3
    own = host.latents("img2img", image_cfg_scale=1.7, **IMG2IMG)
    ours = host.latents("img2img", script_args=edit(image=None, image_scale=1.7), **IMG2IMG)
    uploaded = host.latents("img2img", script_args=edit(image=encoded(picture(7)), image_scale=1.7), **IMG2IMG)
    assert spread(ours, own) < 1e-4
    assert spread(uploaded, own) < 1e-4


def test_a_checkpoint_that_sees_no_picture_is_named(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path]
) -> None:
    host = start_host(checkpoints("sd1"), extension_dirs=[REPO])
    plain, job = host.generate(), host.generate(script_args=edit())
    assert np.array_equal(pixels(plain), pixels(job))
    assert "8 input channels" in job.comments and "merge-instruct" in job.comments
    assert "InstructPix2Pix error: " in job.infotexts[0]
    assert "image scale" not in job.infotexts[0]
