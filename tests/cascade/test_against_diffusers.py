"""With the same weights, seeds and scheduler, every stage agrees with diffusers' own pipeline to 1e-4."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
)
from torch import Tensor

from lib_methods.cascade.folder import Stage, read_stage
from lib_methods.cascade.parts import Parts, load
from lib_methods.cascade.settings import CascadeSettings
from lib_methods.cascade.solvers import Solver
from lib_methods.cascade.stages import Start, Texts, generators, pixel_stage
from lib_methods.cascade.text import Encoder, embeddings
from lib_methods.cascade.upscaler import decoded, latent_stage

CPU = torch.device("cpu")
PROMPT, NEGATIVE = "A photo of a red cat", "blue dog"
SEEDS = [11, 12]
Folders = tuple[Path, Path, Path]


@cache
def stage_of(folder: Path) -> tuple[Stage, Any]:
    stage = read_stage(folder)
    return stage, load(stage.unet, CPU, torch.float32)


@cache
def theirs(kind: Any, folder: Path) -> Any:
    """Their pipeline with the folder's weights."""
    needless = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    options = {} if kind is StableDiffusionUpscalePipeline else {**needless, "requires_safety_checker": False}
    found = kind.from_pretrained(folder, local_files_only=True, **options)
    found.set_progress_bar_config(disable=True)
    return found


def texts(folders: Folders, out: Path, number: int = 1) -> Texts:
    """For two images, from our own encoder."""
    part = read_stage(folders[0 if number < 3 else 2]).text
    assert part is not None
    found = embeddings(Encoder(part, CPU, "fp32"), [PROMPT, NEGATIVE], out, Parts())
    return Texts(*(found[prompt].expand(len(SEEDS), -1, -1) for prompt in (PROMPT, NEGATIVE)))


def asked(folders: Folders, number: int = 1, **more: Any) -> dict[str, Any]:
    """What their pipelines are asked for: the prompts as text in stage I, where they have the encoder."""
    chance = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    if number == 2:
        first = theirs(IFPipeline, folders[0])
        embedded = first.encode_prompt(PROMPT, negative_prompt=NEGATIVE)
        both = {"prompt_embeds": embedded[0], "negative_prompt_embeds": embedded[1]}
        both = {name: value.expand(len(SEEDS), -1, -1) for name, value in both.items()}
    else:
        both = {"prompt": [PROMPT] * len(SEEDS), "negative_prompt": [NEGATIVE] * len(SEEDS)}
    if number < 3:
        more["clean_caption"] = False
    return {**both, "generator": chance, "output_type": "pt", **more}


def picture(side: int, seed: int = 3) -> Tensor:
    """Smooth random images in [-1, 1], one for each seed."""
    coarse = torch.rand(len(SEEDS), 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")


def mask(side: int) -> Tensor:
    found = torch.zeros(1, 1, side, side)
    found[..., side // 4 :, : side // 2] = 1
    return found


def close(ours: Tensor, other: Tensor) -> None:
    assert ours.shape == other.shape
    torch.testing.assert_close(ours.float(), other.float(), atol=1e-4, rtol=0)
    assert (other[0] - other[1]).abs().mean() > 0.01  # two seeds, two images


@pytest.mark.parametrize("steps", [4, 30])
def test_stage_one(folders: Folders, tmp_path: Path, steps: int) -> None:
    other = theirs(IFPipeline, folders[0])(**asked(folders, num_inference_steps=steps, guidance_scale=7.0)).images
    stage, unet = stage_of(folders[0])
    settings = CascadeSettings(prompt=PROMPT, steps=steps)
    close(pixel_stage(unet, stage, settings, texts(folders, tmp_path), generators(SEEDS), (16, 16)), other)


def test_stage_one_with_a_published_list_and_another_shape(folders: Folders, tmp_path: Path) -> None:
    from diffusers.pipelines.deepfloyd_if import fast27_timesteps

    call = asked(folders, timesteps=fast27_timesteps, guidance_scale=3.0, height=16, width=24)
    other = theirs(IFPipeline, folders[0])(**call).images
    stage, unet = stage_of(folders[0])
    settings = CascadeSettings(prompt=PROMPT, timesteps="fast27", guidance=3.0)
    close(pixel_stage(unet, stage, settings, texts(folders, tmp_path), generators(SEEDS), (16, 24)), other)


@pytest.mark.parametrize(
    "changes", [{"prediction_type": "v_prediction"}, {"variance_type": "fixed_small"}, {"thresholding": False}]
)
def test_stage_one_with_another_schedule(folders: Folders, tmp_path: Path, changes: dict[str, Any]) -> None:
    stage, unet = stage_of(folders[0])
    stage = replace(stage, scheduler={**stage.scheduler, **changes})
    pipeline = theirs(IFPipeline, folders[0])
    before, pipeline.scheduler = pipeline.scheduler, DDPMScheduler.from_config(stage.scheduler)
    try:
        other = pipeline(**asked(folders, num_inference_steps=4, guidance_scale=7.0)).images
    finally:
        pipeline.scheduler = before
    settings = CascadeSettings(prompt=PROMPT, steps=4)
    close(pixel_stage(unet, stage, settings, texts(folders, tmp_path), generators(SEEDS), (16, 16)), other)


def test_stage_one_without_guidance(folders: Folders, tmp_path: Path) -> None:
    other = theirs(IFPipeline, folders[0])(**asked(folders, num_inference_steps=3, guidance_scale=1.0)).images
    stage, unet = stage_of(folders[0])
    both = texts(folders, tmp_path)
    settings = CascadeSettings(prompt=PROMPT, steps=3, guidance=1.0)
    close(pixel_stage(unet, stage, settings, Texts(both.positive), generators(SEEDS), (16, 16)), other)


def test_stage_one_from_an_image(folders: Folders, tmp_path: Path) -> None:
    image = picture(16)
    call = asked(folders, num_inference_steps=6, guidance_scale=7.0, strength=0.7, image=image)
    other = theirs(IFImg2ImgPipeline, folders[0])(**call).images
    stage, unet = stage_of(folders[0])
    settings, start = CascadeSettings(prompt=PROMPT, steps=6), Start(image, 0.7)
    close(pixel_stage(unet, stage, settings, texts(folders, tmp_path), generators(SEEDS), (16, 16), start=start), other)


def test_stage_one_with_a_mask(folders: Folders, tmp_path: Path) -> None:
    image, area = picture(16), mask(16)
    call = asked(folders, num_inference_steps=6, guidance_scale=7.0, strength=0.7, image=image, mask_image=area.clone())
    other = theirs(IFInpaintingPipeline, folders[0])(**call).images
    stage, unet = stage_of(folders[0])
    settings, start = CascadeSettings(prompt=PROMPT, steps=6), Start(image, 0.7, area)
    made = pixel_stage(unet, stage, settings, texts(folders, tmp_path), generators(SEEDS), (16, 16), start=start)
    close(made, other)
    assert torch.equal(made * (1 - area), image * (1 - area))


def test_stage_two(folders: Folders, tmp_path: Path) -> None:
    small = picture(16)
    call = asked(folders, 2, num_inference_steps=5, guidance_scale=4.0, noise_level=250, image=small)
    other = theirs(IFSuperResolutionPipeline, folders[1])(**call).images
    stage, unet = stage_of(folders[1])
    settings = CascadeSettings(prompt=PROMPT, stage2_steps=5)
    close(pixel_stage(unet, stage, settings, texts(folders, tmp_path), generators(SEEDS), (32, 32), small=small), other)


def test_stage_two_from_an_image_and_with_a_mask(folders: Folders, tmp_path: Path) -> None:
    small, image, area = picture(16), picture(32, seed=4), mask(32)
    stage, unet = stage_of(folders[1])
    settings = CascadeSettings(prompt=PROMPT, stage2_steps=5, stage2_noise_level=100)
    common = {"num_inference_steps": 5, "guidance_scale": 4.0, "noise_level": 100, "strength": 0.8, "image": small}
    common["original_image"] = image
    for kind, own in ((IFImg2ImgSuperResolutionPipeline, None), (IFInpaintingSuperResolutionPipeline, area)):
        more = {} if own is None else {"mask_image": own.clone()}
        other = theirs(kind, folders[1])(**asked(folders, 2, **common, **more)).images
        start, told = Start(image, 0.8, own), texts(folders, tmp_path)
        made = pixel_stage(unet, stage, settings, told, generators(SEEDS), (32, 32), small=small, start=start)
        close(made, other)


def test_stage_three(folders: Folders, tmp_path: Path) -> None:
    images, (stage, unet) = picture(32), stage_of(folders[2])
    settings = CascadeSettings(prompt=PROMPT, stage3_steps=4, stage3_noise_level=20)
    call = asked(folders, 3, num_inference_steps=4, guidance_scale=9.0, noise_level=20, image=images)
    # theirs reads images as numbers in [0, 1], and brings them to [-1, 1] itself
    call["image"] = images / 2 + 0.5
    other = theirs(StableDiffusionUpscalePipeline, folders[2])(**call).images
    told = texts(folders, tmp_path, 3)
    latents = latent_stage(unet, stage, settings.stage(3), told, generators(SEEDS), images)
    assert stage.vae is not None
    made = decoded(load(stage.vae, CPU, torch.float32), latents)
    assert made.shape == (2, 3, 128, 128)
    torch.testing.assert_close((made / 2 + 0.5).clamp(0, 1), other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "kind"), [("DDIM", DDIMScheduler), ("DPM++ 2M", DPMSolverMultistepScheduler)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_other_solvers(name: str, kind: type, prediction: str) -> None:
    config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction, "clip_sample": False}
    scheduler: Any = kind(**{key: value for key, value in config.items() if kind is DDIMScheduler or key[:4] != "clip"})
    scheduler.set_timesteps(6)
    steps = [int(step) for step in scheduler.timesteps]
    solver = Solver(name, config, lambda images: images, steps)
    ours = other = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for step in steps:
        out = torch.tanh(ours * 0.5)
        ours = solver.step(out, step, ours, generators([1]))
        other = scheduler.step(torch.tanh(other * 0.5), step, other).prev_sample
    torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)


def test_ddim_follows_its_thresholded_image() -> None:
    """As diffusers' does when it is told to use the clipped output for the noise, too."""
    config = {"beta_schedule": "squaredcos_cap_v2"}
    scheduler = DDIMScheduler(**config, clip_sample=True)
    scheduler.set_timesteps(6)
    steps = [int(step) for step in scheduler.timesteps]
    solver = Solver("DDIM", config, lambda images: images.clamp(-1, 1), steps)
    ours = other = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for step in steps:
        ours = solver.step(torch.tanh(ours) * 0.3, step, ours, generators([1]))
        other = scheduler.step(torch.tanh(other) * 0.3, step, other, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)
