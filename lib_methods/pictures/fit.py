"""Fits an image to the size of a pass."""

from __future__ import annotations

from PIL import Image

FITS = ("crop", "pad", "stretch")


def crop_to_fill(
    image: Image.Image, width: int, height: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The largest centred part of the picture with the wanted aspect, resized to `width` by `height` pixels. No
    margins, no distortion."""
    if width < 1 or height < 1:
        raise ValueError("width and height must be positive")
    scale = min(image.width / width, image.height / height)
    # at most the picture itself: where one side fits exactly, the product may round to more
    part_width, part_height = min(image.width, width * scale), min(image.height, height * scale)
    left, top = (image.width - part_width) / 2, (image.height - part_height) / 2
    box = (left, top, left + part_width, top + part_height)
    return image.convert("RGB").resize((width, height), resample, box=box)


def fit(
    image: Image.Image, width: int, height: int, how: str, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The picture at `width` by `height` pixels, RGB.

    how: "crop" keeps the aspect and cuts what stands over at two sides; "pad" keeps the aspect and repeats the border
    pixels at two sides, so that no foreign colour is added; "stretch" keeps all and changes the aspect.
    resample: how pixels are made of pixels.
    """
    if how == "crop":
        return crop_to_fill(image, width, height, resample)
    if width < 1 or height < 1:
        raise ValueError("width and height must be positive")
    rgb = image.convert("RGB")
    if how == "stretch":
        return rgb.resize((width, height), resample)
    if how != "pad":
        raise ValueError(f"there is no way {how!r} to fit a picture")
    scale = min(width / rgb.width, height / rgb.height)
    inner = max(1, min(width, round(rgb.width * scale))), max(1, min(height, round(rgb.height * scale)))
    small = rgb.resize(inner, resample)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    padded = Image.new("RGB", (width, height))
    padded.paste(small, (left, top))
    bands = (
        ((0, 0, 1, inner[1]), (0, top, left, top + inner[1])),
        ((inner[0] - 1, 0, inner[0], inner[1]), (left + inner[0], top, width, top + inner[1])),
        ((0, 0, inner[0], 1), (left, 0, left + inner[0], top)),
        ((0, inner[1] - 1, inner[0], inner[1]), (left, top + inner[1], left + inner[0], height)),
    )
    for edge, place in bands:  # the picture touches two sides, so there are no corners to fill
        size = place[2] - place[0], place[3] - place[1]
        if size[0] > 0 and size[1] > 0:
            padded.paste(small.crop(edge).resize(size, Image.Resampling.NEAREST), place[:2])
    return padded
