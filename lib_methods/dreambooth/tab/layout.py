"""The tab: the photos and the form on one side, what happens on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.tab.handlers import CONTROLS, ROWS, TabHandlers
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
from lib_methods.webui.table import Table
from lib_methods.webui.widgets import Widgets, status_html

REFRESH = "\U0001f504"
FILE_TYPES = ["image", ".heic", ".heif", ".avif", ".txt", ".caption", ".json"]
PHOTOS = "3 to 5 photos of one subject (captions as .txt and masks as NAME.mask.png may come along)"


def build_tab(on: TabHandlers, tool_button: Callable[..., Any]) -> Any:
    """The tab as a `gr.Blocks`. tool_button: the host's small button."""
    form = Widgets(Table("DreamBooth", TrainingSettings), "dreambooth")
    made = form.made

    def beside(name: str, label: str, choices: list[str], value: str | None, refresh: str, again: Any) -> None:
        """A dropdown of the host's files, with a button that looks at the disk again."""
        with gr.Row(elem_classes=["steer-dreambooth-beside"]):
            made[name] = unsaved(gr.Dropdown(choices, value=value, **_named(name, label)))
            button = tool_button(value=REFRESH, elem_id=f"dreambooth_{refresh}")
        listen(button.click, again, [], [made[name]])

    with gr.Blocks(analytics_enabled=False) as tab:
        with hidden_row():
            seen = hidden_textbox("Seen", "dreambooth_seen")
            usage = hidden_textbox("Usage", "dreambooth_usage")
            poll = gr.Button("Look", elem_id="dreambooth_poll", elem_classes=[HIDDEN_CLASS])
        with gr.Row(elem_id="dreambooth_columns"):
            with gr.Column(elem_id="dreambooth_form"):
                files = _files("photos", PHOTOS)
                shown = gr.HTML("", elem_id="dreambooth_photos_shown")
                form.add("class_noun")
                beside("base", "Base model", on.lists.checkpoints(), on.lists.loaded() or None, "refresh", on.bases)
                form.add("kind")
                train = gr.Button("Train", variant="primary", elem_id="dreambooth_train")
                line = gr.HTML(on.form(None)[0], elem_id="dreambooth_line")
                with gr.Accordion("More", open=False, elem_id="dreambooth_more"):
                    for row in ROWS:
                        form.add(*row)
                    made["sample_prompts"] = _text(
                        "sample_prompts",
                        "Sample prompts, one per line",
                        "{subject} stands for rare word and class; empty: chosen",
                        placeholder="a photo of {subject} on the beach",
                        lines=2,
                    )
                    with gr.Accordion("Advanced", open=False, elem_id="dreambooth_advanced"):
                        loras = ["", *on.lists.loras()]
                        beside("continue_from", "Continue from a LoRA", loras, "", "refresh_loras", on.loras)
                        form.add("caption_dropout", "noise_offset")
                        label = "Your own class images (regularisation images), used as they are"
                        made["class_photos"] = _files("class_photos", label)
                        with gr.Row():
                            label = "A second subject: what is it?"
                            made["second_class_noun"] = _text("second_class_noun", label, "empty: none")
                            made["second_identifier"] = _text("second_identifier", "Its rare word", "empty: chosen")
                        made["second_photos"] = _files("second_photos", "Photos of the second subject")
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


def _text(name: str, label: str, info: str, **more: Any) -> Any:
    return unsaved(gr.Textbox("", info=info, **_named(name, label), **more))


def _named(name: str, label: str) -> dict[str, str]:
    return {"label": label, "elem_id": f"dreambooth_{name}"}


def _files(name: str, label: str) -> Any:
    return unsaved(file_box(file_count="multiple", file_types=FILE_TYPES, height=140, **_named(name, label)))
