"""Train a stage of `shapes-cascade`: `python -m standalone.shapes.train_cascade --out DIR --stage 1 --minutes 60`.

You can stop the run at any time; it resumes from the last state (`stage1.pt`, `stage2.pt`). T5 learns with stage I
for its first `TEXT_STEPS` steps and is fixed from then on; stage II takes it from stage I's state. To compare text
encoders, train stage I for equal `--steps` with `--text t5` and with `--text clip`. `--start models/shapes-cascade`
trains the released stages further, without their text encoder.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from lib_methods.cascade.variance import variance_bound
from lib_methods.dreambooth.training.loss import noised, targets
from standalone.shapes import cascade
from standalone.shapes.networks import MatrixOptimizer
from standalone.shapes.styles import CELL, SIDE, STYLES, paint_aligned, restyle, styled_caption
from standalone.shapes.train import NO_CAPTION, SNR_CAP, SNR_FLOOR
from standalone.shapes.world import ATTRIBUTES, Scene, random_named, random_scene

BATCH = {1: 16, 2: 8}
STOCK = {1: 3_000, 2: 1_000}  # images held at a time
REFRESH = 100  # steps between refreshes
FRESH = 256  # images replaced at a refresh
SAVE_EVERY = 100
TEXT_STEPS = 2_000
NO_STYLE = 0.15  # share of captions that leave the style open
# Share of stage II's small images that show the same scene in another style than the caption names, so that the
# style is the prompt's to decide.
OTHER_STYLE = 0.3
CROP, WHOLE_FROM = 64, 0.75  # stage II learns from squares of this side until this share of its time is over
# Where the objects stand is decided in the last timesteps: before, the noisy image itself shows it. Stage I learned all
# words but those for places until half of each batch was there, and captions left the place open less often.
NOISIEST, ALL_NAMED = 80, 0.5
CLEANEST = 150  # half of stage II's timesteps are below: noise that is left there makes an oil painting of a photo
VARIANCE_WEIGHT = 1.0  # of the variational bound (Nichol and Dhariwal 2021, arXiv 2102.09672)


class Stock:
    """Rendered images with their scenes and styles: sampled at random, replaced a few at a time."""

    def __init__(self, stage: int, rng: np.random.Generator, size: int) -> None:
        self.stage, self.rng, self.next = stage, rng, 0
        self.known: list[tuple[Scene, str, bool]] = []  # scene, style, whether the caption must name the style
        self.small = torch.empty(size, 3, cascade.SMALL, cascade.SMALL, dtype=torch.uint8)
        self.large = torch.empty(size if stage == 2 else 0, 3, SIDE, SIDE, dtype=torch.uint8)
        self.draw(size)

    def draw(self, count: int) -> None:
        """Replace `count` images, oldest first."""
        for _ in range(count):
            scene, style = random_scene(self.rng), STYLES[self.rng.integers(len(STYLES))]
            plain = paint_aligned(scene, self.rng)
            picture = restyle(plain, style, self.rng)
            other = self.stage == 2 and self.rng.random() < OTHER_STYLE
            source = restyle(plain, STYLES[self.rng.integers(len(STYLES))], self.rng) if other else picture
            cells = source.reshape(cascade.SMALL, CELL, cascade.SMALL, CELL, 3).mean((1, 3)).round()
            self.small[self.next] = torch.from_numpy(cells.astype(np.uint8)).permute(2, 0, 1)
            if self.stage == 2:
                self.large[self.next] = torch.from_numpy(picture).permute(2, 0, 1)
            self.known[self.next : self.next + 1] = [(scene, style, other)]
            self.next = (self.next + 1) % len(self.small)

    def batch(self, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Small and large images in [-1, 1] (large ones for stage II alone), and a caption for each that names a
        random part of the scene."""
        chosen = self.rng.integers(0, len(self.known), count)
        captions = []
        for scene, style, must in (self.known[i] for i in chosen):
            named = style if must or self.rng.random() >= NO_STYLE else None
            drop = not must and self.rng.random() < NO_CAPTION
            parts = ATTRIBUTES if self.rng.random() < ALL_NAMED else random_named(self.rng)
            captions.append("" if drop else styled_caption(scene, named, parts, self.rng))
        index = torch.from_numpy(chosen)
        large = self.large[index].float() / 127.5 - 1 if self.stage == 2 else torch.empty(0)
        return self.small[index].float() / 127.5 - 1, large, captions


class Loss:
    """The velocity's error, in stage I weighted by the SNR, and the variational bound for the variance."""

    def __init__(self, stage: int) -> None:
        self.alphas = cascade.schedule(1).alphas_cumprod
        snr = self.alphas / (1 - self.alphas)
        # the clean image's error is that of the velocity times the noise's variance
        self.weight = snr.clamp(SNR_FLOOR, SNR_CAP) * (1 - self.alphas)
        if stage == 2:  # those weights hardly count little noise, where the fine patterns of styles are decided
            self.weight = torch.ones_like(self.alphas)

    def __call__(self, predicted: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """The two losses of a prediction of shape (images, 6, height, width)."""
        velocity, variance = predicted.float().chunk(2, dim=1)
        off = velocity - targets(clean, noise, times, self.alphas, "v")
        error = (off.pow(2).mean((1, 2, 3)) * self.weight[times]).mean()
        return error, variance_bound(variance, off, times, self.alphas, "v").mean()


class Trainer:
    """A stage's UNet with T5, their averaged copies, and everything needed to resume."""

    def __init__(
        self,
        out: Path,
        stage: int,
        batch: int,
        rate: float,
        minutes: float,
        seed: int = 0,
        *,
        text: str = "t5",
        steps: int | None = None,
        start: Path | None = None,
    ) -> None:
        """text: "t5" or "clip". steps: the length of training, in place of `minutes`. start: a folder of released
        stages to begin with, in place of fresh weights."""
        self.out, self.stage, self.batch, self.minutes, self.steps = out, stage, batch, minutes, steps
        torch.manual_seed(seed)
        self.kind, self.unet, self.text = text, cascade.unet(stage), cascade.text_encoder(text)
        self.words = cascade.tokenizer() if text == "t5" else None
        self.loss, self.noising = Loss(stage), cascade.noising_schedule()
        if start:
            self.unet, self.text = released(start, stage)
        elif stage == 2:
            self.text.load_state_dict(finished_text(out))
        self.text.requires_grad_(not start and stage == 1)
        self.networks = nn.ModuleList([self.unet, self.text])
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        self.optimizer = MatrixOptimizer([self.unet, self.text], rate, rate / 2)
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.step, self.spent = (0 if start is None else TEXT_STEPS), 0.0
        self.state = out / f"stage{stage}.pt"
        if self.state.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.state, weights_only=True)
        if state.get("text", "t5") != self.kind:
            raise SystemExit(f"{self.state} was trained with another text encoder. Choose another folder for --out.")
        for name in ("networks", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.spent = state["step"], state["spent"]
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])
        if self.step >= TEXT_STEPS:
            self.text.requires_grad_(False)

    def save(self) -> None:
        """Write the whole state, so that a stop at any moment leaves the old or the new one."""
        state: dict[str, Any] = {
            name: getattr(self, name).state_dict() for name in ("networks", "average", "optimizer")
        }
        state |= {"text": self.kind, "step": self.step, "spent": self.spent, "rng": self.rng.bit_generator.state}
        self.out.mkdir(parents=True, exist_ok=True)
        torch.save(state | {"generator": self.generator.get_state()}, self.state.with_suffix(".new"))
        os.replace(self.state.with_suffix(".new"), self.state)

    @property
    def done(self) -> float:
        """The share of training that is done."""
        if self.steps is not None:
            return min(1.0, self.step / self.steps)
        return min(1.0, self.spent / (self.minutes * 60))

    def _share_of_rate(self) -> float:
        """Warm-up over 200 steps, then half a cosine over the time that the whole training has."""
        return min(1.0, (self.step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.done)))

    def _times(self) -> Tensor:
        """Timesteps: half of stage I's in the last `NOISIEST`, half of stage II's in the first `CLEANEST`; the others
        stratified over the whole range."""
        extra = self.batch // 2
        share = torch.rand(self.batch, generator=self.generator)
        times = 1000 * (torch.arange(self.batch - extra) + share[extra:]) / (self.batch - extra)
        special = 1000 - NOISIEST * share[:extra] if self.stage == 1 else CLEANEST * share[:extra]
        return torch.cat([special, times]).long().clamp(max=999)

    def train_step(self, stock: Stock) -> tuple[float, float]:
        """One step; returns the velocity's loss and the variational bound."""
        if self.stage == 1 and self.step == TEXT_STEPS:
            self.text.load_state_dict(self.average[1].state_dict())
            self.text.requires_grad_(False)
        small, large, captions = stock.batch(self.batch)
        times = self._times()
        if self.stage == 1:
            clean, big = small, small
        else:
            clean, big = large, cascade.upscaled(small)
            if self.done < WHOLE_FROM:  # at whole cells of the deepest level
                y, x = (int(16 * i) for i in self.rng.integers(0, (SIDE - CROP) // 16 + 1, 2))
                clean, big = (part[..., y : y + CROP, x : x + CROP] for part in (clean, big))
        noise = torch.randn(clean.shape, generator=self.generator)
        given, levels = noised(clean, noise, times, self.loss.alphas), None
        if self.stage == 2:
            levels = (torch.rand(self.batch, generator=self.generator).square() * 1000).long()
            big = self.noising.add_noise(big, torch.randn(big.shape, generator=self.generator), levels)
            given = torch.cat([given, big], dim=1)
        ids, mask = cascade.tokenize(self.words, captions)
        with torch.autocast("cpu", torch.bfloat16):
            context = self.text(ids, attention_mask=mask).last_hidden_state
            predicted = self.unet(given, times, context, class_labels=levels).sample
        error, bound = self.loss(predicted, clean, noise, times)
        (error + VARIANCE_WEIGHT * bound).backward()
        self.optimizer.step(self._share_of_rate())
        self.step += 1
        decay = min(0.999, 1 - 1 / (1 + self.step / 5))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.networks.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        return error.item(), bound.item()

    def run(self) -> None:
        """Train until the end, counting what earlier runs did."""
        stock = Stock(self.stage, self.rng, STOCK[self.stage])
        losses: list[tuple[float, float]] = []
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"stage{self.stage}_log.jsonl").open("a") as log:
            while self.done < 1:
                started = time.monotonic()
                losses.append(self.train_step(stock))
                if self.step % REFRESH == 0:
                    error, bound = np.mean(losses, axis=0)
                    entry = {"step": self.step, "loss": round(float(error), 5), "bound": round(float(bound), 4)}
                    entry |= {"noisiest": NOISIEST} if self.stage == 1 else {}
                    print(entry, f"{self.spent:.0f} s", flush=True)
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    losses = []
                    stock.draw(FRESH)
                self.spent += time.monotonic() - started
                if self.step % SAVE_EVERY == 0:
                    self.save()
        self.save()


def released(folder: Path, stage: int) -> tuple[UNet2DConditionModel, T5EncoderModel]:
    """The UNet of a released stage, and the text encoder, which lies with stage I, in single precision."""
    unet = UNet2DConditionModel.from_pretrained(folder / f"stage-{stage}" / "unet", torch_dtype=torch.float32)
    return unet, T5EncoderModel.from_pretrained(folder / "stage-1" / "text_encoder", dtype=torch.float32)


def finished_text(out: Path) -> dict[str, Tensor]:
    """T5's weights from stage I's state; SystemExit while it is still learning."""
    path = out / "stage1.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True) if path.exists() else {"step": 0}
    if state["step"] <= TEXT_STEPS:
        raise SystemExit(
            f"Train stage 1 for more than {TEXT_STEPS} steps first: stage 2 takes the text encoder from it."
        )
    return {name[2:]: value for name, value in state["networks"].items() if name.startswith("1.")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1)
    parser.add_argument("--minutes", type=float, default=60, help="length of training, over all runs")
    parser.add_argument("--steps", type=int, help="length of training in steps instead, over all runs")
    parser.add_argument("--text", choices=("t5", "clip"), default="t5", help="text encoder of stage 1")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the released stages in this folder")
    options = parser.parse_args()
    batch = options.batch or BATCH[options.stage]
    if options.stage == 2 and options.text != "t5":
        parser.error("stage 2 takes T5 from stage 1")
    given = {"text": options.text, "steps": options.steps, "start": options.start}
    Trainer(options.out, options.stage, batch, options.rate, options.minutes, **given).run()
