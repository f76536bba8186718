"""The DreamBooth tab: photos of a subject in, a LoRA or a checkpoint that draws it out. What it does is in
lib_methods/dreambooth.

API, where the host offers one: `/dreambooth/v1/status`, `/plan`, `/start`, `/cancel`, `/resume` and `/use`, see
lib_methods/dreambooth/tab/api.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from modules import paths, script_callbacks, scripts, shared, ui_components

from lib_methods.dreambooth.tab.api import add_routes
from lib_methods.dreambooth.output.delivery import deliver_to
from lib_methods.jobs.job import Trainings
from lib_methods.dreambooth.tab.request import CONTROLS, DEFAULTS
from lib_methods.dreambooth.settings import KINDS, OPTIMIZERS, PRECISIONS, PRIORS, SAVED_AS
from lib_methods.dreambooth.tab.handlers import TabHandlers
from lib_methods.hosts import models, training
from lib_methods.hosts.training import device_environment, room_of_host
from lib_methods.webui.door import Door
from lib_methods.webui.gradio_compat import (
    HIDDEN_CLASS,
    follow,
    hidden_row,
    hidden_textbox,
    listen,
    listen_then,
    look,
    unsaved,
    warn,
)
from lib_methods.webui.image_box import file_box
from lib_methods.webui.status import status_html

TITLE = "DreamBooth"
REFRESH = "\U0001f504"
FILE_TYPES = ["image", ".heic", ".heif", ".avif", ".txt", ".caption", ".json"]
ROOM = room_of_host()
HANDLERS = TabHandlers(
    Trainings.in_folder(Path(paths.data_path) / "dreambooth", ROOM, deliver_to(models.folder_of), device_environment()),
    models,
    training,
)


class DreamBoothScript(scripts.Script):
    """No controls: a job that comes while a training has the device gets the model back, or is told why not."""

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        return []

    def before_process(self, p: Any, *args: Any) -> None:
        sentence = ROOM.before_job()
        if sentence:
            p.comment(f"{TITLE}: {sentence}")
            if not getattr(p, "is_api", False):
                warn(f"{TITLE}: {sentence}")
            shared.state.interrupt()


def make_tab() -> list[tuple[Any, str, str]]:
    """The tab, as the host's callback wants it."""
    made: dict[str, Any] = {}
    with gr.Blocks(analytics_enabled=False) as tab:
        with hidden_row():
            seen = hidden_textbox("Seen", "dreambooth_seen")
            usage = hidden_textbox("Usage", "dreambooth_usage")
            poll = gr.Button("Look", elem_id="dreambooth_poll", elem_classes=[HIDDEN_CLASS])
        with gr.Row(elem_id="dreambooth_columns"):
            with gr.Column(elem_id="dreambooth_form"):
                files = _photos()
                shown = gr.HTML("", elem_id="dreambooth_photos_shown")
                _main(made)
                train = gr.Button("Train", variant="primary", elem_id="dreambooth_train")
                line = gr.HTML(HANDLERS.form(None)[0], elem_id="dreambooth_line")
                with gr.Accordion("More", open=False, elem_id="dreambooth_more"):
                    _more(made)
                    with gr.Accordion("Advanced", open=False, elem_id="dreambooth_advanced"):
                        _advanced(made)
                    with gr.Row(elem_classes=["dreambooth-beside"]):
                        earlier = unsaved(gr.Dropdown([], label="Unfinished trainings", elem_id="dreambooth_earlier"))
                        find = ui_components.ToolButton(value=REFRESH, elem_id="dreambooth_unfinished")
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
        listen(train.click, HANDLERS.train, [files, *controls], [line, *outputs])
        listen(cancel.click, HANDLERS.cancel, [], [line, *outputs])
        listen(resume.click, HANDLERS.resume, [], [line, *outputs])
        listen(go_on.click, HANDLERS.resume, [earlier], [line, *outputs])
        listen_then(use.click, HANDLERS.use, [], [line, usage], "(line, usage) => dreamboothPage.use(usage)")
        listen(made["refresh"].click, HANDLERS.bases, [], [made["base"]])
        listen(made["refresh_loras"].click, HANDLERS.loras, [], [made["continue_from"]])
        look(poll.click, HANDLERS.look, [seen], outputs)
        listen(find.click, HANDLERS.unfinished, [], [earlier])
        for component in (files, *controls):
            follow(component.change, HANDLERS.form, [files, *controls], [line, shown], "dreamboothPhotos.uploaded")
    return [(tab, TITLE, "dreambooth")]


def _photos() -> Any:
    return unsaved(
        file_box(
            label="3 to 5 photos of one subject (captions as .txt and masks as NAME.mask.png may come along)",
            file_count="multiple",
            file_types=FILE_TYPES,
            elem_id="dreambooth_photos",
            height=140,
        )
    )


def _main(made: dict[str, Any]) -> None:
    """What every training must be told."""
    made["class_noun"] = _text(
        "class_noun", "What is it?", "the class of the subject, in one or two words", "dog, coffee mug, person ..."
    )
    with gr.Row(elem_classes=["dreambooth-beside"]):
        made["base"] = unsaved(
            gr.Dropdown(
                models.checkpoints(),
                value=models.loaded() or None,
                label="Base model",
                elem_id="dreambooth_base",
            )
        )
        made["refresh"] = ui_components.ToolButton(value=REFRESH, elem_id="dreambooth_refresh")
    made["kind"] = gr.Radio(
        list(KINDS),
        value=DEFAULTS["kind"],
        label="What to make",
        info="LoRA: a small file beside the model. full: a whole new checkpoint, closer to the subject.",
        elem_id="dreambooth_kind",
    )


def _more(made: dict[str, Any]) -> None:
    """What has a good default."""
    with gr.Row():
        made["name"] = _text("name", "Name of the result", "empty: from the class")
        made["identifier"] = _text("identifier", "Rare word", "stands for the subject; empty: chosen")
    with gr.Row():
        made["steps"] = _number("steps", "Steps", "0: from the photos")
        made["rate"] = _number("rate", "Learning rate", "0: from the kind", precision=None)
        made["batch_size"] = _number("batch_size", "Batch size", "photos a step")
        made["resolution"] = _number("resolution", "Resolution", "0: the model's own")
    with gr.Row():
        made["train_text"] = _switch("train_text", "Train the text encoder, too")
        made["convolutions"] = _switch("convolutions", "LoRA on convolutions, too")
        made["rank"] = _slider("rank", "LoRA rank", 1, 128, 1)
    with gr.Row():
        made["prior"] = _choice("prior", "Prior preservation", PRIORS, "keeps the class what it was")
        made["class_images"] = _number("class_images", "Class images", "how many are drawn beforehand")
        made["prior_weight"] = _slider("prior_weight", "Prior weight", 0.0, 3.0, 0.05)
    with gr.Row():
        made["captions"] = _switch("captions", "Captions")
        made["masks"] = _switch("masks", "Masks")
        made["flip"] = _switch("flip", "Mirrored photos, too")
        made["select_best"] = _switch("select_best", "Keep the best, not the last")
    with gr.Row():
        made["sample_every"] = _number("sample_every", "Samples every", "steps; 0: chosen")
        made["save_every"] = _number("save_every", "Keep a copy every", "steps; 0: none")
        made["seed"] = _number("seed", "Seed", "the same one trains the same")
    made["sample_prompts"] = _text(
        "sample_prompts",
        "Sample prompts, one a line",
        "{subject} stands for rare word and class; empty: chosen",
        "a photo of {subject} on the beach",
        lines=2,
    )
    with gr.Row():
        made["memory"] = _number("memory", "Memory, GB", "0: what the device has", precision=None)
        made["precision"] = _choice("precision", "Precision", PRECISIONS)
        made["optimizer"] = _choice("optimizer", "Optimizer", OPTIMIZERS)
        made["saved_as"] = _choice("saved_as", "Result's precision", SAVED_AS)


def _advanced(made: dict[str, Any]) -> None:
    """What people know from other trainers."""
    with gr.Row(elem_classes=["dreambooth-beside"]):
        made["continue_from"] = unsaved(
            gr.Dropdown(
                ["", *models.loras()],
                value="",
                label="Continue from a LoRA",
                info="its rank and layers are kept; empty: start a new one",
                elem_id="dreambooth_continue_from",
            )
        )
        made["refresh_loras"] = ui_components.ToolButton(value=REFRESH, elem_id="dreambooth_refresh_loras")
    with gr.Row():
        made["caption_dropout"] = _slider("caption_dropout", "Caption dropout", 0.0, 1.0, 0.05)
        made["noise_offset"] = _slider("noise_offset", "Noise offset", 0.0, 0.2, 0.005)
    made["class_photos"] = _files("class_photos", "Your own class images (regularisation images), used as they are")
    with gr.Row():
        made["second_class_noun"] = _text(
            "second_class_noun", "A second subject: what is it?", "empty: none", "mug ..."
        )
        made["second_identifier"] = _text("second_identifier", "Its rare word", "empty: chosen")
    made["second_photos"] = _files("second_photos", "Photos of the second subject")


def _files(name: str, label: str) -> Any:
    return unsaved(
        file_box(label=label, file_count="multiple", file_types=FILE_TYPES, elem_id=f"dreambooth_{name}", height=140)
    )


def _text(name: str, label: str, info: str, example: str = "", lines: int = 1) -> Any:
    """A text that belongs to one training, which the host does not remember."""
    elem_id = f"dreambooth_{name}"
    return unsaved(gr.Textbox("", label=label, info=info, placeholder=example, lines=lines, elem_id=elem_id))


def _number(name: str, label: str, info: str, precision: int | None = 0) -> Any:
    elem_id = f"dreambooth_{name}"
    return gr.Number(DEFAULTS[name], label=label, info=info, precision=precision, minimum=0, elem_id=elem_id)


def _slider(name: str, label: str, low: float, high: float, step: float) -> Any:
    return gr.Slider(low, high, value=DEFAULTS[name], step=step, label=label, elem_id=f"dreambooth_{name}")


def _switch(name: str, label: str) -> Any:
    return gr.Checkbox(DEFAULTS[name], label=label, elem_id=f"dreambooth_{name}")


def _choice(name: str, label: str, choices: tuple[str, ...], info: str | None = None) -> Any:
    return gr.Dropdown(list(choices), value=DEFAULTS[name], label=label, info=info, elem_id=f"dreambooth_{name}")


def _add_api(demo: Any, app: Any) -> None:
    if getattr(shared.cmd_opts, "api", False):
        add_routes(app, HANDLERS, Door.of_host(shared.cmd_opts))


script_callbacks.on_ui_tabs(make_tab)
script_callbacks.on_app_started(_add_api)
