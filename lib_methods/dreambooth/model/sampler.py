"""Generates images with a model that is being trained: DPM-Solver++(2M), the same for the same seed.

Lu et al. 2022 (arXiv 2211.01095), algorithm 2, on timesteps evenly spaced from the last one, with the step to sigma 0
at the end. Each image's noise comes from its own seed, whatever it is generated with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_methods.dreambooth.model.model import Parts, TextEmbedding, TrainingModel
from lib_methods.errors import UserError

SOLVER = "dpm++2m"
_SMALLEST = 2.0**-24  # a model of eps cannot start from noise without any signal: it would divide by zero


@dataclass(frozen=True)
class Prompts:
    """Prompts as the model reads them, each a row, and what guidance leads away from; None without guidance."""

    cond: TextEmbedding
    uncond: TextEmbedding | None

    def __len__(self) -> int:
        return len(self.cond.hidden)

    def __getitem__(self, rows: slice | Tensor) -> Prompts:
        return Prompts(self.cond[rows], None if self.uncond is None else self.uncond[rows])


def embed_prompts(
    model: TrainingModel, prompts: Sequence[str], *, cfg_scale: float = 7.0, parts: Parts | None = None
) -> Prompts:
    """The prompts for `generate`, and the empty one with the same number of tokens."""
    with torch.no_grad(), (parts or Parts(model)).embedding():
        if cfg_scale == 1:
            return Prompts(model.embed(prompts), None)
        both = model.embed([*prompts, ""])
    count = len(prompts)
    uncond = both[slice(count, count + 1)]
    if model.family == "sdxl":  # as it was trained, and as the WebUI does
        uncond = TextEmbedding(
            torch.zeros_like(uncond.hidden), None if uncond.pooled is None else torch.zeros_like(uncond.pooled)
        )
    return Prompts(both[slice(0, count)], TextEmbedding.cat([uncond] * count))


def generate(
    model: TrainingModel,
    prompts: Sequence[str] | Prompts,
    *,
    size: tuple[int, int],
    steps: int = 20,
    cfg_scale: float = 7.0,
    seeds: Sequence[int],
    each_step: Callable[[int, int], None] | None = None,
    at_once: int | None = None,
    parts: Parts | None = None,
) -> Tensor:
    """Images (B, 3, H, W), fp32, in [-1, 1], on the CPU, one for each prompt and seed.

    size: width and height in pixels. cfg_scale 1 takes half the time. each_step: told the
    steps done and all of them; what it raises ends it. at_once: images that the UNet sees together, None for
    all. parts: how the model's parts come to the device. Raises UserError when the model returns numbers that are
    not finite.
    """
    if len(prompts) != len(seeds) or not len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: there must be one seed for each prompt")
    width, height = size
    if width <= 0 or height <= 0 or width % model.pixels_per_latent or height % model.pixels_per_latent:
        raise UserError(f"Images of {width}x{height} cannot be generated: sides must be multiples of 8.")
    parts = parts or Parts(model)
    texts = prompts
    if not isinstance(texts, Prompts):
        texts = embed_prompts(model, texts, cfg_scale=cfg_scale, parts=parts)
    with torch.no_grad():
        # all images are denoised before the first is decoded, as each way of the UNet to the CPU and back takes long
        with parts.denoising():
            shape = (model.latent_channels, height // model.pixels_per_latent, width // model.pixels_per_latent)
            rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            noise = torch.stack(rows).to(parts.device)
            latents = _denoised(model, texts, noise, cfg_scale, steps, each_step, at_once or len(seeds))
            if not bool(torch.isfinite(latents).all()):
                raise UserError(
                    "The model returned numbers that are not finite: broken weights, or too large ones for half "
                    "precision."
                )
        with parts.decoding():
            return torch.cat([model.decode(row).float().cpu() for row in latents.split(1)])


def _denoised(
    model: TrainingModel,
    texts: Prompts,
    noise: Tensor,
    cfg_scale: float,
    steps: int,
    each_step: Callable[[int, int], None] | None,
    at_once: int,
) -> Tensor:
    """Clean latents of the noise (B, C, h, w), `at_once` rows together."""
    clean: list[Tensor] = []
    starts = range(0, len(noise), at_once)

    def told(done: int, total: int) -> None:
        if each_step is not None:
            each_step(len(clean) * total + done, len(starts) * total)

    for start in starts:
        rows = slice(start, start + at_once)
        predict = _guided(model, texts[rows], cfg_scale)
        clean.append(solve(predict, noise[rows], model.alphas_cumprod, model.parameterization, steps, told))
    return torch.cat(clean)


def solve(
    predict: Callable[[Tensor, int], Tensor],
    latents: Tensor,
    alphas_cumprod: Tensor,
    parameterization: str,
    steps: int,
    each_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Takes noise (B, C, h, w) in alpha space to clean latents. predict: eps or v for latents and a timestep."""
    kept = alphas_cumprod.double().cpu()
    if parameterization == "eps":
        kept = kept.clamp(min=_SMALLEST)
    last = len(kept) - 1
    times = torch.linspace(0, last, steps + 1, dtype=torch.float64).round().long().unique().flip(0)
    times = times[:-1] if len(times) > 1 else times
    alphas = torch.cat([kept[times].sqrt(), torch.ones(1, dtype=torch.float64)])
    sigmas = torch.cat([(1 - kept[times]).sqrt(), torch.zeros(1, dtype=torch.float64)])
    logs = alphas.log() - sigmas.log()  # half the logarithm of the signal-to-noise ratio; infinite at both ends
    before: Tensor | None = None
    for index, time in enumerate(times.tolist()):
        alpha, sigma = float(alphas[index]), float(sigmas[index])
        out = predict(latents, time)
        clean = alpha * latents - sigma * out if parameterization == "v" else (latents - sigma * out) / alpha
        final = index == len(times) - 1
        towards = clean
        if before is not None and not final:
            ratio = float((logs[index] - logs[index - 1]) / (logs[index + 1] - logs[index]))
            towards = clean + (clean - before) / (2 * ratio)
        shrink = -float(torch.expm1(logs[index] - logs[index + 1]))
        latents = float(sigmas[index + 1]) / sigma * latents + float(alphas[index + 1]) * shrink * towards
        before = clean
        if each_step is not None:
            each_step(index + 1, len(times))
    return latents


def _guided(model: TrainingModel, texts: Prompts, cfg_scale: float) -> Callable[[Tensor, int], Tensor]:
    """Classifier-free guidance: uncond + scale * (cond - uncond)."""
    cond, uncond = texts.cond, texts.uncond
    text = cond if uncond is None else TextEmbedding.cat([cond, uncond])

    def predict(latents: Tensor, time: int) -> Tensor:
        doubled = latents if uncond is None else torch.cat([latents, latents])
        times = torch.full((len(doubled),), time, device=latents.device)
        out = model.predict(doubled, times, text)
        if uncond is None:
            return out
        wanted, plain = out.chunk(2)
        return plain + cfg_scale * (wanted - plain)

    return predict
