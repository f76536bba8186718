"""What a method may ask of one pass of a sampler, and what a new host must provide.

A host adapter (`lib_methods.hosts`) makes a `Sampling` for each pass. A method attaches hooks and guides to it, which
end with the pass. To support another host, write one class with the members of `Sampling`:

- facts, mostly one line each: `steps`, `is_hires`, `batch`, the latent sizes, `own_frame`, `device`, `unet`, and the
  two keys, by which methods know what they may keep from one job to the next;
- `encode` (the VAE), `sigma`, `level` and `noisy` (the host's noise scale) and `run_unet` (the UNet with the empty
  prompt);
- `add_hook`, `add_guide` and `registering`: `hosts.passes.Pass` keeps what is registered and takes it back, so the
  adapter only enters the hooks around the UNet, with the rows that are in it, and asks the guides after it;
- `picture` and `editing`, each an object of its own, or None. None costs nothing: the methods that need one say that
  they do not work in this WebUI. `hosts.a1111` and `hosts.forge` have both.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lib_methods.denoiser.call import Guide, Hook, Part, Unsupported
from lib_methods.denoiser.editing import Editing
from lib_methods.denoiser.picture import Picture

LATENT_CHANNELS = 4
"""Channels of a latent of SD1, SD2 and SDXL."""
PIXELS_PER_LATENT = 8
"""Side of the square of pixels behind one latent position."""

_ELSEWHERE = "Use AUTOMATIC1111's WebUI, or python run.py."
NO_PICTURE = f"This WebUI does not let an extension choose the rows of the denoiser. {_ELSEWHERE}"
NO_EDITING = f"This WebUI does not let an extension edit an image while it is generated. {_ELSEWHERE}"
NO_FLOW = (
    "This checkpoint was trained with flow matching, whose noise an edit cannot find. "
    "Choose one of SD1, SD2 or SDXL that predicts the noise or v."
)


class Sampling(Protocol):
    """One pass of a sampler: txt2img, img2img, or either pass of Hires.fix."""

    @property
    def steps(self) -> int:
        """Number of sampling steps of this pass."""

    @property
    def is_hires(self) -> bool:
        """Whether this is the second pass of Hires.fix."""

    @property
    def batch(self) -> tuple[int, int]:
        """Which images of the job this pass makes: the number of the first, counted from 0, and how many."""

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of this pass's latents."""

    @property
    def first_latent_size(self) -> tuple[int, int]:
        """Height and width of the first pass's latents; the same as `latent_size` outside of Hires.fix."""

    def own_frame(self) -> tuple[str, tuple[float, float, float, float]]:
        """How the host brings the image that it starts from to the job's size: "crop", "pad" or "stretch", and the
        part of it that it works on: left, top, right and bottom as shares of its sides."""

    @property
    def device(self) -> torch.device:
        """Where the sampler's latents live."""

    @property
    def unet(self) -> nn.Module:
        """The UNet that the next denoiser call will run."""

    @property
    def picture(self) -> Picture | None:
        """The image beside the latents; None where the host does not give access to its rows."""

    @property
    def editing(self) -> Editing | None:
        """The sampler's own latents; None where they are out of reach."""

    def checkpoint_key(self) -> Hashable:
        """Which checkpoint is loaded."""

    def model_key(self) -> Hashable:
        """Everything about the model that its features depend on: checkpoint, VAE, LoRA, precision, empty prompt."""

    def prepare(self) -> None:
        """Do now what needs other models than the UNet, so that none must be moved to the device while the sampler
        runs."""

    def reserve(self, size: int) -> None:
        """Tell a host that fills the device's memory with the model how many bytes the method needs beside it while
        the sampler runs."""

    def encode(self, images: Tensor, seeds: list[int]) -> Tensor:
        """Encode images of shape (N, 3, H, W) in [-1, 1] to latents (N, 4, H/8, W/8), image by image, each with its
        own seed."""

    def sigma(self, level: Tensor) -> float:
        """The noise of a denoiser call's level."""

    def level(self, sigma: float) -> Tensor:
        """The level with this noise, (1,), or with the nearest noise that the model knows, in the sampler's units."""

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The latents at a noise level, in the scale that `run_unet` takes."""

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        """Run the UNet on latents (N, 4, h, w) with the empty prompt, for what can be seen inside. No gradients."""

    def add_hook(self, hook: Hook) -> None:
        """Enter `hook.around(call)` around every denoiser call of this pass; the same hook class only once (the last
        one counts)."""

    def add_guide(self, guide: Guide) -> None:
        """Ask `guide.guide(call, guidance)` after every denoiser call of this pass, before a mask is blended in, and
        before it, where it is a `RowGuide`, which rows to run; the same class only once (the last one counts)."""

    def registering(self) -> AbstractContextManager[None]:
        """Around one method's registrations: after an exception none of them counts. All end with the pass."""

    def failure(self, part: Part) -> str:
        """Why a method's part ended before the pass did, in a sentence for the user; empty where it did not."""


def picture_of(sampling: Sampling) -> Picture:
    """The sampling's `picture`. Raises `Unsupported` where it has none."""
    if sampling.picture is None:
        raise Unsupported(NO_PICTURE)
    return sampling.picture


def editing_of(sampling: Sampling) -> Editing:
    """The sampling's `editing`. Raises `Unsupported` where it has none."""
    if sampling.editing is None:
        raise Unsupported(NO_EDITING)
    return sampling.editing


@dataclass(frozen=True)
class ChosenSampler:
    """The sampler that the page names, so that the page can say what will not work with it.

    obstacle: why its latents cannot be edited, in a sentence; empty where they can. needs_noise, has_own_noise: what
    `Editing.needs_noise` and `Editing.own_noise` will say.
    """

    obstacle: str
    needs_noise: bool
    has_own_noise: bool


@dataclass(frozen=True)
class LoadedModel:
    """The host's checkpoint between two jobs, so that the page can say what will not work.

    unet: the model that samples. sees_picture: whether it sees an image beside the latents (InstructPix2Pix).
    has_picture, has_editing: whether the host's samplings have these capabilities. transformer: the name of a model
    that is one (Flux, Qwen-Image), empty for a UNet. is_flow: whether it was trained with flow matching.
    """

    unet: nn.Module
    sees_picture: bool = False
    has_picture: bool = True
    has_editing: bool = True
    transformer: str = ""
    is_flow: bool = False
