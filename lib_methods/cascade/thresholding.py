"""Thresholds on the predicted image in pixels: none, static and dynamic (Imagen, arXiv 2205.11487, section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lib_methods.cascade.settings import CascadeSettings
from lib_methods.guidance import quantile


@dataclass(frozen=True)
class Threshold:
    """What is done to every predicted image. kind: "none", "static" or "dynamic". percentile: the share of values, 0 to
    1, that sets the range. upper_bound: the largest range."""

    kind: str
    percentile: float = 0.995
    upper_bound: float = 1.0

    @staticmethod
    def of(settings: CascadeSettings, scheduler: Mapping[str, Any]) -> Threshold:
        """As the settings say, and where they leave it open, as the configuration of the stage's scheduler does."""
        kind = settings.thresholding
        if kind == "model":
            kind = (
                "dynamic"
                if scheduler.get("thresholding")
                else "static"
                if scheduler.get("clip_sample", True)
                else "none"
            )
        return Threshold(
            kind,
            settings.percentile or float(scheduler.get("dynamic_thresholding_ratio", 0.995)),
            settings.upper_bound or float(scheduler.get("sample_max_value", 1.0)),
        )

    def __str__(self) -> str:
        if self.kind != "dynamic":
            return self.kind
        return f"dynamic {self.percentile:g} up to {self.upper_bound:g}"

    def __call__(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), the predicted ones. An image's result does not depend on its batch."""
        if self.kind == "none":
            return images
        if self.kind == "static":
            return images.clamp(-1, 1)
        return dynamic_threshold(images, self.percentile, self.upper_bound)


def dynamic_threshold(images: Tensor, percentile: float, upper_bound: float) -> Tensor:
    """Clips each image to [-s, s] and divides by s, where s is the percentile of its absolute values, from 1 to
    `upper_bound` at most. images: (B, C, H, W)."""
    values = images.float()
    span = quantile(values.abs(), percentile, (1, 2, 3)).clamp(1.0, max(1.0, upper_bound))
    return (values.clamp(-span, span) / span).to(images.dtype)
