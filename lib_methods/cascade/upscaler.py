"""The third stage: Stable Diffusion's x4 upscaler, which works in latents and sees the image beside them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from lib_methods.cascade.augmentation import noised
from lib_methods.cascade.folder import Stage
from lib_methods.cascade.settings import StageSettings
from lib_methods.cascade.stages import Texts, Tick, draw
from lib_methods.checks import SettingsError
from lib_methods.errors import CheckpointError
from lib_methods.guidance import combine


def scheduler_of(stage: Stage) -> Any:
    """The scheduler that the folder names. Raises CheckpointError for one that diffusers does not have."""
    name = str(stage.scheduler.get("_class_name", "DDIMScheduler"))
    known = {entry.name for entry in diffusers.schedulers.scheduling_utils.KarrasDiffusionSchedulers}
    if name not in known:
        raise CheckpointError(
            f"scheduler_config.json in {stage.folder.name} names the scheduler {name[:60]!r}, which is not known."
        )
    return getattr(diffusers, name).from_config(dict(stage.scheduler))


@torch.no_grad()
def latent_stage(
    unet: nn.Module,
    stage: Stage,
    asked: StageSettings,
    texts: Texts,
    chance: Sequence[torch.Generator],
    images: Tensor,
    *,
    device: torch.device | None = None,
    tick: Tick = lambda done, total: None,
) -> Tensor:
    """The latents of images (B, 3, H, W) in [-1, 1]: (B, C, H, W), for `decoded`."""
    first = next(unet.parameters())
    device, dtype = device or first.device, first.dtype
    low = diffusers.DDPMScheduler.from_config(dict(stage.noising or {}))
    most = min(len(low.alphas_cumprod), int(stage.unet.config.get("num_class_embeds") or 1000)) - 1
    if asked.noise_level > most:
        raise SettingsError(f"{stage.folder.name} knows noise levels up to {most}, not {asked.noise_level}.")
    noise = draw(images.shape[1:], chance).to(device)
    seen = noised(images.to(device).float(), noise, low.alphas_cumprod[asked.noise_level])
    scheduler = scheduler_of(stage)
    scheduler.set_timesteps(asked.steps, device=device)
    latents = draw((stage.channels, *images.shape[2:]), chance).to(device) * scheduler.init_noise_sigma
    rows = texts.rows.to(device, dtype)
    times = len(rows) // len(latents)
    labels = torch.full((len(rows),), asked.noise_level, device=device)
    # some add noise at every step
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": list(chance)} if takes_noise else {}
    for done, timestep in enumerate(scheduler.timesteps, 1):
        shown = torch.cat([scheduler.scale_model_input(latents, timestep), seen], dim=1)
        out = unet(
            torch.cat([shown] * times).to(dtype),
            timestep,
            encoder_hidden_states=rows,
            class_labels=labels,
            return_dict=False,
        )[0].float()
        if times > 1:
            negative, positive = out.chunk(2)
            out = combine(negative, positive - negative, asked.guidance)
        latents = scheduler.step(out, timestep, latents, **options, return_dict=False)[0]
        tick(done, len(scheduler.timesteps))
    return latents


@torch.no_grad()
def decoded(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as images in about [-1, 1], one by one, as a large one takes much memory."""
    inner: Any = vae
    scale = float(inner.config.scaling_factor)
    return torch.cat([inner.decode(row[None] / scale, return_dict=False)[0] for row in latents.float()])
