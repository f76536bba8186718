"""The refiner: another checkpoint that takes over for the last part of a sampling."""

from __future__ import annotations

from typing import Any

import torch

from lib_methods.errors import UserError
from standalone.engine.lora import apply_loras, loaded_loras
from standalone.host import checkpoints, devices, shared
from standalone.host.shared import opts


def share_done(cfg_denoiser: Any, sigma: torch.Tensor) -> float:
    """How much of the way from the last timestep to the first is behind, 0 to 1; `sigma` (B,) as the denoiser has it.

    Images of one batch at different noise levels count as the noisiest of them.
    """
    inner, level = cfg_denoiser.inner_model, sigma.max()
    if hasattr(inner, "sigmas"):
        total, timestep = len(inner.sigmas), int((inner.sigmas.to(level) - level).abs().argmin())
    else:  # in alpha space it is the timestep already
        total, timestep = len(shared.sd_model.alphas_cumprod), int(level)
    return (total - 1 - timestep) / total


def pass_wants_refiner(p: Any) -> bool:
    """Whether the pass that is being sampled is one that the settings want refined; without Hires. fix all are."""
    if not getattr(p, "enable_hr", False) or opts.hires_fix_refiner_pass == "both passes":
        return True
    return bool(p.is_hr_pass) == (opts.hires_fix_refiner_pass == "second pass")


def _picture_channels(sd_model: Any) -> int:
    """How many channels of an image the UNet takes beside the latents."""
    config = sd_model.model.diffusion_model.config
    return int(config.in_channels - config.out_channels)


def apply_refiner(cfg_denoiser: Any, sigma: torch.Tensor | None = None) -> bool:
    """Loads the refiner with its own conds when its part of the sampling begins. Whether it was loaded now."""
    p = cfg_denoiser.p
    info, switch_at = p.refiner_checkpoint_info, p.refiner_switch_at
    if info is None or shared.sd_model.sd_checkpoint_info is info or not pass_wants_refiner(p):
        return False
    by_steps = opts.refiner_switch_by_sample_steps or sigma is None
    done = (
        cfg_denoiser.step / cfg_denoiser.total_steps if sigma is None or by_steps else share_done(cfg_denoiser, sigma)
    )
    if switch_at is not None and done < switch_at:
        return False

    params = p.extra_generation_params
    params["Refiner switch at"] = switch_at
    if by_steps:
        params["Refiner switch by sampling steps"] = True
    if getattr(p, "enable_hr", False) and opts.hires_fix_refiner_pass != "second pass":
        params["Hires refiner"] = opts.hires_fix_refiner_pass
    loras, channels = loaded_loras(shared.sd_model), _picture_channels(shared.sd_model)
    with checkpoints.SkipWritingToConfig():
        checkpoints.reload_model_weights(info=info)
    if _picture_channels(shared.sd_model) not in (0, channels):
        raise UserError(
            f"{info.name_for_extra} cannot be the refiner: it is an inpainting or editing checkpoint, and the one that "
            "begins is not. Choose a plain checkpoint as the refiner."
        )
    params["Refiner"] = info.short_title  # with the hash, which is known now
    for problem in apply_loras(shared.sd_model, loras):
        p.comment(problem)
    devices.torch_gc()
    p.setup_conds()
    cfg_denoiser.update_inner_model()
    return True
