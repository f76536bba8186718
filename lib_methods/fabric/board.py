"""The two lists of feedback images, as HTML that every gradio version shows alike.

Images are small data URLs, so that no file of the server must be reachable. The browser's half is
javascript/fabric.js; it finds its elements by class and by `data-` attributes only.
"""

from __future__ import annotations

import html

from lib_methods.checks import SettingsError
from lib_methods.pictures.store import ImageStore
from lib_methods.pictures.thumbnail import thumbnail

from .feedback import MAX_WEIGHT, FeedbackImage, parse_images

THUMBNAIL_SIDE = 144
_TITLES = {"likes": ("👍", "Likes", "more like these"), "dislikes": ("👎", "Dislikes", "less like these")}
_PANEL = """\
<section class="steer-fabric-panel steer-fabric-{name}" data-fabric-list="{name}" tabindex="0"
 aria-label="{title}: drop or paste images here"><header>
<span class="steer-fabric-title">{heading} <small>{meaning}</small></span><span class="steer-fabric-tools">
<label class="steer-fabric-upload"
 title="Add images from your computer. You can also drop or paste them here.">+ Add<input
 type="file" accept="image/*" multiple aria-label="Add images to {title}"></label>{clear}</span></header>
<div class="steer-fabric-cards">{cards}</div>{empty}</section>"""
_CLEAR = """\
<button type="button" class="steer-fabric-clear" title="Remove all images from this list">Clear</button>"""
_EMPTY = '<p class="steer-fabric-empty">Press {emoji} on an image you made, or drop images here.</p>'
_CARD = """\
<figure class="steer-fabric-card{kind}" data-fabric-id="{id}">{picture}
<button type="button" class="steer-fabric-remove" title="Remove from this list" aria-label="Remove {label}">✕</button>
<label class="steer-fabric-weight" title="How much this image counts compared to the others, 0 to {top}">weight<input
 type="number" min="0" max="{top}" step="0.1" value="{weight}" aria-label="Weight of {label}"></label></figure>"""
_MISSING = """\
<span class="steer-fabric-missing" title="This image is not on this machine. It will be left out.">missing</span>"""


def board_html(likes: str, dislikes: str, store: ImageStore, tab: str) -> str:
    """Both lists with remove, clear, weights and upload.

    Args:
        likes, dislikes: lines of `feedback.format_images`.
        tab: "txt2img" or "img2img"; the browser's half must know which lists it is looking at.
    """
    panels = "".join(_panel(name, line, store) for name, line in (("likes", likes), ("dislikes", dislikes)))
    return f'<div class="steer-fabric-board" data-fabric-tab="{html.escape(tab)}">{panels}</div>'


def _panel(name: str, line: str, store: ImageStore) -> str:
    emoji, title, meaning = _TITLES[name]
    try:
        images = parse_images(line, name, None)
    except SettingsError:
        images = ()
    return _PANEL.format(
        name=name,
        title=title,
        heading=f"{emoji} {title}" + (f" <b>{len(images)}</b>" if images else ""),
        meaning=meaning,
        clear=_CLEAR if images else "",
        cards="".join(_card(f"{name[:-1]} {position}", image, store) for position, image in enumerate(images, 1)),
        empty="" if images else _EMPTY.format(emoji=emoji),
    )


def _card(label: str, image: FeedbackImage, store: ImageStore) -> str:
    try:
        url = thumbnail(store, image.image_id, THUMBNAIL_SIDE)
        picture, shown = f'<img src="{url}" alt="{label}" draggable="false">', True
    except (OSError, SettingsError):
        picture, shown = _MISSING, False
    return _CARD.format(
        label=label,
        id=image.image_id,
        kind="" if shown and image.weight > 0 else " steer-fabric-weightless",
        picture=picture,
        weight=f"{image.weight:g}",
        top=f"{MAX_WEIGHT:g}",
    )
