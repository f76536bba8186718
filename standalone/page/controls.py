"""Parts that txt2img and img2img share: prompts and buttons, sampler, size, seed, results."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from standalone.engine.text import CHUNK, split_prompt
from standalone.host import checkpoints, extra_networks, shared
from standalone.host.checkpoints import Defaults
from standalone.host.components import FormRow, ToolButton
from standalone.host.sampling import prompt_parser, registry, schedulers


def count_tokens(prompt: str, steps: int, positive: bool = True) -> tuple[int, int]:
    """(tokens, room) of the longest text that the prompt gives: at any step, in any part between ANDs.

    Networks such as `<lora:name:1>` are no text. The room is a multiple of 75 tokens.
    """
    text, _ = extra_networks.parse_prompt(prompt or "")
    texts = prompt_parser.get_multicond_prompt_list([text])[1] if positive else [text]
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules(texts, max(int(steps or 1), 1))
    options = checkpoints.text_options()
    count = max(split_prompt(words, options)[1] for schedule in schedules for _, words in schedule)
    return count, max(1, -(-count // CHUNK)) * CHUNK


def counter_html(prompt: str, steps: int, positive: bool = True) -> str:
    """The counter, as the page shows it."""
    count, room = count_tokens(prompt, steps, positive)
    return f"<span>{count}/{room}</span>"


def both_counters(prompt: str, negative_prompt: str, steps: int) -> tuple[str, str]:
    """The counters of both prompts."""
    return counter_html(prompt, steps), counter_html(negative_prompt, steps, positive=False)


PASTE, CLEAR, RANDOM, REUSE, SWITCH = "\u2199\ufe0f", "\U0001f5d1\ufe0f", "\U0001f3b2\ufe0f", "\u267b\ufe0f", "\u21c5"
KEYS = "Ctrl+Enter generates, Alt+Enter skips, Esc interrupts"

QUICK: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
"""Options for events that bypass gradio's queue. They cannot show messages (`gr.Info`)."""
TELLS: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
"""Options for quick events that can."""

Fields = dict[str, Any]
"""Controls by the name of the request's field that they set, in the order in which their values are passed."""


@dataclass
class Submit:
    """Generate, and the hidden parts that a tab's jobs need."""

    button: Any
    task_id: Any
    restore: Any
    keep: Any


@dataclass
class Toprow:
    """Prompts and the buttons beside them."""

    prompt: Any
    negative_prompt: Any
    submit: Submit
    paste: Any
    counters: tuple[Any, Any]


@dataclass
class OutputPanel:
    """Gallery and what is below it."""

    gallery: Any
    selected: Any
    generation_info: Any
    infotext: Any
    log: Any
    buttons: dict[str, Any]
    download: Any
    first_run: Any = None  # where no image is yet, in txt2img

    @property
    def outputs(self) -> list[Any]:
        """Where the results of Generate go."""
        return [self.gallery, self.generation_info, self.infotext, self.log]


def slider(label: str, elem_id: str, value: float, low: float, high: float, step: float, **options: Any) -> Any:
    """A narrow slider from `low` to `high`, without the button that sets it back: there is no room for it."""
    return gr.Slider(
        low, high, value=value, step=step, label=label, elem_id=elem_id, buttons=[], **{"min_width": 120, **options}
    )


def cfg_slider(tab: str, defaults: Defaults) -> Any:
    """CFG scale."""
    return slider("CFG Scale", f"{tab}_cfg_scale", defaults.cfg_scale, 1.0, 30.0, 0.5)


def denoising_slider(tab: str, value: float) -> Any:
    """Denoising strength of img2img, or of the second pass of Hires. fix."""
    return slider("Denoising strength", f"{tab}_denoising_strength", value, 0.0, 1.0, 0.01)


def _prompt_box(elem_id: str, counter_id: str, hint: str, value: str) -> tuple[Any, Any]:
    """A prompt, and the counter of its tokens in its corner."""
    with gr.Column(elem_classes="counted"):
        prompt = gr.Textbox(
            label=hint.partition(" (")[0],
            elem_id=elem_id,
            show_label=False,
            lines=2,
            max_lines=8,
            placeholder=hint,
            elem_classes="prompt",
            container=False,
            value=value,
        )
        counter = gr.HTML(counter_html(value, 20), elem_id=counter_id, elem_classes="token-counter")
    return prompt, counter


def generate_box(tab: str) -> Submit:
    """Generate, which gives way to Interrupt and Skip."""
    with gr.Row(elem_id=f"{tab}_generate_box", elem_classes="generate-box"):
        gr.Button("Interrupt", elem_id=f"{tab}_interrupt", elem_classes="generate-box-interrupt")
        gr.Button("Skip", elem_id=f"{tab}_skip", elem_classes="generate-box-skip")
        gr.Button("Interrupting...", elem_id=f"{tab}_interrupting", elem_classes="generate-box-interrupting")
        button = gr.Button("Generate", elem_id=f"{tab}_generate", variant="primary")
    task_id = gr.Textbox(visible="hidden", elem_id=f"{tab}_task_id", label="task")
    # progress.js presses it when it finds a running job after a reload; the name is the WebUI's
    restore = gr.Button("Restore", visible="hidden", elem_id=f"{tab}_restore_progress")
    keep = gr.Button("Keep", visible="hidden", elem_id=f"{tab}_keep_settings")
    return Submit(button, task_id, restore, keep)


def toprow(tab: str, defaults: Defaults) -> Toprow:
    """Prompt, negative prompt, Generate, and the small tools."""
    with gr.Row(elem_id=f"{tab}_toprow", elem_classes="toprow"):
        with gr.Column(scale=6, elem_id=f"{tab}_prompt_container"):
            first = (defaults.prompt, defaults.negative_prompt) if tab == "txt2img" else ("", "")
            prompt, counter = _prompt_box(f"{tab}_prompt", f"{tab}_token_counter", f"Prompt ({KEYS})", first[0])
            negative, negative_counter = _prompt_box(
                f"{tab}_neg_prompt", f"{tab}_negative_token_counter", "Negative prompt", first[1]
            )
        with gr.Column(scale=1, elem_id=f"{tab}_actions_column", min_width=220):
            submit = generate_box(tab)
            with gr.Row(elem_id=f"{tab}_tools", elem_classes="tools"):
                paste = ToolButton(value=PASTE, elem_id="paste" if tab == "txt2img" else f"{tab}_paste")
                clear = ToolButton(value=CLEAR, elem_id=f"{tab}_clear_prompt")
    clear.click(fn=lambda: ("", ""), outputs=[prompt, negative], **QUICK)
    return Toprow(prompt, negative, submit, paste, (counter, negative_counter))


def sampler_row(tab: str, defaults: Defaults) -> Fields:
    """Sampling method, schedule type and steps."""
    first = registry.get_sampler_and_scheduler(defaults.sampler_name, defaults.scheduler)
    with FormRow(elem_id=f"sampler_selection_{tab}"):
        sampler = gr.Dropdown(
            label="Sampling method",
            elem_id=f"{tab}_sampling",
            choices=registry.visible_sampler_names(),
            value=first[0],
            min_width=120,
        )
        scheduler = gr.Dropdown(
            label="Schedule type",
            elem_id=f"{tab}_scheduler",
            min_width=120,
            choices=[item.label for item in schedulers.schedulers],
            value=first[1],
        )
        steps = slider("Sampling steps", f"{tab}_steps", defaults.steps, 1, 150, 1, min_width=160)
    return {"sampler_name": sampler, "scheduler": scheduler, "steps": steps}


def size_columns(tab: str, defaults: Defaults) -> Fields:
    """Width and height, with the button that swaps them."""
    with gr.Column(elem_id=f"{tab}_column_size", scale=4, min_width=220):
        width = slider("Width", f"{tab}_width", defaults.width, 64, 2048, 8)
        height = slider("Height", f"{tab}_height", defaults.height, 64, 2048, 8)
    with gr.Column(elem_id=f"{tab}_dimensions_row", scale=0, min_width=40, elem_classes="dimensions-tools"):
        switch = ToolButton(value=SWITCH, elem_id=f"{tab}_res_switch_btn")
    switch.click(fn=lambda w, h: (h, w), inputs=[width, height], outputs=[width, height], **QUICK)
    return {"width": width, "height": height}


def batch_column(tab: str) -> Fields:
    """Batch count and batch size."""
    with gr.Column(elem_id=f"{tab}_column_batch", scale=4, min_width=220):
        count = slider("Batch count", f"{tab}_batch_count", 1, 1, 100, 1)
        size = slider("Batch size", f"{tab}_batch_size", 1, 1, 8, 1)
    return {"n_iter": count, "batch_size": size}


def seed_row(tab: str, generation_info: Any, selected: Any) -> Fields:
    """Seed with its two buttons, and the variation seed behind "Extra"."""
    with FormRow(elem_id=f"{tab}_seed_row"):
        seed = gr.Number(label="Seed", value=-1, elem_id=f"{tab}_seed", precision=0, min_width=140, scale=4)
        random = ToolButton(value=RANDOM, elem_id=f"{tab}_random_seed")
        reuse = ToolButton(value=REUSE, elem_id=f"{tab}_reuse_seed")
        extra = gr.Checkbox(label="Extra", elem_id=f"{tab}_subseed_show", value=False, min_width=80, scale=1)
    with FormRow(visible=False, elem_id=f"{tab}_subseed_row") as extra_row:
        subseed = gr.Number(label="Variation seed", value=-1, elem_id=f"{tab}_subseed", precision=0, min_width=140)
        strength = slider("Variation strength", f"{tab}_subseed_strength", 0.0, 0.0, 1.0, 0.01)
    random.click(fn=lambda: -1, outputs=[seed], **QUICK)
    reuse.click(fn=seed_of_image, inputs=[generation_info, selected], outputs=[seed], **QUICK)
    extra.change(fn=lambda shown: gr.update(visible=shown), inputs=[extra], outputs=[extra_row], **QUICK)
    # shows a variation seed that an infotext or a reload brought
    strength.change(fn=lambda value: True if value else gr.skip(), inputs=[strength], outputs=[extra], **QUICK)
    return {"seed": seed, "subseed": subseed, "subseed_strength": strength}


def seed_of_image(generation_info: str, selected: int | None) -> Any:
    """The seed of the selected image, or no change when there is none."""
    import json

    try:
        info = json.loads(generation_info)
        first = int(info.get("index_of_first_image", 0))
        number = max((selected or 0) - first, 0)
        return info["all_seeds"][number]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return gr.update()


def override_settings(tab: str) -> Any:
    """Settings that a pasted infotext brings and that hold for this job alone; shown when there are any."""
    dropdown = gr.Dropdown(
        [],
        value=[],
        label="Override settings",
        visible=False,
        elem_id=f"{tab}_override_settings",
        multiselect=True,
        allow_custom_value=True,
    )
    dropdown.change(fn=lambda chosen: gr.update(visible=bool(chosen)), inputs=[dropdown], outputs=[dropdown], **QUICK)
    return dropdown


def first_run_html(examples: Sequence[str]) -> str:
    """What to do first, in place of the images that are not there yet; host.js connects the buttons."""
    buttons = "".join(f"<button type='button'>{html.escape(text)}</button>" for text in examples)
    return (
        f"<ol><li>Write what you want to see{', or try one of these:' if buttons else '.'}{buttons}</li>"
        "<li>Press <b>Generate</b>.</li>"
        "<li>Press 👍 on an image you like: the next ones will be more like it.</li></ol>"
    )


_BELOW_GALLERY = {
    "img2img": ("🖼️ img2img", "{}_send_to_img2img"),
    "inpaint": ("🎨 inpaint", "{}_send_to_inpaint"),
    "txt2img": ("📝 txt2img", "{}_send_to_txt2img"),
    "extras": ("📐 Upscale", "{}_send_to_extras"),
    "save": ("💾 Save", "save_{}"),
    "zip": ("🗃️ ZIP", "save_zip_{}"),
}


def output_panel(tab: str, examples: Sequence[str] | None = None) -> OutputPanel:
    """Gallery, the buttons below it, infotext and log. examples: prompts to begin with; None shows nothing there."""
    selected = gr.State(None)
    with gr.Column(elem_id=f"{tab}_results", min_width=320):
        with gr.Column(variant="panel", elem_id=f"{tab}_results_panel"):
            with gr.Group(elem_id=f"{tab}_gallery_container", elem_classes="result-gallery"):
                gallery = gr.Gallery(
                    label="Output",
                    show_label=False,
                    elem_id=f"{tab}_gallery",
                    columns=4,
                    preview=True,
                    object_fit="contain",
                    height=getattr(shared.opts, "gallery_height", "") or None,
                    format="png",
                    interactive=False,
                    type="filepath",
                    buttons=["download"],  # full screen is lightbox.js
                )
                first_run = None if examples is None else gr.HTML(first_run_html(examples), elem_classes="first-run")
            with gr.Row(elem_id=f"image_buttons_{tab}", elem_classes="image-buttons"):
                buttons = {
                    name: gr.Button(label, elem_id=ident.format(tab), size="sm", min_width=60)
                    for name, (label, ident) in _BELOW_GALLERY.items()
                    if name != tab or name != "extras"
                }
                gr.Button("🔍 Full screen", elem_id=f"{tab}_full_screen", size="sm", min_width=60)
            download = gr.File(
                visible=False, interactive=False, label="Download", show_label=False, elem_id=f"download_files_{tab}"
            )
            with gr.Column(elem_classes="below-gallery"):
                infotext = gr.HTML(elem_id=f"html_info_{tab}", elem_classes="infotext")
                log = gr.HTML(elem_id=f"html_log_{tab}", elem_classes="html-log")
            generation_info = gr.Textbox(visible="hidden", elem_id=f"generation_info_{tab}", label="generation info")
    return OutputPanel(gallery, selected, generation_info, infotext, log, buttons, download, first_run)
