"""Prompt-to-Prompt: two images of two prompts that share their attention maps (Hertz et al. 2022, arXiv 2208.01626).

The UNet sees four rows a pair: before and after with the prompt, then before and after without. While a pair shares,
the self-attention of its second image uses the map (softmax of queries and keys) of the first one in both kinds of
rows, as InstructPix2Pix did, and its cross-attention uses the first one's columns for the tokens that the two prompts
have in common or exchange one for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lib_methods.attention import SelfAttention, intercept, self_attentions
from lib_methods.attention.intercept import Original
from standalone.engine.denoiser import SigmaDenoiser
from standalone.engine.text import CHUNK, END, START


def align(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """For every token of `after` the place of its counterpart in `before`, or -1.

    Counterparts are equal tokens in the same order, and runs of as many tokens that stand in the same gap ("a red
    circle", "a blue circle").
    """
    places = [-1] * len(after)
    for what, start, end, other, last in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if what == "equal" or (what == "replace" and end - start == last - other):
            places[other:last] = range(start, end)
    return places


class SharedAttention:
    """Shares attention maps within pairs, for the pairs that are `active` at the moment.

    Rows of the UNet's input: all "before" with the prompt, all "after" with the prompt, all "before" without, all
    "after" without; `pairs` of each.

    Attributes:
        active: (pairs,) bool on the CPU; none at the start. Set it before each step.
    """

    def __init__(self, unet: nn.Module, alignment: Sequence[Sequence[int]]) -> None:
        """alignment: one list as `align` gives it for each pair, as long as the prompt's conditioning (tokens)."""
        self.pairs = len(alignment)
        self.active = torch.zeros(self.pairs, dtype=torch.bool)
        self.places = torch.tensor([list(row) for row in alignment])
        self.layers = list(self_attentions(unet))
        modules = dict(unet.named_modules())
        names = [layer.name.removesuffix("1") + "2" for layer in self.layers]
        self.cross = [SelfAttention(name, modules[name]) for name in names if name in modules]

    def __call__(self) -> AbstractContextManager[None]:
        """Within the block, the UNet shares."""

        def own(layer: SelfAttention) -> Any:
            return lambda original, hidden, *args, **kwargs: self._self(layer, original, hidden)

        def crossed(layer: SelfAttention) -> Any:
            def forward(
                original: Original, hidden: Tensor, encoder_hidden_states: Tensor, *args: Any, **kwargs: Any
            ) -> Any:
                return self._cross(layer, original, hidden, encoder_hidden_states)

            return forward

        return intercept(
            [(layer.module, own(layer)) for layer in self.layers]
            + [(layer.module, crossed(layer)) for layer in self.cross]
        )

    def _self(self, layer: SelfAttention, original: Original, hidden: Tensor) -> Any:
        if not self.active.any():
            return original(hidden)
        rows = torch.arange(4 * self.pairs).view(4, self.pairs)
        rows[1::2] = torch.where(self.active, rows[0::2], rows[1::2])
        source = rows.flatten().to(hidden.device)
        # a map is made of queries and keys alone, so theirs are taken; the values stay each row's own
        query, key = layer.project(hidden, "q")[source], layer.project(hidden, "k")[source]
        return layer.output(functional.scaled_dot_product_attention(query, key, layer.project(hidden, "v")))

    def _cross(self, layer: SelfAttention, original: Original, hidden: Tensor, context: Tensor) -> Any:
        if not self.active.any():
            return original(hidden, context)
        query, key, value = layer.project(hidden, "q"), layer.project(context, "k"), layer.project(context, "v")
        maps = (query.float() @ key.float().transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        before, after = maps[: self.pairs], maps[self.pairs : 2 * self.pairs]
        places = self.places.to(maps.device)
        wanted = places.clamp(min=0)[:, None, None, :].expand_as(after)
        shared = ((places >= 0) & self.active.to(maps.device)[:, None])[:, None, None, :]
        mixed = torch.where(shared, before.gather(-1, wanted), after)
        maps = torch.cat([before, mixed, maps[2 * self.pairs :]])
        return layer.output(maps.to(value.dtype) @ value)


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
    """Pairs of images, uint8 of shape (pairs, 2, size, size, 3).

    Both images of pair i start from the noise of `seeds[i]`, and share attention for the first `shares[i]` of the
    steps. Euler's method without noise, which is DDIM in other variables; classifier-free guidance against the empty
    prompt.
    """
    count, device = len(seeds), model.device
    side = drawing.size // 8
    with torch.no_grad():
        texts = model.get_learned_conditioning([before, after, ""])[:, : CHUNK + 2]
        context = texts.repeat_interleave(torch.tensor([count, count, 2 * count], device=device), dim=0)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        noise = torch.cat([torch.randn(1, 4, side, side, generator=generator) for generator in generators]).to(device)
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


def to_pictures(images: Tensor) -> np.ndarray:
    """uint8 (B, H, W, 3) of images (B, 3, H, W) in [-1, 1]."""
    clipped = (images.float().clamp(-1, 1) + 1) * 127.5
    return clipped.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
