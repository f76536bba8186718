"""FABRIC's page beyond its table of controls: the two lists, their messages from the browser, presets.

The lists are HTML that every gradio version shows in the same way, with small data URLs as images, so that no file of
the server must be reachable. The browser's half is javascript/fabric.js; it finds its elements by class and `data-`
attributes.

Handlers return values. Updates are for the presets' dropdown alone: gradio 6 builds a component anew for each update,
which components that a host derives from gradio's (the accordion with a switch) may not survive.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from lib_methods.checks import SettingsError
from lib_methods.fabric.feedback import MAX_WEIGHT, FeedbackImage, parse_images
from lib_methods.fabric.inbox import answer_message
from lib_methods.fabric.presets import PresetFolder
from lib_methods.fabric.settings import CONTROLS, ONE, STRENGTH, STRENGTH_OF_ONE
from lib_methods.pictures.composites import Composites
from lib_methods.pictures.store import ImageStore, thumbnail
from lib_methods.webui.gradio_compat import follow_changes, hidden_textbox, in_browser, listen, unsaved
from lib_methods.webui.widgets import Widgets, status_html

THUMBNAIL_SIDE = 144
SWITCH_ON = "(answer, enabled) => Boolean(enabled || JSON.parse(answer || '{}').added)"
"""A new image switches FABRIC on, in the browser: the switch may have been moved while Python answered."""
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


class PageHandlers:
    """Event handlers. Keeps no state: that is in the page.

    line: the line about what will happen, as HTML, from the values of all controls.
    """

    def __init__(
        self, store: ImageStore, presets: PresetFolder, composites: Composites, line: Callable[..., str]
    ) -> None:
        self.store, self.presets, self.composites, self.line = store, presets, composites, line

    def receive(self, message: str, likes: str, dislikes: str) -> list[Any]:
        """A message of the browser; returns likes, dislikes and outbox."""
        outcome = answer_message(message or "", likes or "", dislikes or "", self.store, self.composites)
        return [outcome.likes, outcome.dislikes, outcome.answer]

    def load_preset(self, name: Any, *values: Any) -> list[Any]:
        """All controls as the preset has them, or as they were, and the status line."""
        try:
            settings = self.presets.load(name)
        except SettingsError as error:
            return [*values, status_html(str(error), problem=True)]
        loaded = [True, *CONTROLS.values(settings).values()]
        return [*loaded, self.line(*loaded)]

    def save_preset(self, name: Any, *values: Any) -> list[Any]:
        """The dropdown with the new preset, and the status line."""
        try:
            clean = self.presets.clean_name(name)
            settings = CONTROLS.request([True, *values[1:]], self.store)
            settings, notes = settings.without_missing(self.store, skip=True)
            self.presets.save(clean, settings)
        except SettingsError as error:
            return [gr.update(), status_html(str(error), problem=True)]
        text = " ".join([f'Saved preset "{clean}".', *notes])
        return [gr.update(choices=list(self.presets.names()), value=clean), status_html(text, problem=bool(notes))]

    def suggest_strength(self, levels: Any, strength: Any) -> Any:
        """The strength that suits these reference levels, unless the user has set another."""
        mine, others = (STRENGTH_OF_ONE, STRENGTH) if levels == ONE else (STRENGTH, STRENGTH_OF_ONE)
        return mine if strength == others else strength

    def delete_preset(self, name: Any) -> list[Any]:
        """The dropdown without the preset, and the status line."""
        try:
            clean = self.presets.clean_name(name)
            deleted = self.presets.delete(clean)
        except SettingsError as error:
            return [gr.update(), status_html(str(error), problem=True)]
        text = f'Deleted preset "{clean}".' if deleted else f'There is no preset "{clean}".'
        return [gr.update(choices=list(self.presets.names()), value=None), status_html(text, problem=not deleted)]

    def refresh_presets(self) -> Any:
        """The dropdown's choices as they are on the disk now: the other tab may have saved one."""
        return gr.update(choices=list(self.presets.names()))


def add_mailboxes(widgets: Widgets) -> None:
    """What the browser and Python send each other. They stand outside of the accordion, as the 👍 in the gallery must
    work while that is closed."""
    for name in ("inbox", "outbox"):
        widgets.made[name] = hidden_textbox(name.capitalize(), f"{widgets.elem_id}_{name}")


def add_board(widgets: Widgets, store: ImageStore, tab: str) -> None:
    """Both lists. tab: "txt2img" or "img2img"."""

    def board(likes: str, dislikes: str) -> str:
        return board_html(likes or "", dislikes or "", store, tab)

    lists = [widgets["likes"], widgets["dislikes"]]
    shown = gr.HTML(board("", ""), elem_id=f"{widgets.elem_id}_board")
    follow_changes(lists, board, lists, [shown])


def add_presets(widgets: Widgets, handlers: PageHandlers) -> tuple[Any, ...]:
    """The dropdown of presets, and the buttons that load, save and delete one."""
    with gr.Row(elem_classes=["steer-fabric-presets"]):
        preset = unsaved(
            gr.Dropdown(
                list(handlers.presets.names()),
                value=None,
                label="Preset",
                info="type a name to save, choose one to load",
                allow_custom_value=True,
                elem_id=f"{widgets.elem_id}_preset",
                min_width=200,
                scale=3,
            )
        )
        return preset, *(gr.Button(text, size="sm", min_width=60) for text in ("Load", "Save", "Delete"))


def add_compare(widgets: Widgets) -> Any:
    """The button that generates once with and without the feedback images."""
    return gr.Button("Compare with and without", size="sm", elem_id=f"{widgets.elem_id}_compare_once")


def connect(
    widgets: Widgets, handlers: PageHandlers, status: Any, presets: tuple[Any, ...], once: Any, tab: str
) -> None:
    """Let messages, presets and the button of `add_compare` change the controls, all of which are there."""
    controls, (preset, load, save, delete) = widgets.controls(), presets
    lists = [widgets[name] for name in ("likes", "dislikes")]
    # not "input": gradio 6 raises that at key strokes only
    listen(widgets["inbox"].change, handlers.receive, [widgets["inbox"], *lists], [*lists, widgets["outbox"]])
    switch, outbox, compare = widgets["enabled"], widgets["outbox"], widgets["compare"]
    in_browser(outbox.change, SWITCH_ON, [outbox, switch], [switch])
    in_browser(once.click, "() => [true, true]", [], [switch, compare])
    in_browser(compare.change, f"(on) => on && fabricPage.generateOnce('{tab}')", [compare], [compare])
    levels, strength = widgets["reference_levels"], widgets["strength"]
    listen(levels.input, handlers.suggest_strength, [levels, strength], [strength])
    listen(load.click, handlers.load_preset, [preset, *controls], [*controls, status])
    listen(save.click, handlers.save_preset, [preset, *controls], [preset, status])
    listen(delete.click, handlers.delete_preset, [preset], [preset, status])
    listen(preset.focus, handlers.refresh_presets, [], [preset])
