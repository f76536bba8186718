"""Examples for training steps: latents of both images, the instruction's conditioning, and dropout."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib_methods.errors import UserError
from standalone.instruct.dataset import Pair
from standalone.instruct.make import duration

DROPPED = 0.05  # share of examples without text, without picture, and without both (Brooks et al. 2023, section 3.2.1)
ENCODED_AT_ONCE = 16
TEXTS_HELD = 4096


def dropout(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of `count` examples lose their text and which their picture: two bool tensors (count,).

    5 % lose the text only, 5 % both, 5 % the picture only.
    """
    drawn = torch.rand(count, generator=generator)
    return drawn < 2 * DROPPED, (drawn >= DROPPED) & (drawn < 3 * DROPPED)


def read_picture(path: Any) -> Tensor:
    """(3, H, W) in [-1, 1]. UserError when it is no picture of sides that are multiples of 8."""
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
        """Targets (count, 4, h, w), sampled from the posterior and scaled; pictures (count, 4, h, w), the posterior's
        mode, unscaled; conditioning (count, 77, D). What is dropped is zeros, and the empty prompt."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        mean, log_variance = self.targets[chosen].chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator)
        latents = (mean + noise * (0.5 * log_variance.clamp(-30, 20)).exp()) * self.model.scale_factor
        no_text, no_picture = dropout(count, generator)
        pictures = self.pictures[chosen] * (~no_picture).float().view(-1, 1, 1, 1)
        texts = [self.text("" if no_text[i] else self.instructions[number]) for i, number in enumerate(chosen.tolist())]
        return latents, pictures, torch.stack(texts)
