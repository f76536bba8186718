"""Widens a UNet for a second image, trains it on pairs that are encoded once, and writes the checkpoint.

A stopped run resumes from its last state. Everything random of a step comes from the seed and the step's number, so
that a run with stops in between ends with the same weights as one without.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from lib_methods.errors import UserError
from lib_methods.jobs.log import duration
from lib_methods.safetensors import rounded, write_tensors
from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.weights import ldm_clip_text, ldm_networks, ldm_unet, ldm_vae
from standalone.host.checkpoints import CheckpointInfo, Defaults, defaults_of
from standalone.instruct.dataset import Pair, write_whole
from standalone.shapes.networks import MatrixOptimizer
from standalone.shapes.train import SNR_CAP, SNR_FLOOR

TARGET = "modules.models.diffusion.ddpm_edit.LatentDiffusion"
"""The class that the WebUI's own configuration of InstructPix2Pix names."""
DROPPED = 0.05  # share of examples without text, without image, and without both (Brooks et al. 2023, section 3.2.1)
ENCODED_AT_ONCE = 16
TEXTS_HELD = 4096
WARM_UP = 100  # steps
EMA_DECAY = 0.999
SAVE_EVERY = 120.0  # seconds
SAY_EVERY = 10.0  # seconds


def dropout(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of `count` examples lose their text and which their image: two bool tensors (count,).

    5 % lose the text only, 5 % both, 5 % the image only.
    """
    drawn = torch.rand(count, generator=generator)
    return drawn < 2 * DROPPED, (drawn >= DROPPED) & (drawn < 3 * DROPPED)


def read_picture(path: Any) -> Tensor:
    """(3, H, W) in [-1, 1]. UserError when it is no image of sides that are multiples of 8."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError, ValueError) as error:
        raise UserError(f"The image {path.name} cannot be read.") from error
    if pixels.shape[0] % 8 or pixels.shape[1] % 8:
        raise UserError(f"The sides of the image {path.name} must be multiples of 8.")
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


class Examples:
    """All pairs, encoded once and held on the CPU: 8 + 4 numbers a latent pixel (about 200 KB a pair of 512 pixels)."""

    def __init__(self, model: Any, pairs: Sequence[Pair], say: Callable[[str], None]) -> None:
        self.model, self.instructions = model, [pair.instruction for pair in pairs]
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        pictures, targets = [], []
        started = told = time.monotonic()
        for start in range(0, len(pairs), ENCODED_AT_ONCE):
            part = pairs[start : start + ENCODED_AT_ONCE]
            pictures.append(self._moments([pair.before for pair in part]).chunk(2, dim=1)[0])
            targets.append(self._moments([pair.after for pair in part]))
            if targets[-1].shape[1:] != targets[0].shape[1:] or pictures[-1].shape[2:] != targets[0].shape[2:]:
                raise UserError("All images of the pairs must have the same size.")
            now, done = time.monotonic(), start + len(part)
            left = duration((now - started) / done * (len(pairs) - done))
            if now - told > 5:
                say(f"Encoded {done} of {len(pairs)} pairs, about {left} left")
                told = now
        self.pictures, self.targets = torch.cat(pictures), torch.cat(targets)

    def __len__(self) -> int:
        return len(self.instructions)

    def _moments(self, paths: Sequence[Any]) -> Tensor:
        images = [read_picture(path) for path in paths]
        if len({image.shape for image in images}) > 1:
            raise UserError("All images of the pairs must have the same size.")
        with torch.no_grad():
            posterior = self.model.encode_first_stage(torch.stack(images).to(self.model.device))
        moments: Tensor = posterior.parameters
        return moments.float().cpu()

    def text(self, instruction: str) -> Tensor:
        """The conditioning of one instruction, (77, D), on the CPU. One that is longer than 77 tokens is cut."""
        found = self._texts.pop(instruction, None)
        if found is None:
            found = self.model.get_learned_conditioning([instruction])[0, :77].float().cpu()
        self._texts[instruction] = found
        while len(self._texts) > TEXTS_HELD:
            self._texts.popitem(last=False)
        return found

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Targets (count, 4, h, w), sampled from the posterior and scaled; images (count, 4, h, w), the posterior's
        mode, unscaled; conditioning (count, 77, D). What is dropped is zeros, and the empty prompt."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        mean, log_variance = self.targets[chosen].chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        latents = (mean + noise * (0.5 * log_variance.clamp(-30, 20)).exp()) * self.model.scale_factor
        no_text, no_picture = dropout(count, generator)
        pictures = self.pictures[chosen] * (~no_picture).float().view(-1, 1, 1, 1)
        texts = [self.text("" if no_text[i] else self.instructions[number]) for i, number in enumerate(chosen.tolist())]
        return latents, pictures, torch.stack(texts)


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_plain(checkpoint: Path) -> tuple[Any, Defaults]:
    """An SD1 checkpoint with 4 input channels, and the values beside it (image size and so on). UserError else."""
    model = load_checkpoint(checkpoint, device=device())
    channels = int(model.model.diffusion_model.config.in_channels)
    if not model.is_sd1 or channels != model.latent_channels or model.parameterization != "eps":
        raise UserError(
            f"{checkpoint.name} cannot be used: it must be of Stable Diffusion 1's family, predict noise, and have "
            "4 input channels."
        )
    model.sd_checkpoint_info = CheckpointInfo(checkpoint)
    return model, defaults_of(model)


@dataclass(frozen=True)
class Length:
    """How long the whole training is: steps or minutes, whichever is given."""

    steps: int | None = None
    minutes: float | None = None

    def done(self, step: int, spent: float) -> float:
        """The share that is done; 1 is the end. `spent` in seconds."""
        by_steps = step / self.steps if self.steps is not None else 0.0
        by_time = spent / (self.minutes * 60) if self.minutes is not None else 0.0
        return max(by_steps, by_time)


class Trainer:
    """The widened UNet, its average, and everything needed to resume."""

    def __init__(self, model: Any, batch: int, rate: float, seed: int, identity: str) -> None:
        """identity: names checkpoint and pairs; a state of another one is refused."""
        self.batch, self.seed, self.rate, self.identity = batch, seed, rate, identity
        self.device = model.device
        self.unet = widened(model.model.diffusion_model).train().requires_grad_(True)
        self.average = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.optimizer = MatrixOptimizer([self.unet], rate, rate)
        alphas = model.alphas_cumprod.float().to(self.device)
        self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()
        snr = alphas / (1 - alphas)
        self.weight = snr.clamp(SNR_FLOOR, SNR_CAP) / snr
        self.step, self.spent = 0, 0.0

    def _settings(self) -> dict[str, Any]:
        return {"batch": self.batch, "rate": self.rate, "seed": self.seed, "identity": self.identity}

    def save(self, path: Path) -> None:
        """Writes the whole state, so that a stop at any moment leaves the old or the new one."""
        state = {
            "unet": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
            "settings": self._settings(),
        }
        temporary = path.with_name(path.name + ".new")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Goes on from a state. UserError when it is damaged, or of another training."""
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            settings = dict(state["settings"])
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path.name} is damaged. Remove it and start again without --resume.") from error
        differ = [name for name, value in self._settings().items() if settings.get(name) != value]
        if differ:
            told = ", ".join({"identity": "checkpoint or pairs"}.get(name, name) for name in differ)
            raise UserError(f"{path.name} was saved with other settings ({told}). Use the same settings to resume.")
        self.unet.load_state_dict(state["unet"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent = int(state["step"]), float(state["spent"])

    def loss(self, latents: Tensor, pictures: Tensor, texts: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted error of the predicted noise (a number), at noise levels spread evenly over the batch."""
        count = len(latents)
        share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        times = (share * len(self.signal)).long().clamp(max=len(self.signal) - 1).to(self.device)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        clean = latents.to(self.device)
        noisy = self.signal[times].view(-1, 1, 1, 1) * clean + self.noise[times].view(-1, 1, 1, 1) * noise
        seen = torch.cat([noisy, pictures.to(self.device)], dim=1)
        predicted = self.unet(seen, times, encoder_hidden_states=texts.to(self.device), return_dict=False)[0]
        return ((predicted - noise).pow(2).mean((1, 2, 3)) * self.weight[times]).mean()

    def train_step(self, examples: Examples, done: float) -> float:
        """One step when the share `done` of the training is over; returns the loss."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        loss = self.loss(*examples.batch(self.batch, generator), generator)
        loss.backward()
        warm = min(1.0, (self.step + 1) / WARM_UP)
        self.optimizer.step(warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))))
        self.step += 1
        decay = min(EMA_DECAY, 1 - 1 / (1 + self.step / 5))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.unet.parameters()):
                slow.lerp_(fast, 1 - decay)
        return float(loss.detach())

    def run(self, examples: Examples, length: Length, state: Path, say: Callable[[str], None]) -> float:
        """Trains to the end, counting what earlier runs did, and saves now and then and at the end; returns the mean
        loss since the last line that was said. UserError when the numbers overflow."""
        losses: list[float] = []
        saved = told = time.monotonic()
        mean = math.nan
        while (done := length.done(self.step, self.spent)) < 1:
            started = time.monotonic()
            losses.append(self.train_step(examples, done))
            now = time.monotonic()
            self.spent += now - started
            if not math.isfinite(losses[-1]):
                raise UserError("Training diverged (the loss is NaN). Start again with a lower --rate.")
            done = length.done(self.step, self.spent)
            if now - told >= SAY_EVERY or done >= 1:
                mean = sum(losses) / len(losses)
                left = duration(self.spent / done * max(0.0, 1 - done))
                say(f"step {self.step}, loss {mean:.4f}, {self.spent / self.step:.2f} s a step, about {left} left")
                losses, told = [], now
            if now - saved >= SAVE_EVERY:
                self.save(state)
                saved = time.monotonic()
        self.save(state)
        return mean


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with twice the input channels. The new weights are zero, so that it computes what `unet` computes,
    whatever the image."""
    channels = int(unet.config.in_channels)
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    wide = UNet2DConditionModel(**{**config, "in_channels": 2 * channels})
    state = dict(unet.state_dict())
    old = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([old, torch.zeros_like(old)], dim=1)
    wide.load_state_dict(state)
    return wide.to(unet.device)


def edit_config(model: Any, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The yaml for the WebUI: the checkpoint's own one, or one of SD1's form with the model's sizes, made one of an
    InstructPix2Pix model."""
    known = copy.deepcopy(dict(config)) if config is not None else {}
    top = known.get("model")
    if not isinstance(top, dict) or not isinstance(top.get("params"), dict) or "unet_config" not in top["params"]:
        known = {"model": {"params": _sd1_params(model)}}
    known["model"]["target"] = TARGET
    params = known["model"]["params"]
    params |= {"first_stage_key": "edited", "cond_stage_key": "edit", "conditioning_key": "hybrid", "use_ema": False}
    params["unet_config"].setdefault("params", {})["in_channels"] = 2 * model.latent_channels
    return {"model": known["model"]}


def _sd1_params(model: Any) -> dict[str, Any]:
    unet, vae = model.model.diffusion_model.config, model.first_stage_model.config
    return {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "timesteps": len(model.alphas_cumprod),
        "image_size": 64,
        "channels": model.latent_channels,
        "scale_factor": model.scale_factor,
        **ldm_networks(unet, vae, image_size=32, resolution=256),
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }


def write_checkpoint(model: Any, unet: UNet2DConditionModel, config: Mapping[str, Any] | None, out: Path) -> None:
    """Writes `unet` with the model's VAE and text encoder to one file in LDM's names and half precision, and the yaml
    beside it. Both appear whole; the yaml first."""
    state = {**ldm_unet(unet), **ldm_vae(model.first_stage_model), **ldm_clip_text(model.cond_stage_model.transformer)}
    halves = {k: rounded(k, value, torch.float16) for k, value in state.items() if value.is_floating_point()}
    out.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(edit_config(model, config), sort_keys=False)
    write_whole(out.with_suffix(".yaml"), text.encode())
    write_tensors(out, halves, {"format": "pt", "modelspec.title": out.stem})
