"""The browser's messages about the two lists of feedback images, and the answers.

The lists live in the page, as lines of hashes and weights; nothing is remembered between two messages, so every
browser tab has its own lists. Images come as data URLs: the browser never names a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.pictures.composites import REFUSAL, Composites
from lib_methods.pictures.store import ImageStore, is_image_id

from .feedback import MAX_IMAGES, FeedbackImage, format_images, parse_images
from .settings import FabricSettings

LISTS = ("likes", "dislikes")
NOT_UNDERSTOOD = "The page sent an invalid message. Reload the page."
_OTHER = {"likes": "dislikes", "dislikes": "likes"}


@dataclass(frozen=True)
class Outcome:
    """Both lists after a message, and the answer for the browser.

    likes, dislikes: lines of `feedback.format_images`.
    answer: JSON with the message's nonce, one image id (or null) per action, a note for the user, and "added": whether
        an image was put on a list.
    """

    likes: str
    dislikes: str
    answer: str


def answer_message(
    message: str, likes: str, dislikes: str, store: ImageStore, composites: Composites | None = None
) -> Outcome:
    """Do what a message of the browser asks.

    Args:
        message: JSON `{"nonce": text, "actions": [{"do": "add" | "remove" | "weight" | "clear" | "restore" | "replace",
            "list": "likes" | "dislikes", "image": data URL or hash, "id": hash, "weight": number, "images": line of
            `feedback.format_images`}]}`; which of the last four depends on the action. `"from": "page"` says that the
            image to add is one that the page shows, not a file of the user's: then grids are refused.
        likes, dislikes: the lists as the page carries them.
        composites: the grids that jobs have made.

    Never raises: an action that fails leaves the others alone, and the answer says why.
    """
    lists = {"likes": _lenient(likes, "likes"), "dislikes": _lenient(dislikes, "dislikes")}
    notes: list[str] = []
    ids: list[str | None] = []
    added = False
    nonce: Any = None
    try:
        parsed = json.loads(message)
        nonce = parsed["nonce"]
        actions = list(parsed["actions"])
    except (ValueError, TypeError, KeyError, RecursionError):
        actions = []
        notes.append(NOT_UNDERSTOOD)
    for action in actions:
        try:
            ids.append(_act(action, lists, store, composites, notes))
            added = added or (isinstance(action, dict) and action.get("do") == "add")
        except SettingsError as error:
            ids.append(None)
            if str(error) not in notes:
                notes.append(str(error))
    answer = {"nonce": nonce if isinstance(nonce, str) else None, "ids": ids, "note": " ".join(notes), "added": added}
    return Outcome(format_images(lists["likes"]), format_images(lists["dislikes"]), json.dumps(answer))


def _act(
    action: Any,
    lists: dict[str, tuple[FeedbackImage, ...]],
    store: ImageStore,
    composites: Composites | None,
    notes: list[str],
) -> str | None:
    """Changes `lists`, adds to `notes` what the user should know, and returns the id of the image it was about."""
    if not isinstance(action, Mapping) or action.get("list") not in LISTS:
        raise SettingsError(NOT_UNDERSTOOD)
    name: str = action["list"]
    images = lists[name]
    kind = action.get("do")
    if kind == "clear":
        lists[name] = ()
        return None
    if kind in ("restore", "replace"):
        line = action.get("images")
        if not isinstance(line, str):
            raise SettingsError(NOT_UNDERSTOOD)
        named: dict[str, Any] = {name: parse_images(line, name, None)}
        if kind == "replace":
            lists |= named
            return None
        found, dropped = FabricSettings(**named).without_missing(store, skip=True)
        restored: tuple[FeedbackImage, ...] = getattr(found, name)
        kept = {image.image_id: image for image in (*restored, *images)}
        if len(kept) > MAX_IMAGES:
            raise SettingsError(f"The list is full ({MAX_IMAGES} images). Remove one first.")
        lists[name] = tuple(kept.values())
        lists[_OTHER[name]] = tuple(image for image in lists[_OTHER[name]] if image.image_id not in kept)
        notes.extend(dropped)
        return None
    if kind == "add":
        if len(images) >= MAX_IMAGES:
            raise SettingsError(f"The list is full ({MAX_IMAGES} images). Remove one first.")
        source = action.get("image")
        if not isinstance(source, str):
            raise SettingsError("The image did not arrive. Try again.")
        if is_image_id(source) and store.exists(source):
            added = store.find(source)
        else:
            opened = store.open(source)
            if composites is not None and action.get("from") == "page" and composites.holds(opened):
                raise SettingsError(REFUSAL)
            added = store.add(opened)
        if all(image.image_id != added for image in images):
            lists[name] = (*images, FeedbackImage(added))
        # one image cannot be wanted and unwanted at once: the last click counts
        lists[_OTHER[name]] = tuple(image for image in lists[_OTHER[name]] if image.image_id != added)
        return added
    chosen = action.get("id")
    if not is_image_id(chosen):
        raise SettingsError("A feedback image is named by its hash, not by a file name or path.")
    if kind == "remove":
        lists[name] = tuple(image for image in images if image.image_id != chosen)
        return chosen
    if kind == "weight":
        weight = action.get("weight")
        if not isinstance(weight, (int, float)):
            raise SettingsError("The weight of a feedback image must be a number from 0 to 4.")
        lists[name] = tuple(replace(image, weight=weight) if image.image_id == chosen else image for image in images)
        return chosen
    raise SettingsError(NOT_UNDERSTOOD)


def _lenient(line: str, name: str) -> tuple[FeedbackImage, ...]:
    """A list as the page carries it; one that was damaged on the way counts as empty."""
    try:
        return parse_images(line if isinstance(line, str) else "", name, None)
    except SettingsError:
        return ()
