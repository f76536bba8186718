"""The same weights, noise, scales and steps in diffusers' InstructPix2Pix pipelines give the same latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

from tests.fabric.small_model import picture
from tests.image_cfg.jobs import edit, spread
from tests.shared.jobs import REPO
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

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


SCHEDULERS: dict[str, Callable[[], Any]] = {"DDIM": ddim, "Euler": lambda: SameSigmas(**BETAS)}


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


@pytest.mark.skipif(
    not hasattr(diffusers, "StableDiffusionXLInstructPix2PixPipeline"),
    reason="this version of diffusers has no StableDiffusionXLInstructPix2PixPipeline",
)
@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("latents", ["unscaled", "scaled"])
def test_diffusers_gives_the_same_latents_with_sdxl(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], sampler: str, latents: str
) -> None:
    """With the image's latents as the VAE gives them, and scaled, which diffusers calls CosXL-Edit's way."""
    host = start_host(checkpoints("sdxl", in_channels=8), extension_dirs=[REPO])
    from modules import rng, shared
    from modules.prompt_parser import SdConditioning

    width, height = 96, 64
    source = picture(9, width, height)
    ours = host.latents(
        sampler_name=sampler,
        steps=STEPS,
        width=width,
        height=height,
        cfg_scale=7.5,
        script_args=edit(image=encoded(source), image_scale=1.6, latents=latents),
    )
    model = shared.sd_model
    unet = diffusers.UNet2DConditionModel.from_config(model.model.diffusion_model.config)  # which embeds sizes itself
    unet.load_state_dict(model.model.diffusion_model.state_dict())
    vae = diffusers.AutoencoderKL.from_config(model.first_stage_model.config, scaling_factor=0.13025)  # SDXL's
    vae.load_state_dict(model.first_stage_model.state_dict())
    pipeline = diffusers.StableDiffusionXLInstructPix2PixPipeline(
        vae=vae.eval(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet.eval(),
        scheduler=SCHEDULERS[sampler](),
        add_watermarker=False,
        is_cosxl_edit=latents == "scaled",
    )
    pipeline.set_progress_bar_config(disable=True)
    words, negative = (
        model.get_learned_conditioning(SdConditioning([text], width=width, height=height))
        for text in ("a red circle", "grey")
    )
    pooled = words["vector"].shape[1] - 6 * unet.config.addition_time_embed_dim
    theirs = pipeline(
        image=source,
        width=width,
        height=height,
        prompt_embeds=words["crossattn"],
        negative_prompt_embeds=negative["crossattn"],
        pooled_prompt_embeds=words["vector"][:, :pooled],
        negative_pooled_prompt_embeds=negative["vector"][:, :pooled],
        latents=rng.ImageRNG((4, height // 8, width // 8), [1]).next(),
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        image_guidance_scale=1.6,
        output_type="latent",
    ).images
    assert spread(ours, torch.as_tensor(theirs)) < 1e-4
