"""The capability of a sampling to edit the sampler's latents (pix2pix-zero).

Everything is in sigma space, `x = x0 + sigma * noise` (Karras et al. 2022); samplers that keep the variance at one
(DDIM, PLMS, UniPC) are converted, `x_sigma = x_alpha * sqrt(1 + sigma^2)`. So a method knows no sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lib_methods.denoiser.call import DenoiserCall


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is conditioned on.

    context: the prompts' hidden states, (N, tokens, dim), tokens a multiple of 77. vector: SDXL's pooled text and
    sizes, (N, dim); None for other models. image: what an inpainting model sees beside the latents, its mask and the
    latents of the masked image, (N, 5, h, w); None to have it paint everything.
    """

    context: Tensor
    vector: Tensor | None = None
    image: Tensor | None = None

    def rows(self, places: Sequence[int]) -> Conditioning:
        """The same for some of the N, in the order given."""
        vector, image = (None if part is None else part[list(places)] for part in (self.vector, self.image))
        return Conditioning(self.context[list(places)], vector, image)


@dataclass(frozen=True)
class Position:
    """Where a denoiser call stands in `Editing.sigmas`.

    step: the index of its step. sigma: the noise of the call itself. starts_step: the sampler continues from the
    latents of this call; False for the later calls of a second-order step, whose latents are a point of the call's own.
    """

    step: int
    sigma: float
    starts_step: bool


@dataclass(frozen=True)
class OwnNoise:
    """How much noise an ancestral sampler adds (Euler a): a step from sigma to target goes down to the level
    `sqrt(target^2 - up^2)` first, and then adds `up * scale` times fresh noise, `up` at most
    `eta * target * sqrt(1 - target^2 / sigma^2)`."""

    eta: float
    scale: float


class Editing(Protocol):
    """The latents of one pass of a sampler, which may be read, replaced and moved."""

    @property
    def sigmas(self) -> Tensor:
        """The levels that the sampler goes through, (steps + 1,), float32 on the CPU, falling: the level of the first
        denoiser call of each step, and the level at which it ends.

        That is 0 for nearly all samplers in sigma space; DDIM, PLMS, UniPC and the schedule "KL Optimal" end at a small
        one, where the model is no longer called. The number of steps may differ from the user's.
        Raises `Unsupported` where the sampler picks its levels as it goes, or goes up again.
        """

    @property
    def is_stochastic(self) -> bool:
        """Whether the sampler adds noise while it runs (ancestral, SDE, LCM, churn, DDIM with eta)."""

    @property
    def needs_noise(self) -> bool:
        """Whether it cannot run without that noise (LCM)."""

    def without_noise(self) -> None:
        """Let it add none in this pass; the settings of the host and of the job stay as they are. Raises `Unsupported`
        where it cannot do without."""

    @property
    def own_noise(self) -> OwnNoise | None:
        """The noise of an ancestral sampler whose steps are Euler's (Euler a); None for all others, and with eta 0."""

    def draw_noise(self) -> Tensor:
        """The noise that the sampler would draw next, (batch, 4, h, w); this draws it."""

    def give_noise(self, noise: Callable[[], Tensor]) -> None:
        """Have the sampler take its noise from here in this pass: asked at the end of every step to a level above 0.
        Raises `Unsupported` where there is no `own_noise`, or the host does not let it."""

    def own_latent(self) -> Tensor | None:
        """What the host starts from in img2img and in the second pass of Hires.fix: scaled latents without noise,
        (batch, 4, h, w), float32. None where it starts from noise."""

    def start_latent(self) -> Tensor:
        """What the sampler will start from, at `sigmas[0]`: (batch, 4, h, w), float32."""

    def start_from(self, latents: Tensor) -> None:
        """Start from these instead: (batch, 4, h, w) at `sigmas[0]`. Raises `Unsupported` where the host does not let
        it."""

    def at_end(self, latents: Tensor) -> Tensor:
        """Latents as the host decodes them, brought to where the sampler ends, `sigmas[-1]`; shape kept.

        The same for samplers in sigma space; the others end in their own scale: `latents * sqrt(1 + sigmas[-1]^2)`.
        """

    def own_image(self) -> Tensor | None:
        """What the host shows an inpainting model beside the latents of this pass's images, see `Conditioning.image`;
        None for other models, and where there is no image."""

    def embed(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        """Texts as the host embeds a prompt: emphasis, clip skip, any number of chunks of 77 tokens, both text encoders
        of SDXL with this pass's size. Shorter texts are padded to the longest.

        negative: as a negative prompt; the empty one of SDXL is all zeros.
        """

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text without its emphasis, without start and end. Raises `Unsupported` where the model's text
        encoder does not show them."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents at `sigmas[-1]`, (N, 4, h, w), as pixels (N, 3, 8h, 8w) in [-1, 1]."""

    def predict(self, x: Tensor, sigma: float, cond: Conditioning, gradients: bool = False) -> Tensor:
        """The denoised latents (x0) for x (N, 4, h, w) at a level above 0, in one run of the UNet.

        cond has N rows, or one for all. Hooks do not see the run, and no row is counted; what others put in front of
        the UNet's `forward` rests, what they put in front of its layers stays. gradients: may be differentiated with
        respect to x, see `differentiable`; otherwise without a graph.
        """

    def differentiable(self) -> AbstractContextManager[None]:
        """Within the block gradients are on, out of inference mode, and the UNet can be differentiated: its parameters
        are constants, its codebase's own checkpointing (which fails on constants) is off. `predict(gradients=True)`
        enters it by itself; whoever recomputes parts in the backward pass keeps that within the block, too."""

    def position(self, call: DenoiserCall) -> Position:
        """Where a call of this pass stands."""

    def add_editor(self, editor: Editor) -> None:
        """Ask `editor.before(call, latents)` at the start of every denoiser call of this pass; the same class only once
        (the last one counts). Raises `Unsupported` where the host does not let it."""


class Editor(Protocol):
    """A method's part before the UNet runs."""

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        """Asked before any row of a call is run, with the sampler's own latents (batch, 4, h, w) in sigma space,
        float32; not to be written to. The sampler continues with what it returns; the same tensor for no change.
        """
