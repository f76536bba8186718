"""The tab: the photos and the form on one side, the run as HTML that every gradio version shows alike on the other."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lib_methods.dreambooth.photos.image import read_small
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.tab.curve import curve_svg
from lib_methods.errors import UserError
from lib_methods.jobs.job import State
from lib_methods.jobs.log import Progress, Sample, duration, number
from lib_methods.jobs.page import aside_html, bar_html, data_url, headline, notes_html, warnings_html
from lib_methods.webui.gradio_compat import (
    HIDDEN_CLASS,
    follow_changes,
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

if TYPE_CHECKING:
    from lib_methods.dreambooth.tab.handlers import TabHandlers

ROWS = (
    ("name", "identifier"),
    ("steps", "rate", "batch_size", "resolution"),
    ("train_text", "convolutions", "rank"),
    ("prior", "class_images", "prior_weight"),
    ("captions", "masks", "flip", "select_best"),
    ("sample_every", "save_every", "seed"),
    ("memory", "precision", "optimizer", "saved_as"),
)
"""Controls with good defaults, side by side."""
SECOND = "second_"
FILES = ("class_photos", "second_photos")
CONTROLS = (
    *("class_noun", "base", "kind", *(name for row in ROWS for name in row), "sample_prompts"),
    *("continue_from", "also_plain", "caption_dropout", "noise_offset"),
    *("second_class_noun", "second_identifier", *FILES),
)
"""The form: settings by name, files, and the second subject's."""
REFRESH = "\U0001f504"
FILE_TYPES = ["image", ".heic", ".heif", ".avif", ".txt", ".caption", ".json"]
PHOTOS = "3 to 5 photos of one subject (captions as .txt and masks as NAME.mask.png may come along)"


def build_tab(on: TabHandlers, tool_button: Callable[..., Any]) -> Any:
    """The tab as a `gr.Blocks`. tool_button: the host's small button."""
    form = Widgets(Table("DreamBooth", TrainingSettings), "dreambooth")
    made = form.made

    def beside(
        name: str, label: str, choices: list[str], value: str | None, refresh: str, again: Any, info: str | None = None
    ) -> None:
        """A dropdown of the host's files, with a button that looks at the disk again."""
        with gr.Row(elem_classes=["steer-beside"]):
            made[name] = unsaved(gr.Dropdown(choices, value=value, info=info, **_named(name, label)))
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
                told = "a checkpoint, or a pixel cascade in models/cascade"
                loaded = on.lists.loaded() or None
                beside("base", "Base model", on.base_names(), loaded, "refresh", on.bases, told)
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
                        form.add("also_plain", "caption_dropout", "noise_offset")
                        label = "Your own class images (regularisation images), used as they are"
                        made["class_photos"] = _files("class_photos", label)
                        with gr.Row():
                            label = "A second subject: what is it?"
                            made["second_class_noun"] = _text("second_class_noun", label, "empty: none")
                            made["second_identifier"] = _text("second_identifier", "Its rare word", "empty: chosen")
                        made["second_photos"] = _files("second_photos", "Photos of the second subject")
                    with gr.Row(elem_classes=["steer-beside"]):
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
        form_boxes = [files, *controls]
        follow_changes(form_boxes, on.form, form_boxes, [line, shown], "dreamboothPhotos.uploaded")
    return tab


def _text(name: str, label: str, info: str, **more: Any) -> Any:
    return unsaved(gr.Textbox("", info=info, **_named(name, label), **more))


def _named(name: str, label: str) -> dict[str, str]:
    return {"label": label, "elem_id": f"dreambooth_{name}"}


def _files(name: str, label: str) -> Any:
    return unsaved(file_box(file_count="multiple", file_types=FILE_TYPES, height=140, **_named(name, label)))


# -- a run

MOST_SAMPLES = 6
SAMPLE_SIDE = 256
_UNITS = ((2**30, "GB"), (2**20, "MB"), (2**10, "KB"))


def state_html(state: State) -> str:
    """The panel beside the form: what happens, the plan, how far, the loss. The rest is `samples_html`."""
    record, progress = state.record, state.progress
    if record is None:
        return status_html("Nothing has been trained yet.")
    result = f" {record.result}: use it with “{record.usage}”." if record.result else ""
    parts = [headline(state, "Training", result)]
    if record.status == "done" and record.error:
        parts.append(status_html(record.error, problem=True))
    pace = number(progress.of("step").get("seconds_per_step"))
    took = record.ended - record.started if record.status == "done" else None
    parts.append(plan_html(progress.of("plan"), subject=progress.subject, pace=pace, took=took))
    if not record.is_over:
        phase = progress.of("phase")
        done = progress.step if progress.steps else number(phase.get("done")) or 0.0
        parts.append(bar_html(done, progress.steps or number(phase.get("total")) or 0.0))
        parts.append(aside_html("You can close this page: training continues."))
    parts.append(curve_svg(progress))
    return '<div class="steer-job-panel">' + "".join(parts) + "</div>"


def plan_html(
    plan: Mapping[str, Any],
    subject: str = "",
    pace: float | None = None,
    folded: bool = False,
    took: float | None = None,
) -> str:
    """Steps, time, memory and size of the result: a plan in the fields of the run's log. "" for an empty one.

    pace: seconds a step, where it is known better than the plan knows it. folded: the notes are behind a click. took:
    the seconds of a run that is over, beside which the estimate stays.
    """
    if not plan:
        return ""
    steps, seconds = number(plan.get("steps")), number(plan.get("seconds"))
    expected = f" (estimate: {duration(seconds)})" if seconds else ""
    seconds = pace * steps if pace and steps else seconds
    memory, result = number(plan.get("bytes")), number(plan.get("result_bytes"))
    estimated = bool(plan.get("estimated"))
    unknown = "known when it starts" if estimated else "known after the first steps"
    time = (
        "Time, estimated" if estimated and seconds else "Time",
        f"about {duration(seconds)}" if seconds else unknown,
    )
    entries = [
        ("Steps", f"{int(steps):,}" if steps else ""),
        time if took is None else ("Time", duration(took) + expected),
        ("Memory", f"about {size(memory)}" if memory else ""),
        ("Result", f"about {size(result)}" if result else ""),
        ("Subject", subject),
        ("On", str(plan.get("device") or "")),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in entries if text)
    listed = plan.get("notes")
    said = notes_html(listed) if isinstance(listed, list) else ""
    if folded and said:
        said = f'<details class="steer-dreambooth-fold"><summary>How it is trained</summary>{said}</details>'
    return f'<dl class="steer-dreambooth-plan">{cells}</dl>{said}'


def samples_html(progress: Progress) -> str:
    """The sample images, a row for each prompt and a column for each step, the newest first, of many steps only the
    first and the last ones; then the warnings."""
    samples = progress.samples
    shown = samples if len(samples) <= MOST_SAMPLES else [samples[0], *samples[-(MOST_SAMPLES - 1) :]]
    parts = [_grid_html(shown[::-1])] if shown else []
    parts.append(warnings_html(progress.warnings))
    return '<div class="steer-dreambooth-samples">' + "".join(parts) + "</div>" if any(parts) else ""


def _grid_html(samples: Sequence[Sample]) -> str:
    steps = "".join(f"<th scope='col'>Step {sample.step}</th>" for sample in samples)
    rows = ""
    for index, prompt in enumerate(samples[0].prompts):
        told = html.escape(prompt, quote=True)
        images = "".join(f"<td>{_sample_html(sample, index, told)}</td>" for sample in samples)
        rows += f"<tr><th scope='row' title='{told}'>{told}</th>{images}</tr>"
    return f"<table><thead><tr><td></td>{steps}</tr></thead><tbody>{rows}</tbody></table>"


def _sample_html(sample: Sample, index: int, told: str) -> str:
    try:
        file = sample.files[index]
        address = thumbnail(file, file.stat().st_mtime_ns)
    except (IndexError, OSError, UserError, ValueError):  # it is not there any more, or is being written
        return ""
    return f'<img src="{address}" alt="{told}" title="{told}">'


@lru_cache(maxsize=128)
def thumbnail(file: Path, modified: int) -> str:
    """An image, small, as data URL. `modified` is part of the key, so that a file that changed is read again."""
    return data_url(read_small(file, SAMPLE_SIDE))


def photos_html(files: Sequence[Path]) -> str:
    """The dropped photos, small, so that one sees that they are the right ones."""
    shown = []
    for file in files[:12]:
        try:
            shown.append(f'<img src="{thumbnail(file, file.stat().st_mtime_ns)}" alt="">')
        except (OSError, UserError, ValueError):
            continue
    more = f"<span>and {len(files) - 12} more</span>" if len(files) > 12 else ""
    return f'<div class="steer-dreambooth-photos">{"".join(shown)}{more}</div>' if shown else ""


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit, name in _UNITS:
        if count >= unit:
            value = count / unit
            return f"{value:.1f} {name}" if value < 100 else f"{value:.0f} {name}"
    return f"{int(count)} bytes"
