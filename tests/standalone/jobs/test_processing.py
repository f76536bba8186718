"""Every kind of job works, at any size; its result says what was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_methods.errors import UserError
from tests.standalone.pictures import SAMPLERS, half_mask, picture, pixels

# -- kinds of jobs


@pytest.mark.parametrize(("width", "height"), [(16, 8), (64, 72), (104, 56), (40, 128)])
def test_any_size_divisible_by_8(sd1: Any, width: int, height: int) -> None:
    for kind, fields in (("txt2img", {"enable_hr": True, "hr_scale": 1.5}), ("img2img", {"init_images": [picture()]})):
        image = sd1.generate(kind, width=width, height=height, steps=1, **fields).images[0]
        scale = 1.5 if kind == "txt2img" else 1
        assert image.size == (int(width * scale) // 8 * 8, int(height * scale) // 8 * 8)


@pytest.mark.parametrize(
    "upscaler",
    [
        "Latent",
        "Latent (nearest)",
        "Latent (bicubic)",
        "Latent (nearest-exact)",
        "Latent (antialiased)",
        "Latent (bicubic antialiased)",
        "Nearest",
        "Lanczos",
        "None",
    ],
)
def test_hires_fix(sd1: Any, upscaler: str) -> None:
    fields = {"enable_hr": True, "hr_upscaler": upscaler, "hr_scale": 1.5, "hr_second_pass_steps": 2, "batch_size": 2}
    weak = sd1.generate(denoising_strength=0.05, **fields)
    strong = sd1.generate(denoising_strength=0.9, **fields)
    assert [image.size for image in weak.images] == [(96, 96)] * 2
    assert f"Hires upscaler: {upscaler}" in weak.info
    assert "Hires steps: 2" in weak.info
    assert np.abs(pixels(weak.images[0]) - pixels(strong.images[0])).max() > 0


def test_hires_fix_without_denoising_is_the_first_pass_enlarged(sd1: Any) -> None:
    first = sd1.latents(seed=4)
    second = sd1.latents(seed=4, enable_hr=True, hr_upscaler="Latent (nearest)", hr_scale=2.0, denoising_strength=0.0)
    enlarged = torch.nn.functional.interpolate(first, scale_factor=2, mode="nearest")
    # the last step, at the smallest sigma, is still made
    assert float((second - enlarged).abs().mean()) < 0.2 * float(first.std())


def test_hires_fix_has_its_own_prompt_sampler_and_scale(sd1: Any) -> None:
    fields = {"enable_hr": True, "hr_upscaler": "Latent", "hr_scale": 1.5, "denoising_strength": 0.8}
    plain = sd1.latents(**fields)
    for change in (
        {"hr_prompt": "a blue square"},
        {"hr_negative_prompt": "red"},
        {"hr_sampler_name": "DDIM"},
        {"hr_cfg": 1.0},
        {"hr_scheduler": "Exponential"},
    ):
        assert not torch.equal(sd1.latents(**fields, **change), plain), change
    result = sd1.generate(**fields, hr_prompt="a blue square, big", hr_sampler_name="DDIM", hr_cfg=1.0)
    assert 'Hires prompt: "a blue square, big"' in result.info
    assert "Hires sampler: DDIM" in result.info
    assert "Hires CFG scale: 1.0" in result.info


@pytest.mark.parametrize(
    ("x", "y", "size"), [(96, 0, (96, 96)), (0, 128, (128, 128)), (96, 128, (96, 128)), (128, 96, (128, 96))]
)
def test_hires_fix_to_a_size(sd1: Any, x: int, y: int, size: tuple[int, int]) -> None:
    for upscaler in ("Latent", "Lanczos"):
        result = sd1.generate(enable_hr=True, hr_upscaler=upscaler, hr_resize_x=x, hr_resize_y=y, steps=1)
        assert result.images[0].size == size
        assert f"Hires resize: {x}x{y}" in result.info


def test_img2img_strength(sd1: Any) -> None:
    source = picture()
    runs = {
        s: pixels(sd1.generate("img2img", init_images=[source], denoising_strength=s, steps=8).images[0])
        for s in (0.0, 0.3, 1.0)
    }
    from modules import processing

    image = torch.from_numpy(np.moveaxis(np.asarray(source, dtype=np.float32) / 255, 2, 0))[None]
    through = processing.decode_first_stage(sd1.host.model, processing.images_tensor_to_samples(image))[0]
    base = (through.clamp(-1, 1).numpy() * 0.5 + 0.5) * 255
    distances = [float(np.abs(np.moveaxis(base, 0, 2) - run).mean()) for run in runs.values()]
    assert distances == sorted(distances), "the stronger, the farther from the picture"


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(100, 40), (33, 90)])
def test_img2img_resizes_any_picture(sd1: Any, mode: int, size: tuple[int, int]) -> None:
    image = sd1.generate("img2img", init_images=[picture(size)], resize_mode=mode, steps=1, width=72, height=64).images[
        0
    ]
    assert image.size == (72, 64)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("fill", [0, 1, 2, 3])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_inpainting_leaves_the_rest_alone(sd1: Any, full: bool, fill: int, sampler: str) -> None:
    source = picture()
    result = sd1.generate(
        "img2img",
        init_images=[source],
        mask=half_mask(),
        mask_blur=2,
        inpainting_fill=fill,
        inpaint_full_res=full,
        inpaint_full_res_padding=4,
        denoising_strength=0.9,
        sampler_name=sampler,
        batch_size=2,
        width=64,
        height=64,
    )
    for image in result.images:
        assert image.size == (64, 64)
        assert np.array_equal(pixels(image)[:, 42:], pixels(source)[:, 42:]), "what is not masked is the picture's own"
        assert not np.array_equal(pixels(image)[:, :20], pixels(source)[:, :20])
    inverted = sd1.generate(
        "img2img",
        init_images=[source],
        mask=half_mask(),
        mask_blur=2,
        inpainting_mask_invert=1,
        inpaint_full_res=full,
        inpainting_fill=fill,
        denoising_strength=0.9,
    )
    assert np.array_equal(pixels(inverted.images[0])[:, :20], pixels(source)[:, :20])
    assert "Mask mode: Inpaint not masked" in inverted.info


def test_an_empty_mask_works_on_the_whole_picture(sd1: Any) -> None:
    result = sd1.generate("img2img", init_images=[picture()], mask=Image.new("L", (64, 64)), inpaint_full_res=True)
    assert "mask is empty" in result.comments
    assert result.images[0].size == (64, 64)


@pytest.mark.parametrize("channels", [8, 9])
def test_models_that_see_an_image_besides(start_host: Any, checkpoints: Any, channels: int) -> None:
    running = start_host(checkpoints("sd1", in_channels=channels), extension_dirs=[])
    txt2img: list[dict[str, Any]] = [
        {},
        {"enable_hr": True, "hr_upscaler": "Latent", "hr_resize_x": 96, "hr_resize_y": 128},
        {"enable_hr": True, "hr_upscaler": "Lanczos"},
    ]
    mask = half_mask()
    img2img: list[dict[str, Any]] = [
        {},
        {"mask": mask},
        {"mask": mask, "inpaint_full_res": False},
        {"image_cfg_scale": 1.5},
    ]
    for sampler in ("Euler", "DDIM"):
        for fields in txt2img:
            assert running.generate(sampler_name=sampler, **fields).images
        for fields in img2img:
            result = running.generate("img2img", init_images=[picture()], sampler_name=sampler, batch_size=2, **fields)
            assert len(result.images) == 2
    if channels == 8:
        result = running.generate("img2img", init_images=[picture()], image_cfg_scale=1.5)
        assert "Image CFG scale: 1.5" in result.info
        with pytest.raises(ValueError, match="AND"):
            running.generate("img2img", init_images=[picture()], image_cfg_scale=1.5, prompt="a AND b")


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_the_other_families(start_host: Any, checkpoints: Any, family: str) -> None:
    running = start_host(checkpoints(family), extension_dirs=[])
    for sampler in SAMPLERS:
        result = running.generate(
            sampler_name=sampler, prompt="a (cat:1.2) AND a [dog:cow:0.5]", negative_prompt="", batch_size=2
        )
        assert len({image.tobytes() for image in result.images}) == 2
    result = running.generate(enable_hr=True, prompt=" ".join(["cat"] * 90), steps=2)
    assert result.images[0].size == (128, 128)
    assert running.generate("img2img", init_images=[picture()], mask=half_mask()).images
    running.generate(
        override_settings={"CLIP_stop_at_last_layers": 2, "pad_cond_uncond": True}, prompt=" ".join(["cat"] * 90)
    )


# -- results


def test_the_result_as_json(sd1: Any) -> None:
    result = sd1.generate(batch_size=2, do_not_save_grid=False)
    said = json.loads(result.js())
    assert said["index_of_first_image"] == 1
    assert len(said["infotexts"]) == len(result.images) == 3
    assert said["all_seeds"] == [1, 2]
    assert said["sd_model_hash"] == sd1.host.model.sd_model_hash
    assert result.images[0].size == (128, 64)


def test_files_carry_their_infotext(sd1: Any, tmp_path: Path) -> None:
    from modules import images

    result = sd1.generate(do_not_save_samples=False, batch_size=2, outpath_samples=str(tmp_path))
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 2
    for image, file, text in zip(result.images, files, result.infotexts):
        assert Path(image.already_saved_as) == file
        with Image.open(file) as saved:
            assert images.read_info_from_image(saved)[0] == text
    sd1.generate(do_not_save_samples=False, outpath_samples=str(tmp_path))
    assert len(list(tmp_path.glob("*.png"))) == 3, "nothing is written over"


def test_override_settings_hold_for_one_job(sd1: Any) -> None:
    from modules import shared

    result = sd1.generate(
        override_settings={"CLIP_stop_at_last_layers": "2", "nonsense": 1, "outdir_samples": "/elsewhere"}
    )
    assert shared.opts.CLIP_stop_at_last_layers == 1
    assert shared.opts.outdir_samples == ""
    assert "nonsense" in result.comments
    with pytest.raises(UserError, match="CLIP_stop_at_last_layers"):
        sd1.generate(override_settings={"CLIP_stop_at_last_layers": "many"})
    assert shared.opts.CLIP_stop_at_last_layers == 1
