"""The tab: what to generate on one side, the candidates and what became of them on the other."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lib_methods.cascade.candidate import read_candidate
from lib_methods.cascade.settings import CONTROLS
from lib_methods.errors import UserError
from lib_methods.jobs.job import State
from lib_methods.jobs.log import number
from lib_methods.jobs.page import aside_html, bar_html, data_url, headline, notes_html, warnings_html
from lib_methods.webui.gradio_compat import (
    HIDDEN_CLASS,
    TYPES_MANY,
    hidden_row,
    hidden_textbox,
    listen,
    listen_then,
    look,
    unsaved,
)
from lib_methods.webui.image_box import image_box
from lib_methods.webui.widgets import Widgets, status_html

if TYPE_CHECKING:
    from lib_methods.cascade.tab.handlers import TabHandlers

NAMES = CONTROLS.names[1:]
"""The form's controls, in the order of the values that handlers get."""
MORE = (
    ("seed", "steps", "guidance"),
    ("solver", "timesteps"),
    ("thresholding",),
    ("percentile", "upper_bound"),
    ("width", "height", "batch"),
)
STAGE_2 = (
    ("stage2_steps", "stage2_guidance"),
    ("stage2_noise_level", "stage2_seed"),
    ("stage2_solver", "stage2_timesteps"),
)
STAGE_3 = (("stage3_steps", "stage3_guidance"), ("stage3_noise_level", "stage3_seed"))
MEMORY = (("residence",), ("memory", "precision", "text_precision"))
STYLE = ("stage2_prompt", "stage2_negative_prompt", "stage3_prompt", "stage3_negative_prompt")
REFRESH = "\U0001f504"
NOTHING = "Nothing has been generated yet."
NEXT = "Generate makes small candidates. Tick the ones you like, then press Upscale ticked."
SIDE = 384  # pixels of the sheet's images, at most


def build_tab(on: TabHandlers, tool_button: Callable[..., Any]) -> Any:
    """The tab as a `gr.Blocks`. tool_button: the host's small button."""
    form, typed = Widgets(CONTROLS, "cascade"), on.paths and TYPES_MANY
    with gr.Blocks(analytics_enabled=False) as tab:
        with hidden_row():
            seen = hidden_textbox("Seen", "cascade_seen")
            ticked = unsaved(gr.Textbox("", label="Ticked", elem_id="cascade_ticked", lines=2, max_lines=2))
            parcel = hidden_textbox("Parcel", "cascade_parcel")
            poll = gr.Button("Look", elem_id="cascade_poll", elem_classes=[HIDDEN_CLASS])
            taken = hidden_textbox("Taken", "cascade_taken")
            take = gr.Button("Take", elem_id="cascade_take", elem_classes=[HIDDEN_CLASS])
        with gr.Row(elem_id="cascade_columns"):
            with gr.Column(elem_id="cascade_form"):
                with gr.Row(elem_classes=["steer-beside"]):
                    stages = unsaved(
                        gr.Dropdown(
                            on.stages(),
                            value=on.usual(),
                            multiselect=True,
                            allow_custom_value=typed,
                            label="Stages",
                            info="DeepFloyd IF's folders in models/cascade" + (", or their paths" if typed else ""),
                            elem_id="cascade_stages",
                        )
                    )
                    again = tool_button(value=REFRESH, elem_id="cascade_refresh")
                paths = unsaved(  # gradio 3 takes none in the list itself
                    gr.Textbox(
                        "",
                        label="Stages in other folders",
                        info="their paths, one per line; they replace the list above",
                        lines=2,
                        visible=on.paths and not TYPES_MANY,
                        elem_id="cascade_paths",
                    )
                )
                form.add("prompt")
                form.add("negative_prompt")
                form.add("count")
                generate = gr.Button("Generate", variant="primary", elem_id="cascade_generate")
                line = gr.HTML(status_html(NEXT), elem_id="cascade_line")
                with form.accordion("Change the style on the way up", "style"):
                    form.add(*STYLE[:2])
                    form.add(*STYLE[2:])
                with form.accordion("Start from an image", "source"):
                    with gr.Row():
                        image = unsaved(image_box(label="Image to change", height=220, elem_id="cascade_image"))
                        mask = unsaved(
                            image_box(label="Mask: change only where it is white", height=220, elem_id="cascade_mask")
                        )
                    form.add("strength", "stage2_strength")
                with form.accordion("More"):
                    _rows(form, MORE)
                    with form.accordion("Stage 2", "stage2"):
                        _rows(form, STAGE_2)
                    with form.accordion("Stage 3", "stage3"):
                        _rows(form, STAGE_3)
                    with form.accordion("Memory", "memory_more"):
                        _rows(form, MEMORY)
            with gr.Column(elem_id="cascade_result"):
                panel = gr.HTML(status_html(NOTHING), elem_id="cascade_panel")
                with gr.Row(elem_id="cascade_buttons"):
                    cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cascade_cancel")
                    resume = gr.Button("Resume", visible=False, elem_id="cascade_resume")
                with gr.Column(visible=False, elem_id="cascade_actions") as actions:
                    form.add("last_stage")
                    upscale = gr.Button("Upscale ticked", variant="primary", elem_id="cascade_upscale")
                    with gr.Row(elem_id="cascade_sends"):
                        sends = {
                            "img2img": gr.Button("Send to img2img", size="sm", elem_id="cascade_to_img2img"),
                            "extras": gr.Button("Send to Extras", size="sm", elem_id="cascade_to_extras"),
                            "likes": gr.Button("Like in FABRIC", size="sm", elem_id="cascade_to_likes"),
                        }
                sheet = gr.HTML("", elem_id="cascade_sheet")
        controls = [form[name] for name in NAMES]
        outputs = [panel, sheet, generate, cancel, resume, actions, seen]
        listen(again.click, on.refreshed, [stages], [stages])
        listen(take.click, on.take, [taken], [stages, paths, form["prompt"], line])
        listen(generate.click, on.generate, [stages, paths, image, mask, *controls], [line, *outputs])
        listen(upscale.click, on.upscale, [ticked, stages, paths, *controls], [line, *outputs])
        listen(cancel.click, on.cancel, [], [line, *outputs])
        listen(resume.click, on.resume, [], [line, *outputs])
        for target, button in sends.items():
            script = f"(line, parcel) => cascadePage.send('{target}', parcel)"
            listen_then(button.click, on.send, [ticked], [line, parcel], script)
        look(poll.click, on.look, [seen], outputs)
    return tab


def _rows(form: Widgets, rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        form.add(*row)


# -- what is going on


def state_html(state: State) -> str:
    """How far each stage is, and what was planned."""
    record, progress = state.record, state.progress
    if record is None:
        return status_html(NOTHING)
    parts = [headline(state, "Generating", "")]
    if not record.is_over:
        stages = progress.of("start").get("stages")
        at = number(progress.of("step").get("stage")) or 0
        for stage in stages if isinstance(stages, list) else []:
            if not isinstance(stage, int):
                continue
            done, total = (progress.step, progress.steps) if stage == at else (1.0 if stage < at else 0.0, 1.0)
            parts.append(f'<div class="steer-cascade-stage"><span>Stage {stage}</span>{bar_html(done, total)}</div>')
        parts.append(aside_html("You can close this page: the job continues."))
    notes = progress.of("plan").get("notes")
    parts.append(notes_html(notes if isinstance(notes, list) else []))
    parts.append(warnings_html(progress.warnings))
    return '<div class="steer-job-panel">' + "".join(parts) + "</div>"


def sheets_html(sheets: Sequence[Sequence[Path]]) -> str:
    """The images of some runs, with a box to tick on each."""
    return "".join(map(_sheet, sheets))


def _sheet(files: Sequence[Path]) -> str:
    cards, head = [], ""
    for file in files:
        try:
            shown, size, prompt, seed = _shown(file, file.stat().st_mtime_ns)
        except (OSError, UserError):  # it is not there any more, or is being written
            continue
        value = html.escape(f"{file.parent.name}/{file.name}", quote=True)
        head = head or f"<h4>{html.escape(prompt)} <span>{size}</span></h4>"
        cards.append(
            f'<label class="steer-cascade-card" title="{html.escape(f"{prompt} (seed {seed})", quote=True)}">'
            f'<input type="checkbox" class="steer-cascade-tick" value="{value}"><img src="{shown}" alt=""></label>'
        )
    return f'<section class="steer-cascade-sheet">{head}<div>{"".join(cards)}</div></section>' if cards else ""


@lru_cache(maxsize=1024)
def _shown(file: Path, modified: int) -> tuple[str, str, str, int]:
    """An image as data URL, its size, prompt and seed. `modified` is part of the key, so that a file that
    changed is read again."""
    candidate = read_candidate(file)
    image = candidate.image.copy()
    size = f"{image.width}x{image.height}"
    image.thumbnail((SIDE, SIDE))
    prompt = candidate.settings.stage(candidate.stage).prompt
    return data_url(image), size, prompt, candidate.settings.seed
