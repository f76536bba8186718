"""The tab: the photos and the form on one side, what happens on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import gradio as gr

from lib_methods.dreambooth.tab.handlers import TabHandlers
from lib_methods.dreambooth.tab.request import ADVANCED, CONTROLS, DEFAULTS, MAIN, MORE, Control, Row
from lib_methods.webui.gradio_compat import (
    HIDDEN_CLASS,
    follow,
    hidden_row,
    hidden_textbox,
    listen,
    listen_then,
    look,
    unsaved,
)
from lib_methods.webui.image_box import file_box
from lib_methods.webui.status import status_html

REFRESH = "\U0001f504"
FILE_TYPES = ["image", ".heic", ".heif", ".avif", ".txt", ".caption", ".json"]
PHOTOS = "3 to 5 photos of one subject (captions as .txt and masks as NAME.mask.png may come along)"


def build_tab(on: TabHandlers, tool_button: Callable[..., Any]) -> Any:
    """The tab as a `gr.Blocks`. tool_button: the host's small button."""
    made: dict[str, Any] = {}
    form = _Form(on, tool_button, made)
    with gr.Blocks(analytics_enabled=False) as tab:
        with hidden_row():
            seen = hidden_textbox("Seen", "dreambooth_seen")
            usage = hidden_textbox("Usage", "dreambooth_usage")
            poll = gr.Button("Look", elem_id="dreambooth_poll", elem_classes=[HIDDEN_CLASS])
        with gr.Row(elem_id="dreambooth_columns"):
            with gr.Column(elem_id="dreambooth_form"):
                files = _files("photos", PHOTOS)
                shown = gr.HTML("", elem_id="dreambooth_photos_shown")
                form.rows(MAIN)
                train = gr.Button("Train", variant="primary", elem_id="dreambooth_train")
                line = gr.HTML(on.form(None)[0], elem_id="dreambooth_line")
                with gr.Accordion("More", open=False, elem_id="dreambooth_more"):
                    form.rows(MORE)
                    with gr.Accordion("Advanced", open=False, elem_id="dreambooth_advanced"):
                        form.rows(ADVANCED)
                    with gr.Row(elem_classes=["steer-dreambooth-beside"]):
                        earlier = unsaved(gr.Dropdown([], label="Unfinished runs", elem_id="dreambooth_earlier"))
                        find = tool_button(value=REFRESH, elem_id="dreambooth_unfinished")
                        go_on = gr.Button("Resume it", elem_id="dreambooth_resume_earlier")
            with gr.Column(elem_id="dreambooth_result"):
                panel = gr.HTML(status_html("Nothing has been trained yet."), elem_id="dreambooth_panel")
                with gr.Row(elem_id="dreambooth_buttons"):
                    cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="dreambooth_cancel")
                    resume = gr.Button("Resume", visible=False, elem_id="dreambooth_resume")
                    use = gr.Button("Use it now", variant="primary", visible=False, elem_id="dreambooth_use")
                samples = gr.HTML("", elem_id="dreambooth_samples")
        controls = [made[name] for name in CONTROLS]
        outputs = [panel, samples, train, cancel, resume, use, seen]
        listen(train.click, on.train, [files, *controls], [line, *outputs])
        listen(cancel.click, on.cancel, [], [line, *outputs])
        listen(resume.click, on.resume, [], [line, *outputs])
        listen(go_on.click, on.resume, [earlier], [line, *outputs])
        listen_then(use.click, on.use, [], [line, usage], "(line, usage) => dreamboothPage.use(usage)")
        look(poll.click, on.look, [seen], outputs)
        listen(find.click, on.unfinished, [], [earlier])
        for component in (files, *controls):
            follow(component.change, on.form, [files, *controls], [line, shown], "dreamboothPhotos.uploaded")
    return tab


class _Form:
    """Makes the components of the controls, by name in `made`."""

    def __init__(self, on: TabHandlers, tool_button: Callable[..., Any], made: dict[str, Any]) -> None:
        self.on, self.tool_button, self.made = on, tool_button, made

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            with gr.Row() if len(row) > 1 else nullcontext():
                for control in row:
                    self.made[control.name] = self._component(control)

    def _component(self, control: Control) -> Any:
        common: dict[str, Any] = {"label": control.label, "elem_id": f"dreambooth_{control.name}"}
        if control.kind == "files":
            return _files(control.name, control.label)
        if control.kind == "switch":
            return gr.Checkbox(DEFAULTS[control.name], **common)
        if control.kind == "slider":
            low, high, step = control.values
            return gr.Slider(low, high, value=DEFAULTS[control.name], step=step, **common)
        common["info"] = control.info
        if control.kind == "text":  # belongs to one training run: the host does not remember it
            return unsaved(gr.Textbox("", placeholder=control.example, lines=control.lines, **common))
        if control.kind in ("whole", "number"):
            precision = 0 if control.kind == "whole" else None
            return gr.Number(DEFAULTS[control.name], precision=precision, minimum=0, **common)
        if control.kind in ("choice", "radio"):
            kind = gr.Dropdown if control.kind == "choice" else gr.Radio
            return kind(list(control.values), value=DEFAULTS[control.name], **common)
        return self._list_of_host(control.kind, common)

    def _list_of_host(self, kind: str, common: dict[str, Any]) -> Any:
        """A dropdown of checkpoints or LoRAs, with a button that looks at the disk again."""
        lists = self.on.lists
        bases = kind == "checkpoint"
        choices, value = (lists.checkpoints(), lists.loaded() or None) if bases else (["", *lists.loras()], "")
        with gr.Row(elem_classes=["steer-dreambooth-beside"]):
            found = unsaved(gr.Dropdown(choices, value=value, **common))
            button = self.tool_button(value=REFRESH, elem_id=f"dreambooth_refresh{'' if bases else '_loras'}")
        listen(button.click, self.on.bases if bases else self.on.loras, [], [found])
        return found


def _files(name: str, label: str) -> Any:
    box = file_box(label=label, file_count="multiple", file_types=FILE_TYPES, elem_id=f"dreambooth_{name}", height=140)
    return unsaved(box)
