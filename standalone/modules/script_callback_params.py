"""What callbacks are called with. Fields may be replaced where that is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class ImageSaveParams:
    """An image about to be saved (all fields may be changed), or that was saved."""

    image: Any
    p: Any
    filename: str
    pnginfo: dict[str, Any]


@dataclass(eq=False)
class ExtraNoiseParams:
    """Noise about to be added in img2img: the noise, the latents, and the latents with the seed's noise."""

    noise: Any
    x: Any
    xi: Any


@dataclass(eq=False)
class CFGDenoiserParams:
    """One call of the CFG denoiser before the model: all rows, cond first. Fields may be replaced."""

    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any = None


@dataclass(eq=False)
class CFGDenoisedParams:
    """One call of the CFG denoiser after the model, before guidance: all rows of its output."""

    x: Any
    sampling_step: int
    total_sampling_steps: int
    inner_model: Any


@dataclass(eq=False)
class AfterCFGCallbackParams:
    """One call of the CFG denoiser after guidance: one row per image; `x` may be replaced."""

    x: Any
    sampling_step: int
    total_sampling_steps: int


@dataclass(eq=False)
class UiTrainTabParams:
    """What tabs for training are given; this host has none."""

    txt2img_preview_params: Any


@dataclass(eq=False)
class ImageGridLoopParams:
    """A grid about to be made."""

    imgs: list[Any]
    cols: int
    rows: int


@dataclass
class BeforeTokenCounterParams:
    """A prompt about to be counted."""

    prompt: str
    steps: int
    styles: list[str]
    is_positive: bool = True
