"""A method's controls on the page, made from their table."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import gradio as gr

from lib_methods.checks import SettingsError
from lib_methods.pictures import store as images
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.controls import Control
from lib_methods.webui.gradio_compat import hidden_row, hidden_textbox, listen, unsaved
from lib_methods.webui.image_box import image_box
from lib_methods.webui.table import Table


def status_html(text: str, problem: bool = False, checkpoint: str = "") -> str:
    """The line, or what is wrong, as HTML that every gradio version shows in the same way; classes of style.css.

    checkpoint: the title of one that would help; a button chooses it (status.js).
    """
    role = "alert" if problem else "status"
    kind = " steer-problem" if problem else ""
    line = html.escape(text)
    if checkpoint:
        name = PurePath(checkpoint.rpartition(" [")[0] or checkpoint).stem
        title, shown = html.escape(checkpoint), html.escape(f"Switch to {name}")
        line += f' <button type="button" class="steer-switch" data-checkpoint="{title}">{shown}</button>'
    return f'<div class="steer-status{kind}" role="{role}">{line}</div>'


class Widgets:
    """The components of one tab, by the names of the table. elem_id: of the method's accordion in this tab. first: what
    controls hold at first, where that is not their default.

    Boxes with images are hidden and stand first, before the accordion: what fills them must work while it is closed.
    """

    def __init__(self, table: Table, elem_id: str, first: Mapping[str, Any] | None = None) -> None:
        self.table, self.elem_id, self.first = table, elem_id, first or {}
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.made[name]

    def controls(self) -> list[Any]:
        """The components in the order of the table, the switch first. What nobody placed is made out of sight."""
        left = [name for name in self.table.names if name not in self.made]
        if left:
            with hidden_row():
                for name in left:
                    unsaved(self.add(name))
        return [self.made[name] for name in self.table.names]

    def add(self, *names: str, visible: bool = True) -> Any:
        """Place a control, or several side by side; returns the last one."""
        if len(names) == 1 and visible:
            return self._make(self.table[names[0]])
        with gr.Row(visible=visible):
            return [self._make(self.table[name]) for name in names][-1]

    def accordion(self, label: str, name: str = "more") -> AbstractContextManager[Any]:
        """A closed accordion inside the method's, for more controls."""
        made: AbstractContextManager[Any] = gr.Accordion(label, open=False, elem_id=f"{self.elem_id}_{name}")
        return made

    def buttons(self, **labels: str) -> Sequence[Any]:
        """Small buttons side by side, by the names in their ids."""
        with gr.Row():
            return [gr.Button(text, size="sm", elem_id=f"{self.elem_id}_{name}") for name, text in labels.items()]

    def image(
        self, name: str, label: str, store: ImageStore, status: Any, *, kind: str = "image", switch: Any = None
    ) -> None:
        """A box that takes an image in, what is held now, and a button that removes it.

        name: of the hidden control that holds the image's hash. kind: "image" or "mask". status: the line, for the
        sentence where the image cannot be used. switch: is ticked when an image comes.
        """
        held = self[name]
        with gr.Row():
            box = unsaved(image_box(label=label, height=220, elem_id=f"{self.elem_id}_{name}_upload"))
            shown = gr.HTML("", elem_id=f"{self.elem_id}_{name}_preview")
        remove = gr.Button(f"Remove {kind}", size="sm", elem_id=f"{self.elem_id}_{name}_clear")

        def receive(image: Any, kept: str, *on: bool) -> list[Any]:
            return received(image, kept, store, kind == "mask", *on)

        switches = [] if switch is None else [switch]
        listen(box.change, receive, [box, held, *switches], [box, held, status, *switches])
        listen(remove.click, lambda: "", [], [held])
        listen(held.change, lambda line: preview(line, store, kind), [held], [shown])

    def _make(self, control: Control) -> Any:
        shown: dict[str, Any] = {"label": control.label, "elem_id": f"{self.elem_id}_{control.name}"}
        if control.images is not None:
            made = hidden_textbox(**shown)
        else:
            shown["info"] = control.help or None
            control = replace(control, default=self.first.get(control.name, control.default))
            made = _MAKERS[control.kind](control, shown)
        self.made[control.name] = made if control.kept else unsaved(made)
        return made


def received(image: Any, kept: str, store: ImageStore, as_mask: bool, *on: bool) -> list[Any]:
    """An upload box was changed: the box (empty again), the hash that is held, the status line where the image cannot
    be used, and the switch, on if an image came."""
    name, problem = images.received(image, kept, store, as_mask=as_mask)
    line = status_html(problem, problem=True) if problem else gr.update()
    return [None, name, line, *(switch or (image is not None and not problem) for switch in on)]


def preview(line: str, store: ImageStore, kind: str) -> str:
    """The images of a line of hashes, small, as HTML that every gradio version shows in the same way."""
    try:
        names = [images.picture_name(name, "", kind, None) for name in (line or "").split()]
    except SettingsError:
        return ""
    return "".join(images.preview(store, name, kind) for name in names)


_MAKERS: dict[str, Any] = {
    "slider": lambda control, shown: gr.Slider(
        control.low, control.end or control.high, value=control.default, step=control.step, **shown
    ),
    "number": lambda control, shown: gr.Number(control.default, precision=0 if control.whole else None, **shown),
    "checkbox": lambda control, shown: gr.Checkbox(control.default, **shown),
    "radio": lambda control, shown: gr.Radio(list(control.choices), value=control.default, **shown),
    "dropdown": lambda control, shown: gr.Dropdown(list(control.choices), value=control.default, **shown),
    "text": lambda control, shown: gr.Textbox(
        value=control.default, placeholder=control.example, lines=control.lines, **shown
    ),
}
