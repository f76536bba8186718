"""Train text encoder and UNet of `shapes` together: `python -m standalone.shapes.train --out DIR --minutes 60`.

You can stop the run at any time; it resumes from the last state (`state.pt`, written by ourselves and read
with `weights_only`). It streams: every `REFRESH` steps a part of the images is replaced by new ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_methods.safetensors import write_tensors
from standalone.shapes import networks
from standalone.shapes.networks import MatrixOptimizer, tokenize
from standalone.shapes.world import UNIT, Scene, caption, random_named, random_scene, render

STOCK = 16_000  # encoded images held at a time
REFRESH = 200  # steps between refreshes
FRESH = 512  # images replaced at a refresh
BATCH = 32
NO_CAPTION = 0.1  # share of captions dropped, for classifier-free guidance
SNR_CAP = 5.0  # min-SNR weighting (Hang et al. 2023, arXiv 2303.09556), gamma
# The error of the clean latent counts at least this much at any noise level. Where the objects stand is decided in the
# noisiest steps, which the plain noise loss weighs by their SNR, that is hardly at all: 6,000 steps of it learned every
# word but those for places.
SNR_FLOOR = 0.2
SAVE_EVERY = 500


class Stock:
    """Encoded images with their scenes: sampled at random, replaced a few at a time."""

    def __init__(self, vae: AutoencoderKL, rng: np.random.Generator, size: int) -> None:
        self.vae, self.rng, self.next = vae, rng, 0
        self.scenes: list[Scene] = []
        self.latents = torch.empty(size, 8, UNIT // 8, UNIT // 8)
        while len(self.scenes) < size:
            self._draw(min(FRESH, size - len(self.scenes)))

    def _draw(self, count: int) -> None:
        scenes = [random_scene(self.rng) for _ in range(count)]
        pixels = (
            torch.from_numpy(np.stack([render(s, self.rng) for s in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        with torch.no_grad():
            moments = torch.cat([self.vae.encode(part).latent_dist.parameters for part in pixels.split(64)])
        for i, scene in enumerate(scenes):
            place = (self.next + i) % len(self.latents)
            self.latents[place] = moments[i]
            if place < len(self.scenes):
                self.scenes[place] = scene
            else:
                self.scenes.append(scene)
        self.next = (self.next + count) % len(self.latents)

    def refresh(self) -> None:
        self._draw(FRESH)

    def batch(self, count: int, noise: torch.Generator) -> tuple[Tensor, list[str]]:
        """Latents of unit variance, shape (count, 4, 8, 8), and a caption for each that names a random part of the
        scene."""
        chosen = self.rng.integers(0, len(self.scenes), count)
        mean, log_variance = self.latents[torch.from_numpy(chosen)].chunk(2, dim=1)
        drawn = torch.randn(mean.shape, generator=noise)
        latents = (mean + drawn * (0.5 * log_variance.clamp(-30, 20)).exp()) * networks.SCALE_FACTOR
        captions = [
            "" if self.rng.random() < NO_CAPTION else caption(self.scenes[i], random_named(self.rng), self.rng)
            for i in chosen
        ]
        return latents, captions


class Trainer:
    """The two networks, their averaged copies, and everything needed to resume."""

    def __init__(
        self, out: Path, batch: int, rate: float, minutes: float, start: Path | None = None, seed: int = 0
    ) -> None:
        self.out, self.batch, self.minutes = out, batch, minutes
        torch.manual_seed(seed)
        self.unet, self.text = networks.unet(), networks.text_encoder()
        if start is not None:
            self._start_from(start)
        self.average = nn.ModuleList([copy.deepcopy(self.unet), copy.deepcopy(self.text)]).requires_grad_(False)
        self.optimizer = MatrixOptimizer([self.unet, self.text], rate, rate / 2)
        alphas = networks.noise_schedule().alphas_cumprod
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas)
        self.weight = snr.clamp(SNR_FLOOR, SNR_CAP) / snr
        self.step, self.spent, self.seed = 0, 0.0, seed
        if (out / "state.pt").exists():
            self._load()

    def _start_from(self, checkpoint: Path) -> None:
        """Take the weights of an exported checkpoint, its autoencoder included."""
        from standalone.engine.checkpoint import load_checkpoint, match_text_names

        model = load_checkpoint(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        self.unet.load_state_dict(model.model.diffusion_model.state_dict())
        encoder = model.cond_stage_model.transformer
        self.text.load_state_dict(match_text_names(self.text, encoder.state_dict()))
        self.out.mkdir(parents=True, exist_ok=True)
        write_tensors(self.out / "vae.safetensors", model.first_stage_model.state_dict())

    def _load(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent = state["step"], state["spent"]

    def save(self) -> None:
        """Write the whole state, so that a stop at any moment leaves the old or the new one."""
        state = {
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
        }
        torch.save(state, self.out / "state.pt.new")
        os.replace(self.out / "state.pt.new", self.out / "state.pt")

    def _share_of_rate(self) -> float:
        """Warm-up over 200 steps, then half a cosine over the time that the whole training has."""
        done = min(1.0, self.spent / (self.minutes * 60))
        return min(1.0, (self.step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def train_step(self, stock: Stock, generator: torch.Generator) -> float:
        """One step; returns the weighted loss."""
        latents, captions = stock.batch(self.batch, generator)
        # stratified: every batch covers the whole range of noise levels
        share = (torch.arange(self.batch) + torch.rand(self.batch, generator=generator)) / self.batch
        times = (share * 1000).long().clamp(max=999)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.signal[times].view(-1, 1, 1, 1) * latents + self.noise[times].view(-1, 1, 1, 1) * noise
        context = self.text(tokenize(captions)).last_hidden_state
        predicted = self.unet(noisy, times, context).sample
        loss = ((predicted - noise).pow(2).mean((1, 2, 3)) * self.weight[times]).mean()
        loss.backward()
        self.optimizer.step(self._share_of_rate())
        self.step += 1
        decay = min(0.999, 1 - 1 / (1 + self.step / 5))
        pairs = zip(self.average.parameters(), [*self.unet.parameters(), *self.text.parameters()], strict=True)
        with torch.no_grad():
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - decay)
        return loss.item()

    def run(self) -> None:
        """Train until the time is over, counting what earlier runs spent."""
        vae = networks.vae().eval()
        vae.load_state_dict(load_file(self.out / "vae.safetensors"))
        rng = np.random.default_rng((self.seed, self.step))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        stock = Stock(vae, rng, STOCK)
        losses: list[float] = []
        with (self.out / "train_log.jsonl").open("a") as log:
            while self.spent < self.minutes * 60:
                started = time.monotonic()
                losses.append(self.train_step(stock, generator))
                self.spent += time.monotonic() - started
                if self.step % REFRESH == 0:
                    entry = {"step": self.step, "loss": round(float(np.mean(losses)), 5), "snr_floor": SNR_FLOOR}
                    print(entry, f"{self.spent:.0f} s", flush=True)
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    losses = []
                    stock.refresh()
                if self.step % SAVE_EVERY == 0:
                    self.save()
        self.save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="length of training in steps, over all runs")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="an exported checkpoint to go on from, where there is no state")
    options = parser.parse_args()
    Trainer(options.out, options.batch, options.rate, options.minutes, options.start).run()
