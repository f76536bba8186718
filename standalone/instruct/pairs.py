"""Generates pairs of images from the same noise with a plain checkpoint, by Prompt-to-Prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from standalone.engine.denoiser import SigmaDenoiser
from standalone.engine.text import CHUNK, END, START
from standalone.instruct.prompt_to_prompt import SharedAttention, align


@dataclass(frozen=True)
class Drawing:
    """How pairs are drawn. size: side in pixels, a multiple of 8. shares: the share of steps with shared attention is
    drawn evenly between these two (0.1 to 0.9 in InstructPix2Pix)."""

    steps: int = 20
    cfg_scale: float = 5.0
    size: int = 64
    shares: tuple[float, float] = (0.1, 0.9)


def token_places(model: Any, before: str, after: str) -> list[int]:
    """`align` on the 77 places of the conditioning; longer prompts are cut as their conditioning is.

    Start and padding are aligned as well, since much of the attention rests there.
    """

    def framed(text: str) -> list[int]:
        tokens = model.cond_stage_model.tokenize([text])[0][:CHUNK]
        return [START, *tokens, *[END] * (CHUNK + 1 - len(tokens))]

    return align(framed(before), framed(after))


def draw_pairs(
    model: Any, before: str, after: str, seeds: Sequence[int], shares: Sequence[float], drawing: Drawing
) -> np.ndarray:
    """Pairs of pictures, uint8 of shape (pairs, 2, size, size, 3).

    Both pictures of pair i start from the noise of `seeds[i]`, and share attention for the first `shares[i]` of the
    steps. Euler's method without noise, which is DDIM in other variables; classifier-free guidance against the empty
    prompt.
    """
    count, device = len(seeds), model.device
    side = drawing.size // 8
    with torch.no_grad():
        texts = model.get_learned_conditioning([before, after, ""])[:, : CHUNK + 2]
        context = texts.repeat_interleave(torch.tensor([count, count, 2 * count], device=device), dim=0)
        noise = torch.cat([torch.randn(1, 4, side, side, generator=_generator(seed)) for seed in seeds]).to(device)
        denoiser = SigmaDenoiser(model).to(device)
        sigmas = denoiser.get_sigmas(drawing.steps)
        sharing = SharedAttention(model.model.diffusion_model, [token_places(model, before, after)] * count)
        x = torch.cat([noise, noise]) * sigmas[0]
        with sharing():
            for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:])):
                sharing.active = torch.tensor([step < round(share * drawing.steps) for share in shares])
                rows = torch.cat([x, x])
                denoised = denoiser(rows, sigma.expand(len(rows)), cond={"c_crossattn": [context]})
                cond, uncond = denoised.chunk(2)
                guided = uncond + drawing.cfg_scale * (cond - uncond)
                x = x + (x - guided) / sigma * (following - sigma)
        pictures = to_pictures(model.decode_first_stage(x))
    return np.stack([pictures[:count], pictures[count:]], axis=1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def to_pictures(images: Tensor) -> np.ndarray:
    """uint8 (B, H, W, 3) of images (B, 3, H, W) in [-1, 1]."""
    clipped = (images.float().clamp(-1, 1) + 1) * 127.5
    return clipped.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
