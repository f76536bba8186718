"""From what a page or an API call sends to `FabricSettings`.

The controls of the page arrive as a list in the order of `CONTROLS`. An API call may send the same list, or one dict
of named fields in the first place, or both; then the named fields win. Pictures may be named by hash or sent along,
and those sent along are kept in the image store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from lib_methods.checks import check_switch
from lib_methods.pictures.store import ImageStore, is_image_id
from lib_methods.webui.arguments import format_number, refuse_unknown, request_fields

from .settings import FabricSettings, FeedbackImage, SettingsError

CONTROLS = (
    "enabled",
    "likes",
    "dislikes",
    "strength",
    "start",
    "end",
    "negative_weight",
    "min_strength",
    "weighting",
    "colour_correction",
    "detail",
    "hires",
    "hires_strength",
    "cache_limit_mb",
    "seed",
)
"""The order of the page's controls and of positional API arguments."""

MAX_IMAGES = 64
MAX_SEED = 2**32 - 1

_FIELDS = frozenset(CONTROLS)
_IMAGE_FIELDS = frozenset(("image", "weight"))
_LISTED = re.compile(r"([0-9a-f]{16,64})(?::([0-9.eE+-]+))?")
_LIST_NAMES = {"likes": "liked", "dislikes": "disliked"}


class RequestError(SettingsError):
    """A request that cannot be understood; the message says which part and why in the user's words."""


@dataclass(frozen=True)
class Request:
    """One job's request.

    settings: what to do, or None where FABRIC is switched off.
    notes: sentences for the user about pictures that were left out.
    """

    settings: FabricSettings | None
    notes: tuple[str, ...] = ()


def parse_request(
    arguments: Sequence[Any],
    store: ImageStore,
    *,
    overrides: Mapping[str, Any] | None = None,
    skip_missing: bool = False,
) -> Request:
    """Read the arguments of one job.

    Args:
        arguments: values in the order of `CONTROLS`; a dict in the first place holds named fields. None stands for the
        default. store: where pictures are looked up, and where those that were sent along are kept.
        overrides: fields set from elsewhere (X/Y/Z plot); they win over everything.
        skip_missing: leave out pictures that are not in the store, with a note, instead of refusing the request.

    Raises:
        RequestError, StoreError, SettingsError: the sentence names the field.
    """
    named = request_fields(arguments, CONTROLS, "FABRIC", overrides)
    if named is None:
        return Request(None)
    limited = store.for_request()
    for name in _LIST_NAMES:
        named[name] = parse_images(named.get(name), name, limited)
    settings = settings_from_fields(named)
    return _without_missing(settings, store, skip_missing)


def restored_images(line: str, name: str, store: ImageStore) -> tuple[tuple[FeedbackImage, ...], tuple[str, ...]]:
    """A list that a page kept, without the pictures that are gone, and a sentence about those.

    Args:
        line: of `format_images`; anything else is a RequestError.
        name: "likes" or "dislikes".
    """
    named: dict[str, Any] = {name: parse_images(line, name, None)}
    found = _without_missing(FabricSettings(**named), store, skip=True)
    return getattr(found.settings, name), found.notes


def settings_from_fields(named: Mapping[str, Any]) -> FabricSettings:
    """Settings from named fields with JSON values; fields left out or None keep their default.

    The lists hold `FeedbackImage`s, or dicts `{"image": hash, "weight": number}`.
    """
    if not isinstance(named, Mapping):
        raise RequestError("The settings must be named fields.")
    refuse_unknown(named, _FIELDS - {"enabled"}, "FABRIC has")
    values = {name: value for name, value in named.items() if value is not None}
    for name in _LIST_NAMES:
        if name in values:
            values[name] = parse_images(values[name], name, None)
    for name, low, high in (("cache_limit_mb", 0, 10**6), ("seed", 0, MAX_SEED)):
        if name in values:
            values[name] = _whole_number(name, values[name], low, high)
    check_switch('"colour_correction"', values.get("colour_correction", True))
    return FabricSettings(**values)


def settings_to_fields(settings: FabricSettings) -> dict[str, Any]:
    """The inverse of `settings_from_fields`: JSON values only."""
    named: dict[str, Any] = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for name in _LIST_NAMES:
        named[name] = [{"image": image.image_id, "weight": image.weight} for image in named[name]]
    return named


def format_images(images: Sequence[FeedbackImage]) -> str:
    """A list as one line, as infotexts and the page carry it: "hash hash:0.5"; a weight of 1 is not written."""
    return " ".join(
        f"{image.image_id}:{format_number(image.weight)}" if image.weight != 1 else image.image_id for image in images
    )


def parse_images(value: Any, name: str, store: ImageStore | None) -> tuple[FeedbackImage, ...]:
    """One list of feedback images from any form in which it may come.

    Args:
        value: None, the line of `format_images`, or a list of: hash, "hash:weight", base64 text, data URL, [picture,
        weight],
            {"image": picture, "weight": number}.
        name: "likes" or "dislikes", for messages.
        store: where pictures that come along are kept; with None only hashes are accepted.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        words = value.split()
        # one line of hashes; anything else is a single picture, whose base64 may have line breaks
        value = words if all(_LISTED.fullmatch(word) for word in words) else [value]
    if not isinstance(value, (list, tuple)):
        raise RequestError(f'"{name}" must be a list of pictures.')
    if len(value) > MAX_IMAGES:
        raise RequestError(f'"{name}" holds {len(value)} pictures; at most {MAX_IMAGES} are possible.')
    images = []
    for position, item in enumerate(value, 1):
        try:
            images.append(_image(item, store))
        except SettingsError as error:
            place = f"{name}, picture {position} of {len(value)}" if len(value) > 1 else name
            raise type(error)(f"{place.capitalize()}: {error}") from None
    return tuple(images)


def _image(item: Any, store: ImageStore | None) -> FeedbackImage:
    if isinstance(item, FeedbackImage):
        return item
    weight: Any = 1.0
    if isinstance(item, Mapping):
        refuse_unknown(item, _IMAGE_FIELDS, "A picture has")
        if "image" not in item:
            raise RequestError('The field "image" is missing.')
        item, weight = item["image"], item.get("weight", 1.0)
    elif isinstance(item, (list, tuple)):
        if len(item) != 2:
            raise RequestError("A picture with a weight is a list of two: [picture, weight].")
        item, weight = item
    if not isinstance(item, str):
        raise RequestError("A picture must be text: base64, a data URL, or the hash of a stored one.")
    listed = _LISTED.fullmatch(item.strip())
    if listed:
        item = listed[1]
        if listed[2] is not None:
            weight = _decimal(listed[2])
    weight = 1.0 if weight is None else weight
    if not is_image_id(item):
        if store is None:
            raise RequestError("A feedback image is named by its hash here.")
        FeedbackImage("0" * 64, weight)  # refuse a bad weight before anything is written to the disk
        item = store.add(item)
    return FeedbackImage(item if store is None else store.find(item), weight)


def _without_missing(settings: FabricSettings, store: ImageStore, skip: bool) -> Request:
    notes = []
    for name, word in _LIST_NAMES.items():
        images: tuple[FeedbackImage, ...] = getattr(settings, name)
        missing = [image.image_id for image in images if not store.exists(image.image_id)]
        if not missing:
            continue
        one = len(missing) == 1
        subject = f"The {word} picture {missing[0][:8]}…" if one else f"{len(missing)} of the {word} pictures"
        if not skip:
            raise RequestError(
                f"{subject} {'is' if one else 'are'} not on this machine. Send the pictures themselves, or remove them."
            )
        notes.append(f"{subject} {'is' if one else 'are'} not on this machine and {'was' if one else 'were'} left out.")
        kept = tuple(image for image in images if image.image_id not in missing)
        settings = replace(settings, likes=kept) if name == "likes" else replace(settings, dislikes=kept)
    return Request(settings, tuple(notes))


def _whole_number(name: str, value: Any, low: int, high: int) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not low <= value <= high:
        raise RequestError(f'"{name}" must be a whole number from {low} to {high}.')
    return int(value)


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError("The weight behind the hash is not a number.") from None
