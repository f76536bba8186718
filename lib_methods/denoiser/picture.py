"""What a sampling offers besides where the model looks at a picture (InstructPix2Pix)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from lib_methods.denoiser.call import Sampling

if TYPE_CHECKING:
    from lib_methods.denoiser.rows import RowPlanner


class PictureSampling(Sampling, Protocol):
    """A pass of a sampler whose model may be conditioned on a picture, with rows of its own for that."""

    @property
    def batch(self) -> tuple[int, int]:
        """Which images of the job this pass draws: the number of the first, counted from 0, and how many."""

    @property
    def takes_picture(self) -> bool:
        """Whether the UNet has channels for a picture beside the latents, as InstructPix2Pix has: twice as many."""

    @property
    def picture_scale(self) -> float:
        """The factor between what the VAE gives and the latents of this model, 0.18215 for SD1."""

    @property
    def wants_scaled_picture(self) -> bool:
        """Whether the checkpoint is known to take the picture's latents scaled (CosXL-Edit), not as the VAE gives
        them."""

    def encode_picture(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) in [-1, 1] to the posterior's mode, (N, 4, H/8, W/8), not scaled."""

    def own_picture(self) -> Tensor | None:
        """The mode of the picture that the host itself starts from (img2img), (batch, 4, h, w), not scaled; None
        where it starts from noise."""

    def own_frame(self) -> tuple[str, tuple[float, float, float, float]]:
        """How the host brings the picture that it starts from to the job's size: "crop", "pad" or "stretch", and the
        part of it that it works on: left, top, right and bottom as shares of its sides."""

    def first_pass_picture(self) -> Tensor:
        """The mode of what the first pass of Hires.fix has drawn, at this pass's size, (batch, 4, h, w), not scaled."""

    def add_planner(self, planner: RowPlanner) -> None:
        """Let a method decide which unconditional rows every denoiser call of this pass computes; the last one counts.

        Raises `Unsupported` where the host does not let go of them."""
