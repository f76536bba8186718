"""The whole way from prompt to latents, against diffusers' own pipelines with the same weights, noise and scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from standalone.engine.text import clip_tokenizer
from tests.standalone import tiny

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
REQUEST = {
    "prompt": "a red circle on white",
    "negative_prompt": "grey, blurry",
    "cfg_scale": 4.0,
    "width": 72,
    "height": 64,
}


class DDIMAsInTheWebUI(diffusers.DDIMScheduler):
    """diffusers' DDIM without the last timestep, which the WebUI leaves out."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.timesteps: torch.Tensor = self.timesteps[:-1]


SCHEDULERS: dict[str, tuple[str, str, Callable[..., Any], int]] = {
    "Euler": ("Euler", "Uniform", lambda **k: diffusers.EulerDiscreteScheduler(**k), 4),
    "Euler Karras": ("Euler", "Karras", lambda **k: diffusers.EulerDiscreteScheduler(**k, use_karras_sigmas=True), 4),
    "Heun": ("Heun", "Automatic", lambda **k: diffusers.HeunDiscreteScheduler(**k), 4),
    "DDIM": (
        "DDIM",
        "Automatic",
        lambda **k: DDIMAsInTheWebUI(**k, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        5,
    ),
}


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_are_those_of_the_pipeline(
    start_host: Callable[..., Any], checkpoints: Callable[..., Path], family: str, name: str
) -> None:
    sampler, schedule, make, steps = SCHEDULERS[name]
    running = start_host(checkpoints(family, folder=True), extension_dirs=[])
    found = running.latents(steps=steps, sampler_name=sampler, scheduler=schedule, seed=11, **REQUEST)

    parts = tiny.build(family)
    tokenizer = clip_tokenizer()
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    pipe = diffusers.StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.texts[0],
        tokenizer=tokenizer,
        unet=parts.unet,
        scheduler=make(**BETAS, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    embeds = {}
    pad = 0 if family == "sd2" else 49407
    for key, text in (("prompt_embeds", REQUEST["prompt"]), ("negative_prompt_embeds", REQUEST["negative_prompt"])):
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            embeds[key] = parts.texts[0](input_ids=torch.tensor([ids + [pad] * (77 - len(ids))])).last_hidden_state
    expected = pipe(
        **embeds,
        num_inference_steps=steps,
        guidance_scale=REQUEST["cfg_scale"],
        width=72,
        height=64,
        latents=noise((1, 4, 8, 9), 11),
        output_type="latent",
    ).images
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)


def test_sdxl_latents_are_those_of_the_pipeline(
    start_host: Callable[..., Any], checkpoints: Callable[..., Path]
) -> None:
    running = start_host(checkpoints("sdxl", folder=True), extension_dirs=[])
    found = running.latents(steps=4, sampler_name="Euler", seed=11, **REQUEST)
    parts = tiny.build("sdxl")
    tokenizer = clip_tokenizer()
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=parts.vae,
        text_encoder=parts.texts[0],
        text_encoder_2=parts.texts[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=parts.unet,
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    embeds: dict[str, torch.Tensor] = {}
    for prefix in ("", "negative_"):
        ids = tokenizer(REQUEST[f"{prefix}prompt"])["input_ids"]
        states = []
        for text, pad in zip(parts.texts, (49407, 0)):
            with torch.no_grad():
                states.append(text(input_ids=torch.tensor([ids + [pad] * (77 - len(ids))]), output_hidden_states=True))
        embeds[f"{prefix}prompt_embeds"] = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
        embeds[f"{prefix}pooled_prompt_embeds"] = states[1].text_embeds
    expected = pipe(
        **embeds,
        num_inference_steps=4,
        guidance_scale=REQUEST["cfg_scale"],
        width=72,
        height=64,
        latents=noise((1, 4, 8, 9), 11),
        output_type="latent",
    ).images
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
