"""The variance that a UNet of a pixel cascade learns: its variational bound (Nichol and Dhariwal 2021, arXiv
2102.09672)."""

from __future__ import annotations

import torch
from torch import Tensor

RANGED, DIRECT = "learned_range", "learned"
KINDS = (RANGED, DIRECT)
"""The scheduler's `variance_type`: the output is a place between the smallest and largest log variance, or is it."""


def variance_bound(
    out: Tensor, off: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, parameterization: str, kind: str = RANGED
) -> Tensor:
    """What each number adds to the bound, (B, C, H, W), in nats: how far the model's step back is from the true one.

    out: (B, C, H, W), the half of the UNet's output that is the variance. off: prediction minus target, of the same
    shape; it gets no gradient, so the bound teaches the variance alone. timesteps: (B,). alphas_cumprod: (T,).
    parameterization: "eps" or "v". The first timestep, whose term is a likelihood, takes the second one's variance.
    """
    kept = alphas_cumprod.double()
    before = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    betas = 1 - kept / before
    posterior = betas * (1 - before) / (1 - kept)
    posterior[0] = posterior[1]
    # how far the posterior's mean moves with the prediction
    shift = betas * (before / (1 - kept)).sqrt()
    if parameterization == "eps":
        shift = shift / kept.sqrt()
    rows = timesteps.to(kept.device)
    least, most, shift = (
        part[rows].float().view(-1, 1, 1, 1).to(out.device) for part in (posterior.log(), betas.log(), shift)
    )
    log_variance = out.float()
    if kind == RANGED:
        share = (log_variance + 1) / 2
        log_variance = share * most + (1 - share) * least
    apart = (shift * off.detach().float()).square()
    return 0.5 * (log_variance - least - 1 + (least - log_variance).exp() + apart * (-log_variance).exp())
