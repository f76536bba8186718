"""An image scale for every position: the mask on its way to the latents, the sum, its short cuts, the inpaint tab."""

from __future__ import annotations

from contextlib import closing
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.denoiser import Needs
from lib_methods.image_cfg import formulas
from lib_methods.image_cfg.settings import CONTROLS, ImageCfgSettings
from lib_methods.pictures import fit as masks
from lib_methods.pictures.fit import FITS, fit
from tests.fabric.small_model import picture
from tests.image_cfg.jobs import edit, spread, unet_runs
from tests.shared.jobs import pixels
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

HIRES: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
IMG2IMG: dict[str, Any] = {"denoising_strength": 0.7, "steps": 4}


def grey(values: Any, side: int = 8) -> Image.Image:
    """A grey image of squares of `side` pixels, one a value."""
    return Image.fromarray(np.kron(np.asarray(values, np.uint8), np.ones((side, side), np.uint8)))


RIGHT = grey([[0] * 4 + [255] * 4] * 8)
WHITE, BLACK = grey([[255]], 64), grey([[0]], 64)


def masked(mask: Image.Image, black: float = 1.5, white: float = 3.0, **fields: Any) -> dict[str, list[Any]]:
    return edit(mask=encoded(mask), image_scale=black, mask_image_scale=white, **fields)


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The image scale of every denoiser call that computes all rows."""
    seen: list[Any] = []
    original = formulas.base

    def watched(image: torch.Tensor, empty: torch.Tensor, image_scale: Any) -> torch.Tensor:
        seen.append(image_scale)
        return original(image, empty, image_scale)

    monkeypatch.setattr(formulas, "base", watched)
    return seen


@given(black=st.floats(0, 10), white=st.floats(0, 10), text=st.floats(0, 30), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_every_position_follows_the_published_sum(black: float, white: float, text: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    full, image, empty = torch.randn(3, 2, 4, 3, 5, generator=generator, dtype=torch.float64)
    share = torch.randint(0, 256, (1, 1, 3, 5), generator=generator).double() / 255
    plan = formulas.plan(text, formulas.region_scale(black, white, share), Needs())
    wanted = torch.empty_like(full)
    for y in range(3):
        for x in range(5):
            scale = black + float(share[0, 0, y, x]) * (white - black)
            here = (..., y, x)
            wanted[here] = empty[here] + scale * (image[here] - empty[here]) + text * (full[here] - image[here])
    if plan.with_picture and plan.without_picture:
        given_ = formulas.base(image, empty, plan.image_scale) + text * (full - image)
        torch.testing.assert_close(given_, wanted, rtol=0, atol=1e-9)
    else:
        assert black == white


@given(scale=st.floats(0, 10))
def test_one_scale_everywhere_is_the_scalar_form(scale: float) -> None:
    image, empty = torch.randn(2, 1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    everywhere = torch.full((1, 1, 3, 5), scale)
    torch.testing.assert_close(formulas.base(image, empty, everywhere), formulas.base(image, empty, scale))
    assert formulas.region_scale(scale, scale, torch.rand(1, 1, 3, 5)) == scale


def test_black_white_and_grey() -> None:
    shares = masks.on_latents(grey([[0, 255], [51, 102]]), 2, 2, 8, "crop")
    assert isinstance(shares, torch.Tensor)
    torch.testing.assert_close(shares[0, 0], torch.tensor([[0.0, 1.0], [0.2, 0.4]]))
    torch.testing.assert_close(formulas.region_scale(1.0, 6.0, shares), torch.tensor([[[[1.0, 6.0], [2.0, 3.0]]]]))
    assert masks.on_latents(grey([[255]], 40), 5, 3, 8, "pad") == 1.0
    assert masks.on_latents(grey([[0]], 40), 5, 3, 8, "crop") == 0.0
    assert masks.on_latents(grey([[51]], 40), 5, 3, 8, "stretch") == pytest.approx(0.2)


def test_a_position_takes_the_mean_of_its_pixels() -> None:
    values = np.random.default_rng(2).integers(0, 256, (16, 24), np.uint8)
    shares = masks.on_latents(Image.fromarray(values), 2, 3, 8, "stretch")
    wanted = values.reshape(2, 8, 3, 8).mean((1, 3)) / 255
    np.testing.assert_allclose(np.asarray(shares)[0, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", [(128, 64), (64, 128), (40, 40)])
def test_the_mask_lies_where_the_picture_lies(how: str, size: tuple[int, int]) -> None:
    """A black and white image, used as image and as mask; an image's fitting sharpens its edges."""
    values = np.zeros(size[::-1], np.uint8)
    values[: size[1] // 4, :] = values[:, size[0] * 3 // 8 : size[0] * 3 // 4] = 255
    shares = masks.on_latents(Image.fromarray(values), 8, 8, 8, how)
    fitted = np.asarray(fit(Image.fromarray(values), 64, 64, how), float)[..., 0].reshape(8, 8, 8, 8).mean((1, 3)) / 255
    np.testing.assert_allclose(np.asarray(shares)[0, 0], fitted, atol=0.06)


def test_both_scales_follow_the_schedule_and_the_interval() -> None:
    chosen = ImageCfgSettings(
        image_scale=3.0, mask_image_scale=2.0, image_schedule="linear", image_end_scale=1.0, start=0.2, end=0.7
    )
    assert [chosen.mask_scale_at(step, 10) for step in range(2, 7)] == [2.0, 1.75, 1.5, 1.25, 1.0]
    assert {chosen.mask_scale_at(step, 10) for step in (0, 1, 7, 9)} == {1.0}


@pytest.mark.parametrize("job", [{}, {"batch_size": 2, "prompt": "a circle AND a red square :0.5"}, {"width": 128}])
def test_each_half_has_its_scale(host: Running, monkeypatch: pytest.MonkeyPatch, job: dict[str, Any]) -> None:
    ours = host.latents(script_args=masked(RIGHT, fit="stretch"), **job)
    both = [host.latents(script_args=edit(image_scale=scale, fit="stretch"), **job) for scale in (1.5, 3.0)]
    assert all(spread(ours, one) > 1e-3 for one in both)

    def plain(image: torch.Tensor, empty: torch.Tensor, _: Any) -> torch.Tensor:
        middle = image.shape[-1] // 2
        halves = (slice(0, middle), 1.5), (slice(middle, None), 3.0)
        return torch.cat([empty[..., x] + s * (image[..., x] - empty[..., x]) for x, s in halves], -1)

    monkeypatch.setattr(formulas, "base", plain)
    assert spread(ours, host.latents(script_args=masked(RIGHT, fit="stretch"), **job)) < 1e-5
    sliced = host.latents(
        script_args=masked(RIGHT, fit="stretch"), override_settings={"batch_cond_uncond": False}, **job
    )
    assert spread(ours, sliced) < 1e-4


def test_a_mask_of_one_colour_is_the_one_scale(host: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = (host.latents(script_args=edit(image_scale=scale)) for scale in (1.5, 3.0))
    assert torch.equal(host.latents(script_args=masked(BLACK)), near)
    assert torch.equal(host.latents(script_args=masked(WHITE)), far)
    monkeypatch.setattr(masks, "_ROUNDING", -1.0)  # position by position all the same
    assert spread(host.latents(script_args=masked(BLACK)), near) < 1e-5
    assert spread(host.latents(script_args=masked(WHITE)), far) < 1e-5


@pytest.mark.parametrize(
    ("mask", "black", "white", "text", "rows"),
    [
        (RIGHT, 1.5, 3.0, 3.0, 3),
        (RIGHT, 1.0, 3.0, 3.0, 3),
        (RIGHT, 1.0, 1.0, 3.0, 2),
        (RIGHT, 1.5, 1.5, 1.5, 2),
        (RIGHT, 1.0, 1.0, 1.0, 1),
        (WHITE, 1.5, 1.0, 3.0, 2),
        (WHITE, 1.5, 1.0, 1.0, 1),
        (BLACK, 1.0, 3.0, 1.0, 1),
    ],
)
def test_short_cuts_only_where_every_position_has_them(
    host: Running, mask: Image.Image, black: float, white: float, text: float, rows: int
) -> None:
    with unet_runs() as runs:
        host.generate(script_args=masked(mask, black, white, text_scale=text))
    assert runs == [rows] * 3


def test_steps_that_are_not_guided_take_one_row(host: Running) -> None:
    with unet_runs() as runs:
        host.generate(steps=6, script_args=masked(RIGHT, start=0.34, end=0.67))
    assert runs == [1, 1, 3, 3, 1, 1]


def test_both_passes_of_hires_fix(host: Running, scales: list[Any]) -> None:
    host.generate(script_args=masked(RIGHT, hires_image_scale=2.0), **HIRES)
    assert {tuple(scale.shape) for scale in scales} == {(1, 1, 8, 8), (1, 1, 12, 12)}
    assert (scales[0][..., :4] == 1.5).all() and (scales[0][..., 4:] == 3).all()
    assert (scales[-1][..., :6] == 2).all() and (scales[-1][..., 6:] == 3).all()


@pytest.mark.parametrize(("mode", "how"), [(0, "stretch"), (1, "crop"), (2, "pad"), (3, "stretch")])
def test_with_the_tabs_own_picture_the_mask_is_resized_as_the_tab_does_it(
    host: Running, scales: list[Any], mode: int, how: str
) -> None:
    upright = grey([[0, 255], [0, 0], [255, 0], [255, 255]], 16)
    job = {**IMG2IMG, "init_images": [picture(7, 32, 64)], "resize_mode": mode}
    host.generate("img2img", script_args=masked(upright, image=None), **job)
    shares = masks.on_latents(upright, 8, 8, 8, how)
    torch.testing.assert_close(scales[0], 1.5 + 1.5 * shares)


def test_only_masked_cuts_the_same_part_out_of_the_mask(host: Running, scales: list[Any]) -> None:
    corner = grey([[0, 0], [0, 255]], 64)
    job = {**IMG2IMG, "init_images": [picture(7, 128, 128)], "mask": corner, "mask_blur": 0, "inpainting_fill": 1}
    whole = grey([[0] * 6 + [255] * 2] * 8, 16)  # the border runs through the middle of the corner
    host.generate(
        "img2img", inpaint_full_res=True, inpaint_full_res_padding=0, script_args=masked(whole, image=None), **job
    )
    assert (scales[0][..., :4] == 1.5).all() and (scales[0][..., 4:] == 3).all()


def test_the_tabs_mask_in_place_of_inpainting(host: Running) -> None:
    job = {**IMG2IMG, "init_images": [picture(7)]}
    painted = {**job, "mask": RIGHT, "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    uploaded = host.latents("img2img", script_args=masked(RIGHT, image=None), **job)
    fields: dict[str, Any] = {"image": None, "tab_mask": True}
    tabs = edit(image_scale=1.5, mask_image_scale=3.0, **fields)
    assert torch.equal(host.latents("img2img", script_args=tabs, **painted), uploaded)
    swapped = edit(image_scale=3.0, mask_image_scale=1.5, **fields)
    inverted = host.latents("img2img", inpainting_mask_invert=1, script_args=swapped, **painted)
    assert torch.equal(inverted, uploaded)
    alpha = Image.merge("RGBA", [BLACK, BLACK, BLACK, RIGHT])  # as a page sends what was painted
    assert torch.equal(host.latents("img2img", script_args=tabs, **{**painted, "mask": alpha}), uploaded)
    blurred = host.latents("img2img", script_args=tabs, **{**painted, "mask_blur": 8})
    assert spread(blurred, uploaded) > 1e-4


def test_the_infotext_names_the_tabs_mask(host: Running, script: ModuleType) -> None:
    from modules.infotext_utils import parse_generation_parameters

    job = {**IMG2IMG, "init_images": [picture(7)]}
    tabs = edit(image=None, mask_image_scale=3.0, tab_mask=True)
    made = host.generate("img2img", script_args=tabs, mask=RIGHT, inpaint_full_res=False, **job)
    assert "Mask blur" not in made.info
    fields = parse_generation_parameters(made.info)
    assert script.STORE.exists(fields["InstructPix2Pix mask"])
    pasted = [key(fields) for key in CONTROLS.paste_keys()]
    again = host.generate("img2img", script_args={"instructpix2pix": pasted}, **job)
    assert np.array_equal(pixels(made), pixels(again))
    assert made.info == again.info


def test_no_mask_in_the_tab_is_said(host: Running) -> None:
    job = {**IMG2IMG, "init_images": [picture(7)]}
    made = host.generate("img2img", script_args=edit(image=None, tab_mask=True), **job)
    assert "There is no mask" in made.comments
    assert np.array_equal(pixels(made), pixels(host.generate("img2img", script_args=edit(image=None), **job)))


def test_a_job_used_again_has_its_mask_back(host: Running) -> None:
    from modules.processing import process_images

    job = {**IMG2IMG, "init_images": [picture(7)], "mask": RIGHT, "inpaint_full_res": False}
    tabs = edit(image=None, mask_image_scale=3.0, tab_mask=True)
    with closing(host.make("img2img", script_args=tabs, **job)) as p:
        first = host.host.queue.run(process_images, p)
        assert p.image_mask is None
        again = host.host.queue.run(process_images, p)
    assert "no mask" not in again.comments
    assert np.array_equal(pixels(first), pixels(again))
