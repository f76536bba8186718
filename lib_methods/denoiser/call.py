"""One call of the denoiser: its rows, what comes out, and a method's part before and after the UNet runs.

Classifier-free guidance goes from a base along a direction: `guided = base + scale * direction`. With one scale the
base is the unconditional prediction and the direction leads from there to the conditional one; models with an image
scale (InstructPix2Pix) have the image's share in the base. Everything is a prediction of the clean latent (x0),
whatever the sampler works with.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol, runtime_checkable

from torch import Tensor

from lib_methods.errors import UserError
from lib_methods.guidance import combine


class Unsupported(UserError):
    """The host, model or setting cannot be used; the message says so to the user and names what to change."""


class Role(Enum):
    """Which half of classifier-free guidance a row of the UNet's batch belongs to."""

    COND = "cond"
    UNCOND = "uncond"


@dataclass(frozen=True)
class Row:
    """One row of the UNet's batch: its role, and the index of the image in the batch that it is for.

    without_picture: the row does not see the image that a model with channels for one (InstructPix2Pix) is given;
    False for every row of other models. perturbed: a conditional row that is run once more for a `RowGuide`.
    """

    role: Role
    image: int
    without_picture: bool = False
    perturbed: bool = False


class DenoiserCall(Protocol):
    """One call of the classifier-free-guidance denoiser, which runs the UNet once or in several slices."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows of the call in the order in which they go through the UNet, perturbed ones last; where the host runs
        it in slices, rows that a `RowPlanner` added follow those of their slice. Forge names no perturbed ones."""

    @property
    def current_rows(self) -> tuple[Row, ...]:
        """The rows in the UNet right now; empty outside of the UNet."""

    @property
    def level(self) -> Tensor:
        """The noise level as the host hands it to its model, shape (1,): a sigma, or a timestep for timestep
        samplers."""

    @property
    def step(self) -> int:
        """Sampling step from 0; both calls of a second-order step have the same number."""


class Part(Protocol):
    """What a method put into a pass, and can be asked afterwards."""

    @property
    def acted(self) -> bool:
        """Whether it has had a part in any prediction of the pass so far."""

    @property
    def idle(self) -> str:
        """Why it has had none, in a sentence for the user."""

    @property
    def missed(self) -> str:
        """What it could not reach although it acted, in a sentence for the user; mostly empty."""


class Hook(Protocol):
    """A method's part in a sampling."""

    def around(self, call: DenoiserCall) -> AbstractContextManager[None]:
        """Entered before the denoiser runs the UNet, left afterwards, also after an exception."""


class Order(IntEnum):
    """The order in which guides are asked, whatever order their methods were attached in.

    Hooks are entered in the order of the scripts, a `RowGuide` last; no other of ours depends on another.
    """

    RANGE = 50
    """Combines the predictions so that the result stays in the range of clean latents (Guidance)."""
    EDIT = 80
    """Moves it, or keeps a part of the image (pix2pix-zero)."""
    COLOUR = 90
    """Last: gives the result the spread of the conditional prediction (FABRIC's colour correction)."""


@dataclass(frozen=True)
class Guidance:
    """The predictions of one denoiser call: tensors of shape (batch, channels, h, w), clean latents.

    cond: the prediction that sees everything, under AND the weighted sum of the parts. base, direction, scale: see the
    module. guided: what the sampler would go on with; differs from `at(scale)` where a method or another extension has
    already changed it. perturbation: from the prediction of the perturbed rows to the conditional one; None where there
    are no such rows.
    """

    cond: Tensor
    base: Tensor
    direction: Tensor
    scale: float
    guided: Tensor
    perturbation: Tensor | None = None

    def at(self, scale: float) -> Tensor:
        """The guided prediction at another scale."""
        return combine(self.base, self.direction, scale)


class Guide(Protocol):
    """A method's part after the UNet has run."""

    @property
    def order(self) -> int:
        """One of `Order`; guides are asked from low to high."""

    def guide(self, call: DenoiserCall, guidance: Guidance) -> Tensor:
        """The guided prediction to continue with, in the shape of `guidance.guided`; that tensor for no change."""


@dataclass(frozen=True)
class RowChoice:
    """The rows of a denoiser call besides its conditional ones.

    uncond: the unconditional rows. Without them the conditional prediction is the result, so a guide may go without
    them only at scale 1. Hosts keep them where something else needs them: AND with weights that do not add up to 1,
    DDIM CFG++, an image scale, another extension's formula.
    perturbed: the conditional rows once more, in a run of their own.
    """

    uncond: bool = True
    perturbed: bool = False


@runtime_checkable
class RowGuide(Guide, Hook, Protocol):
    """A guide that chooses rows; one for each pass. Its `around` is entered within those of all hooks, so what it puts
    before a layer stands outside of theirs."""

    def choose(self, call: DenoiserCall, scale: float) -> RowChoice:
        """The rows of this call; scale: the host's CFG scale."""
