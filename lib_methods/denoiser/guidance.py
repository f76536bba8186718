"""What comes out of a denoiser call, and how a method may change it.

Classifier-free guidance goes from a base along a direction: `guided = base + scale * direction`. With one scale the
base is the unconditional prediction and the direction leads from there to the conditional one; models with an image
scale of their own (InstructPix2Pix) have the image's share in the base. Everything is a prediction of the clean latent,
whatever the sampler works with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lib_methods.denoiser.call import DenoiserCall


@dataclass(frozen=True)
class Guidance:
    """The predictions of one denoiser call: tensors of shape (batch, channels, h, w), clean latents.

    cond: the prediction that sees everything, under AND the weighted sum of the parts. base, direction, scale: see the
    module. guided: what the sampler would go on with; differs from `at(scale)` where a method or another extension has
    already changed it.
    """

    cond: Tensor
    base: Tensor
    direction: Tensor
    scale: float
    guided: Tensor

    def at(self, scale: float) -> Tensor:
        """The guided prediction at another scale."""
        return self.base + scale * self.direction


class Guide(Protocol):
    """A method's part after the UNet has run."""

    @property
    def order(self) -> int:
        """Guides are asked from low to high, whatever order they were added in."""

    def guide(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        """The guided prediction to go on with, in the shape of `guidance.guided`; that itself for no change."""
