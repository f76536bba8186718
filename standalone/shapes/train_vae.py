"""Train the autoencoder of `shapes`: `python -m standalone.shapes.train_vae --out DIR`.

Afterwards each latent channel is shifted and scaled to mean 0 and standard deviation 1 / 0.18215 by folding that into
the 1x1 convolutions around the latent, so that the diffusion model sees unit variance, as in SD1.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from lib_methods.safetensors import write_tensors
from standalone.shapes import networks
from standalone.shapes.networks import MatrixOptimizer
from standalone.shapes.world import random_scene, render

KL_WEIGHT = 1e-4
DRAWN_WEIGHT = 3.0


def pictures(rng: np.random.Generator, count: int) -> torch.Tensor:
    """`count` training images in [-1, 1], shape (count, 3, 64, 64); one in twelve recoloured, so that other images
    decode too."""
    batch = np.stack([render(random_scene(rng), rng) for _ in range(count)]).astype(np.float32) / 127.5 - 1
    for i in range(0, count, 12):
        mix = rng.normal(0, 0.6, (3, 3)) + np.eye(3)
        batch[i] = np.clip(batch[i] @ mix + rng.uniform(-0.3, 0.3, 3), -1, 1)
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()


def normalise_latents(model: AutoencoderKL, sample: torch.Tensor) -> None:
    """Fold a shift and scale per channel into `quant_conv` and `post_quant_conv`; what the model encodes and decodes
    stays the same."""
    with torch.no_grad():
        mean = model.encode(sample).latent_dist.mean
        shift, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3)) * networks.SCALE_FACTOR
        quant, post = model.quant_conv, model.post_quant_conv
        channels = len(shift)
        quant.weight[:channels] /= spread[:, None, None, None]
        quant.bias[:channels] = (quant.bias[:channels] - shift) / spread
        quant.bias[channels:] -= 2 * spread.log()  # the second half holds log variances
        post.bias += post.weight[:, :, 0, 0] @ shift
        post.weight *= spread[None, :, None, None]


def train(out: Path, minutes: float, batch: int, rate: float, decoder_only: bool = False, seed: int = 0) -> None:
    """Train and write `vae.safetensors` (diffusers key names) and `vae_log.jsonl` into `out`; resumes an earlier
    `vae_raw`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = networks.vae()
    raw = out / ("vae.safetensors" if decoder_only else "vae_raw.safetensors")
    if raw.exists():
        model.load_state_dict(load_file(raw))
    if decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    optimizer = MatrixOptimizer([model], rate, rate / 4)
    started = time.monotonic()
    with (out / "vae_log.jsonl").open("a") as log:
        step, share = 0, 0.0
        while share < 1:
            share = (time.monotonic() - started) / (minutes * 60)
            if step % 100 == 0:
                stock = pictures(rng, 64 * 8)
            target = stock[torch.from_numpy(rng.integers(0, len(stock), batch))]
            with torch.autocast("cpu", torch.bfloat16):
                posterior = model.encode(target).latent_dist
                rebuilt = model.decode(posterior.sample()).sample
            difference = rebuilt.float() - target
            # most of an image is background, learnt quickly, so objects weigh more (corners show the background)
            drawn = (target - target[..., :1, :1]).abs().amax(1, keepdim=True) > 0.05
            weight = 1 + DRAWN_WEIGHT * torch.nn.functional.max_pool2d(drawn.float(), 3, 1, 1)
            kl = posterior.kl().float().mean() / (target.shape[2] * target.shape[3] // 16)
            loss = ((difference.abs() + difference.pow(2)) * weight).mean() + KL_WEIGHT * kl
            loss.backward()
            optimizer.step(min(1, (step + 1) / 50) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1, share)))))
            if step % 50 == 0:
                entry = {"step": step, "l1": round(difference.abs().mean().item(), 5), "kl": round(kl.item(), 3)}
                print(entry, f"{time.monotonic() - started:.0f} s", flush=True)
                log.write(json.dumps(entry) + "\n")
                log.flush()
            if step % 200 == 199:
                _save(model, raw)
            step += 1
    model.eval()
    _save(model, raw)
    if decoder_only:
        return
    normalise_latents(model, pictures(np.random.default_rng(seed + 1), 512))
    _save(model, out / "vae.safetensors")


def _save(model: AutoencoderKL, path: Path) -> None:
    write_tensors(path, model.state_dict())


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--minutes", type=float, default=30)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--rate", type=float, default=4e-3)
    arguments.add_argument("--decoder-only", action="store_true", help="keep the latents as they are")
    options = arguments.parse_args()
    train(options.out, options.minutes, options.batch, options.rate, options.decoder_only)
