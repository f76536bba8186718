"""What a method sees of a sampling, and what it may ask of the model.

A host adapter (`lib_methods.hosts`) builds a `Sampling` for one pass of the sampler. A method adds a `Hook` to it;
the hook's context is entered around every denoiser call. Nothing here knows a host or a method.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from lib_methods.denoiser.guidance import Guide


class Unsupported(RuntimeError):
    """The host, model or setting cannot be used; the message says so to the user and names what to change."""


class Role(Enum):
    """Which half of classifier-free guidance a row of the UNet's batch belongs to."""

    COND = "cond"
    UNCOND = "uncond"


@dataclass(frozen=True)
class Row:
    """One row of the UNet's batch: its role, and the index of the image in the batch that it is for.

    without_picture: the row does not see the picture that a model with channels for one (InstructPix2Pix) is given;
    False for every row of other models.
    """

    role: Role
    image: int
    without_picture: bool = False


class DenoiserCall(Protocol):
    """One call of the classifier-free-guidance denoiser, which runs the UNet once or in several slices."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows of the call in the order in which they go through the UNet; where the host runs it in slices, rows
        that a `RowPlanner` added follow those of their slice."""

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


class Sampling(Protocol):
    """One pass of a sampler: txt2img, img2img, or either pass of Hires.fix."""

    @property
    def steps(self) -> int:
        """Number of sampling steps of this pass."""

    @property
    def is_hires(self) -> bool:
        """Whether this is the second pass of Hires.fix."""

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of this pass's latents."""

    @property
    def first_latent_size(self) -> tuple[int, int]:
        """Height and width of the first pass's latents; the same as `latent_size` outside of Hires.fix."""

    @property
    def latent_channels(self) -> int:
        """Channels of a latent, 4 for every Stable Diffusion model."""

    @property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels behind one latent position, 8."""

    @property
    def device(self) -> object:
        """Where the sampler's latents live, a `torch.device`."""

    @property
    def unet(self) -> nn.Module:
        """The UNet that the next denoiser call will run."""

    def checkpoint_key(self) -> Hashable:
        """Which checkpoint is loaded."""

    def model_key(self) -> Hashable:
        """Everything about the model that its features depend on: checkpoint, VAE, LoRA, precision, empty prompt."""

    def prepare(self) -> None:
        """Do now what needs other models than the UNet, so that none must be moved to the device while the sampler
        runs."""

    def encode(self, images: Tensor, seeds: list[int]) -> Tensor:
        """Encode images of shape (N, 3, H, W) in [-1, 1] to latents (N, 4, H/8, W/8), image by image, each with its
        own seed."""

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The latents at a noise level, in the scale that `run_unet` takes."""

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        """Run the UNet on latents (N, 4, h, w) with the empty prompt, for what can be seen inside. No gradients."""

    def add_hook(self, hook: Hook) -> None:
        """Enter `hook.around(call)` around every denoiser call of this pass; the same hook class only once (the last
        one counts)."""

    def add_guide(self, guide: Guide) -> None:
        """Ask `guide.guide(call, guidance)` after every denoiser call of this pass, before a mask is blended in; the
        same class only once (the last one counts)."""
