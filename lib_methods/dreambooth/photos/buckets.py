"""Aspect-ratio buckets: pictures keep their shape, and those of about one shape share one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from lib_methods.dreambooth.photos import Photo
from lib_methods.pictures.fit import crop_to_fill
from lib_methods.pictures.tensor import to_tensor

Size = tuple[int, int]
"""(width, height) in pixels."""

_MUCH_CUT = 1 / 3


def step_for(resolution: int) -> int:
    """What the sides of buckets are multiples of: an eighth of the resolution, between 8 and 64, a power of two."""
    return max(8, min(64, 2 ** int(math.log2(max(resolution, 8) / 8))))


@lru_cache(maxsize=64)
def bucket_sizes(resolution: int, step: int = 0) -> tuple[Size, ...]:
    """The sizes that there are: sides in multiples of `step` from half to twice the resolution, as large as fits into
    the area of a square of that resolution.

    step: 0 for `step_for(resolution)`. Sorted from tall to wide; the square (of the next lower multiple) is one.
    """
    step = step or step_for(resolution)
    if resolution < step or step < 1:
        raise ValueError("the resolution must be at least one step")
    low, high = max(step, resolution // 2 // step * step), max(step, resolution * 2 // step * step)
    side, sizes = resolution // step * step, set()
    sizes.add((side, side))
    for long in range(side + step, high + 1, step):
        short = resolution * resolution // long // step * step
        if short >= low:
            sizes |= {(long, short), (short, long)}
    return tuple(sorted(sizes, key=lambda size: (size[0] / size[1], size)))


def bucket_for(width: int, height: int, resolution: int, step: int = 0) -> Size:
    """The size (width, height) in pixels that a picture is brought to: the one nearest to its aspect ratio, and of two
    alike the larger.

    The area is about resolution x resolution and never more, so that all buckets need the same memory. See
    `bucket_sizes` for step.
    """
    if width < 1 or height < 1:
        raise ValueError("width and height must be positive")
    aspect = math.log(width / height)

    def distance(size: Size) -> tuple[float, int, Size]:
        return round(abs(math.log(size[0] / size[1]) - aspect), 9), -size[0] * size[1], size

    return min(bucket_sizes(resolution, step), key=distance)


def fit(image: Image.Image, mask: Image.Image | None, bucket: Size) -> tuple[Tensor, Tensor | None, Tensor]:
    """A picture at the size of its bucket: the largest centred part of that aspect, resized.

    Returns its pixels (3, H, W) in [-1, 1], its mask (1, H, W) in [0, 1] or None, and `micro_conditioning`. The mask is
    brought to the picture's size first, where it has another.
    """
    shown = None if mask is None else fit_mask(mask, image.width, image.height, bucket)
    return to_tensor(crop_to_fill(image, *bucket)), shown, micro_conditioning(image.width, image.height, bucket)


def fit_mask(mask: Image.Image, width: int, height: int, bucket: Size) -> Tensor:
    """The mask (1, H, W) in [0, 1] of a picture of `width` by `height` that `fit` brings into a bucket."""
    scale = max(bucket[0] / width, bucket[1] / height)
    whole = max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))
    grey = mask.convert("L").resize(whole, Image.Resampling.BILINEAR)
    return (to_tensor(crop_to_fill(grey, *bucket, Image.Resampling.BILINEAR))[:1] + 1) / 2


def micro_conditioning(width: int, height: int, bucket: Size) -> Tensor:
    """SDXL's six numbers for a picture of `width` by `height` that `fit` brings into a bucket, fp32 (6,): original
    height and width, top and left of the crop, target height and width (Podell et al. 2023, section 2.2).

    The crop is counted in pixels of the resized picture.
    """
    scale = max(bucket[0] / width, bucket[1] / height)
    left, top = ((width * scale - bucket[0]) / 2, (height * scale - bucket[1]) / 2)
    numbers = [height, width, int(top + 1e-6), int(left + 1e-6), bucket[1], bucket[0]]
    return torch.tensor(numbers, dtype=torch.float32)


def fit_warnings(photos: Sequence[Photo], buckets: Sequence[Size]) -> list[str]:
    """A sentence for each photo that must be enlarged for its bucket, or of which much is cut off."""
    notes = []
    for photo, (width, height) in zip(photos, buckets):
        scale = max(width / photo.width, height / photo.height)
        if scale > 1:
            notes.append(
                f'"{photo.path.name}" is small ({photo.width}x{photo.height}): it is upscaled {scale:.1f} times to '
                f"{width}x{height}, and the model will learn the blur. Use a larger image if you can."
            )
        lost = 1 - width * height / (photo.width * photo.height * scale * scale)
        if lost > _MUCH_CUT:
            notes.append(
                f'"{photo.path.name}" is long and narrow or is cut to a square: {round(100 * lost)} % of it are cut '
                "off at its ends. Cut it yourself if the subject is not in the middle."
            )
    return notes
