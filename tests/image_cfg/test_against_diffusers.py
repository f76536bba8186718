"""The same weights, noise, scales and steps in diffusers' InstructPix2Pix pipeline give the same latents."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

from tests.fabric.small_model import picture
from tests.standalone.conftest import Running

from .jobs import edit, encoded, spread

STEPS = 5
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


class SameSigmas(EulerDiscreteScheduler):
    """diffusers' Euler on the host's sigmas, which interpolate in another way between timesteps."""

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, **kwargs: Any) -> None:
        from modules import shared
        from standalone.engine.denoiser import SigmaDenoiser

        super().set_timesteps(sigmas=SigmaDenoiser(shared.sd_model).get_sigmas(STEPS).tolist(), device=device)

    @property
    def init_noise_sigma(self) -> Any:
        return self.sigmas.max()  # as the host scales its noise; diffusers' own adds one in quadrature


class SameTimesteps(DDIMScheduler):
    """diffusers' DDIM without the last of its timesteps, which the WebUI leaves out."""

    def set_timesteps(self, num_inference_steps: Any = None, device: Any = None, **kwargs: Any) -> None:
        super().set_timesteps(num_inference_steps, device=device)
        made: Any = self
        made.timesteps = made.timesteps[:-1]


def ddim() -> DDIMScheduler:
    return SameTimesteps(**BETAS, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False, clip_sample=False)


SCHEDULERS = {"DDIM": ddim, "Euler": lambda: SameSigmas(**BETAS)}


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_diffusers_gives_the_same_latents(host: Running, sampler: str, size: tuple[int, int]) -> None:
    from modules import rng, shared

    width, height = size
    source = picture(9, width, height)
    ours = host.latents(
        sampler_name=sampler,
        steps=STEPS,
        width=width,
        height=height,
        cfg_scale=7.5,
        script_args=edit(image=encoded(source), image_scale=1.6),
    )
    model = shared.sd_model
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=model.first_stage_model,
        text_encoder=model.cond_stage_model.transformer,
        tokenizer=None,
        unet=model.model.diffusion_model,
        scheduler=SCHEDULERS[sampler](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = rng.ImageRNG((4, height // 8, width // 8), [1]).next()
    theirs = pipeline(
        image=source,
        prompt_embeds=model.get_learned_conditioning(["a red circle"]),
        negative_prompt_embeds=model.get_learned_conditioning(["grey"]),
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        image_guidance_scale=1.6,
        output_type="latent",
    ).images
    assert spread(ours, torch.as_tensor(theirs)) < 1e-4
