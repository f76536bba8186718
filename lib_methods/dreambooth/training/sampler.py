"""Generates images with the model that is trained, and the class images of a run.

DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), algorithm 2, on timesteps evenly spaced from the last one, with the
step to sigma 0 at the end. Each image's noise comes from its own seed, whatever it is generated with.

Class images keep the class from turning into the subject. Each folder of them is named by a hash of model, prompt, size
and settings, and runs with the same ones share it. Image n has seed n, so more images can be added and an interrupted
generation resumed. A missing image is generated in its original batch: alone it would differ in its last bits.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lib_methods.dreambooth.model.model import Parts, TextEmbedding, TrainingModel
from lib_methods.dreambooth.photos.image import Size
from lib_methods.dreambooth.photos.subjects import caption_of
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.plan import TrainingPlan
from lib_methods.errors import Cancelled, UserError, out_of_memory
from lib_methods.files import write_whole
from lib_methods.pictures.fit import to_image

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
        kind, limit = model.parameterization, model.limit
        clean.append(solve(predict, noise[rows], model.alphas_cumprod, kind, steps, told, limit))
    return torch.cat(clean)


def solve(
    predict: Callable[[Tensor, int], Tensor],
    latents: Tensor,
    alphas_cumprod: Tensor,
    parameterization: str,
    steps: int,
    each_step: Callable[[int, int], None] | None = None,
    limit: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Takes noise (B, C, h, w) in alpha space to clean latents. predict: eps or v for latents and a timestep. limit:
    brings every prediction of the clean latents into range."""
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
        clean = clean if limit is None else limit(clean)
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
        out = model.predict(doubled, times, text)[:, : latents.shape[1]]
        if uncond is None:
            return out
        wanted, plain = out.chunk(2)
        return plain + cfg_scale * (wanted - plain)

    return predict


def generation_parts(
    plan: TrainingPlan, model: TrainingModel, follow: Callable[[], object] | None = None, *, movable: bool = True
) -> Parts:
    """How the model is there for generating, as the plan has it. follow, movable: see `Parts`.

    It computes as in training, but for SDXL's VAE, which overflows in fp16.
    """
    dtype = None if plan.autocast == torch.float16 and model.family == "sdxl" else plan.autocast
    return Parts(model, one_at_a_time=plan.one_part_at_a_time, dtype=dtype, follow=follow, movable=movable)


# -- class images

CFG_SCALE = 7.0
MANIFEST = "manifest.json"
_VERSION = 1  # counts up when the same words would give other images


def deal_sizes(sizes: Sequence[Size], count: int) -> list[Size]:
    """`count` sizes for class images in the proportions of the photos' `sizes`, as a batch has one size.

    Each comes at least once, so that there may come out more than `count`. The first so many are in these proportions
    too. Nothing for nothing.
    """
    if count < 1 or not sizes:
        return []
    kinds = sorted(set(sizes))
    dealt = dict.fromkeys(kinds, 0)
    order: list[Size] = []
    for _ in range(max(count, len(kinds))):
        # a size that has none yet comes first, then whoever is furthest behind its share
        size = min(kinds, key=lambda kind: (dealt[kind] > 0, (dealt[kind] + 1) / sizes.count(kind), kind))
        dealt[size] += 1
        order.append(size)
    return order


@dataclass(frozen=True)
class _ClassImage:
    path: Path
    size: Size
    seed: int


def class_images(
    model: TrainingModel,
    settings: TrainingSettings,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
    *,
    sizes: Sequence[Size] | None = None,
    batch: int = 4,
    parts: Parts | None = None,
) -> list[Path]:
    """The class's PNG files, generated where they are missing or broken, in subfolders of `folder`, one for each size.

    sizes: width and height in pixels of each image; None for `settings.class_images` squares. batch: images of one
    size generated at once, fewer where memory runs out. parts: how the model's parts come to the device. progress:
    told the images done and all of them. Raises Cancelled between two batches when cancelled, and
    UserError when the disk is full or the model returns numbers that are not finite; what was finished before is then
    kept.
    """
    if sizes is None:
        side = settings.resolution or model.resolution
        sizes = [(side, side)] * settings.class_images
    parts = parts or Parts(model)
    told = {size: _told(model, settings, size) for size in sizes}
    wanted = _class_images(folder, sizes, {size: _key(values) for size, values in told.items()})
    missing = {image for image in wanted if not _is_whole(image)}
    batches = [group for size in told for group in _batches([p for p in wanted if p.size == size], batch)]
    progress(len(wanted) - len(missing), len(wanted))
    for place, size in {image.path.parent: image.size for image in missing}.items():
        write_whole(place / MANIFEST, json.dumps(told[size], indent=2, ensure_ascii=False).encode("utf-8"))
    prompt: Prompts | None = None
    while missing:
        if cancelled():
            raise Cancelled("Stopped while generating class images. Finished images are kept.")
        now = batches[0]
        if missing.isdisjoint(now):
            del batches[0]
            continue
        try:
            if prompt is None:  # once for all, as the text encoders' way to the device and back takes long
                prompt = embed_prompts(model, [caption_of(None, settings)], cfg_scale=CFG_SCALE, parts=parts)
            made = generate(
                model,
                prompt[torch.zeros(len(now), dtype=torch.long)],
                size=now[0].size,
                steps=settings.class_steps,
                cfg_scale=CFG_SCALE,
                seeds=[image.seed for image in now],
                parts=parts,
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if parts.spare():
                continue
            if len(now) == 1:
                raise UserError("Out of memory: not even one class image fits. Choose a smaller resolution.") from error
            batches = [part for group in batches for part in _batches(group, len(now) // 2)]
            continue
        for image, pixels in zip(now, made):
            if image in missing:
                data = io.BytesIO()
                to_image(pixels).save(data, "PNG")
                write_whole(image.path, data.getvalue(), "The class image")
        missing.difference_update(now)
        progress(len(wanted) - len(missing), len(wanted))
    return [image.path for image in wanted]


def _batches(wanted: Sequence[_ClassImage], count: int) -> list[Sequence[_ClassImage]]:
    return [wanted[start : start + count] for start in range(0, len(wanted), count)]


def _class_images(folder: Path, sizes: Sequence[Size], keys: dict[Size, str]) -> list[_ClassImage]:
    """The images in the order of their sizes, those of each size numbered by themselves."""
    counts = dict.fromkeys(sizes, 0)
    wanted = []
    for size in sizes:
        number = counts[size]
        counts[size] += 1
        wanted.append(_ClassImage(folder / keys[size] / f"class-{number:05d}.png", size, number))
    return wanted


def _told(model: TrainingModel, settings: TrainingSettings, size: Size) -> dict[str, object]:
    """All that the images depend on, but for their number."""
    width, height = size
    return {
        "version": _VERSION,
        "model": model.name,
        "sha256": model.sha256,
        "parameterization": model.parameterization,
        "prompt": caption_of(None, settings),
        "steps": settings.class_steps,
        "cfg_scale": CFG_SCALE,
        **({"side": width} if width == height else {"size": [width, height]}),
        "solver": SOLVER,
    }


def _key(told: dict[str, object]) -> str:
    """The name of a set's folder. The model's file may be renamed."""
    kept = {name: value for name, value in told.items() if name != "model"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _is_whole(wanted: _ClassImage) -> bool:
    """Whether there is an image that can be read to its end and has the right size."""
    try:
        with Image.open(wanted.path) as image:
            image.load()
            return image.format == "PNG" and image.size == wanted.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
