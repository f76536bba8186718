"""Liked and disliked images, from any form in which they may come."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_methods.checks import SettingsError, check_number, refuse_unknown
from lib_methods.pictures.store import ImageStore, is_image_id
from lib_methods.webui.table import format_number

MAX_IMAGES = 64
MAX_WEIGHT = 4.0

_IMAGE_FIELDS = frozenset(("image", "weight"))
_LISTED = re.compile(r"([0-9a-f]{16,64})(?::([0-9.eE+-]+))?")


@dataclass(frozen=True)
class FeedbackImage:
    """A liked or disliked image: its id in the image store, or the beginning of it, and a weight from 0 to 4."""

    image_id: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not is_image_id(self.image_id):
            raise SettingsError("A feedback image is named by its hash, not by a file name or path.")
        check_number("The weight of a feedback image", self.weight, 0.0, MAX_WEIGHT)


def format_images(images: Sequence[FeedbackImage]) -> str:
    """A list as one line, as infotexts and the page carry it: "hash hash:0.5"; a weight of 1 is not written."""
    return " ".join(
        f"{image.image_id}:{format_number(image.weight)}" if image.weight != 1 else image.image_id for image in images
    )


def parse_images(value: Any, name: str, store: ImageStore | None) -> tuple[FeedbackImage, ...]:
    """One list of feedback images from any form in which it may come.

    Args:
        value: None, the line of `format_images`, or a list of: `FeedbackImage`, hash, "hash:weight", base64 text, data
            URL, [image, weight], {"image": image, "weight": number}. The same image twice counts once, with the larger
            weight.
        name: "likes" or "dislikes", for messages.
        store: where images that come along are kept; with None only hashes are accepted.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        words = value.split()
        # one line of hashes; anything else is a single image, whose base64 may have line breaks
        value = words if all(_LISTED.fullmatch(word) for word in words) else [value]
    if not isinstance(value, (list, tuple)):
        raise SettingsError(f'"{name}" must be a list of images.')
    if len(value) > MAX_IMAGES:
        raise SettingsError(f'"{name}" holds {len(value)} images; at most {MAX_IMAGES} are possible.')
    images = []
    for position, item in enumerate(value, 1):
        try:
            images.append(_image(item, store))
        except SettingsError as error:
            place = f"{name}, image {position} of {len(value)}" if len(value) > 1 else name
            raise type(error)(f"{place.capitalize()}: {error}") from None
    best: dict[str, FeedbackImage] = {}
    for image in images:
        if image.image_id not in best or best[image.image_id].weight < image.weight:
            best[image.image_id] = image
    return tuple(best.values())


def _image(item: Any, store: ImageStore | None) -> FeedbackImage:
    if isinstance(item, FeedbackImage):
        return item
    weight: Any = 1.0
    if isinstance(item, Mapping):
        refuse_unknown(item, _IMAGE_FIELDS, "An image has")
        if "image" not in item:
            raise SettingsError('The field "image" is missing.')
        item, weight = item["image"], item.get("weight", 1.0)
    elif isinstance(item, (list, tuple)):
        if len(item) != 2:
            raise SettingsError("An image with a weight is a list of two: [image, weight].")
        item, weight = item
    if not isinstance(item, str):
        raise SettingsError("An image must be text: base64, a data URL, or the hash of a stored one.")
    listed = _LISTED.fullmatch(item.strip())
    if listed:
        item = listed[1]
        if listed[2] is not None:
            try:
                weight = float(listed[2])
            except ValueError:
                raise SettingsError("The weight behind the hash is not a number.") from None
    weight = 1.0 if weight is None else weight
    if not is_image_id(item):
        if store is None:
            raise SettingsError("A feedback image is named by its hash here.")
        FeedbackImage("0" * 64, weight)  # refuse a bad weight before anything is written to the disk
        item = store.add(item)
    return FeedbackImage(item if store is None else store.find(item), weight)


def foreign_images(fields: Mapping[str, Any]) -> int:
    """How many images an infotext of the first published extension names. Its files are its own and cannot be restored
    here."""
    count = 0
    for key in ("fabric_pos_images", "fabric_neg_images"):
        try:
            value = json.loads(str(fields.get(key)).replace("'", '"'))
        except (ValueError, RecursionError):
            continue
        count += len(value) if isinstance(value, list) else 0
    return count


def reader(name: str) -> Callable[[Any, ImageStore | None], tuple[FeedbackImage, ...]]:
    """`parse_images` for one list."""
    return lambda value, store: parse_images(value, name, store)
