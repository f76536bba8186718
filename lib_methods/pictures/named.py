"""Images in a request or a page: named by hash, or sent along and stored."""

from __future__ import annotations

import html
from typing import Any

from PIL import Image

from lib_methods.checks import SettingsError

from .store import ImageStore, is_image_id
from .thumbnail import thumbnail

THUMBNAIL_SIDE = 192


def picture_name(value: str, place: str, kind: str, store: ImageStore | None) -> str:
    """The hash of a picture that is named by it, or sent along as base64 or data URL.

    place, kind: what it is, for the sentences: "Picture 2 of 3" and "picture". store: where one that comes along is
    kept; with None only hashes are accepted. Raises `SettingsError`, also of the store.
    """
    if store is None:
        if is_image_id(value.strip()):
            return value.strip()
        raise SettingsError(f"{kind.capitalize()}s are named by their hash here.")
    try:
        return store.find(value.strip()) if is_image_id(value.strip()) else store.add(value, as_mask=kind == "mask")
    except SettingsError as error:
        raise type(error)(f"{place}: {error}") from None


def mask_name(value: Any, store: ImageStore | None = None) -> str:
    """The hash of a mask, see `picture_name`; empty for none."""
    if not isinstance(value, str):
        raise SettingsError('"mask" must be one image: base64, a data URL or a hash.')
    return "" if value == "" else picture_name(value, "The mask", "mask", store)


def whole_names(line: str, store: ImageStore | None) -> str:
    """A line of hashes, each perhaps with ":" and a weight, with whole ids for the beginnings that infotexts have.

    Those that are not here, or could be several, stay: who uses them says so.
    """
    words = []
    for word in line.split():
        name, colon, weight = word.partition(":")
        try:
            words.append((store.find(name) if store is not None else name) + colon + weight)
        except SettingsError:
            words.append(word)
    return " ".join(words)


def short_names(line: str, store: ImageStore | None) -> str:
    """The opposite of `whole_names`; without a store the ids stay whole."""
    split = [word.partition(":") for word in line.split()]
    return " ".join((store.shorten(name) if store is not None else name) + colon + rest for name, colon, rest in split)


def check_there(store: ImageStore, name: str, kind: str) -> None:
    """Raise `SettingsError` where a picture that a request names is not in the store; empty names none."""
    if name and not store.exists(name):
        raise SettingsError(f"The {kind} {name[:8]}… is not on this machine. Send the {kind} itself.")


def received(picture: Image.Image | None, kept: str, store: ImageStore, *, as_mask: bool = False) -> tuple[str, str]:
    """A page's upload box was changed: the hash to hold now, and a sentence if the picture cannot be taken. The box was
    emptied where there is no picture; then `kept` stays."""
    if picture is None:
        return kept, ""
    try:
        return store.add(picture, as_mask=as_mask), ""
    except SettingsError as error:
        return kept, str(error)


def preview(store: ImageStore, name: str, shows: str) -> str:
    """A stored picture, small, as HTML that every gradio version shows alike."""
    try:
        url = thumbnail(store, name, THUMBNAIL_SIDE)
    except (OSError, SettingsError):
        return f"<em>{html.escape(name[:8])}… is not on this machine</em>"
    return f'<img src="{url}" alt="{shows}" style="max-width: 100%; display: inline-block">'
