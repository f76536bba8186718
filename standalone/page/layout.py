"""The whole page: checkpoint on top, tabs below it, and what connects the tabs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from lib_methods.webui.gradio_compat import warn
from standalone.api.errors import sentence_for
from standalone.api.listings import check_options, set_options
from standalone.api.routes import in_turn
from standalone.history.index import History
from standalone.host import callbacks, checkpoints, pasting, shared
from standalone.host.components import ToolButton
from standalone.host.jobs.queue import JobQueue
from standalone.host.scripts import loading

from . import generation, paste
from .controls import QUICK, first_run_html
from .extras import build_extras
from .history import build_history, connect_history
from .results import as_html, error_html
from .saves import connect_saves
from .sends import connect_sends
from .tab import Tab

TITLE = "Steer"
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "Cantarell", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Consolas", "Menlo", "monospace")


def theme() -> gr.themes.Base:
    """Colours near the WebUI's, with a contrast of 4.5:1 for text; fonts that every system has, so that nothing is
    fetched."""
    base = gr.themes.Default(
        primary_hue="orange",
        secondary_hue="blue",
        neutral_hue="gray",
        font=FONT,
        font_mono=MONO,
        spacing_size="sm",
        radius_size="sm",
        text_size="sm",
    )
    return base.set(
        body_text_color_subdued="*neutral_500",
        color_accent="*primary_700",  # page.css: lighter on dark
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_border_color="*primary_700",
        button_primary_border_color_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_border_color_dark="*primary_700",
        button_primary_border_color_hover_dark="*primary_800",
    )


def build_page(queue: JobQueue, data_dir: Path, history: History) -> gr.Blocks:
    """Makes the page. The checkpoint must be loaded and the scripts too."""
    callbacks.before_ui_callback()
    pasting.reset()
    first = checkpoints.defaults_of(shared.sd_model)
    loading.scripts_txt2img.initialize_scripts(is_img2img=False)
    loading.scripts_img2img.initialize_scripts(is_img2img=True)
    others = callbacks.ui_tabs_callback()  # outside the page: inside, everything would appear twice
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        checkpoint, refresh = _quicksettings()
        labels: dict[str, str] = {}
        with gr.Column(elem_id="tabs"):
            with _tab(labels, "txt2img", "txt2img"), loading.watch_components(False):
                text = generation.txt2img(first)
            with _tab(labels, "img2img", "img2img"), loading.watch_components(True):
                image = generation.img2img(first)
            with _tab(labels, "extras", "Extras"):
                more = build_extras()
            with _tab(labels, "history", "History"):
                past = build_history()
            with _tab(labels, "pnginfo", "PNG Info"):
                info = paste.build_png_info()
            for interface, label, ident in others:
                with _tab(labels, ident, label):
                    interface.render()
            with _tab(labels, "settings", "Settings"):
                _settings(queue)
        gr.HTML(f"<h1>{TITLE}</h1>", elem_id="page_title")
        gr.HTML(json.dumps(labels), elem_id="tab_labels", visible="hidden")
        versions = f"python {sys.version.split()[0]} • torch {torch.__version__} • gradio {gr.__version__}"
        gr.HTML(f"<div class='versions'>{versions}</div>", elem_id="footer")
        for tab in (text, image):
            tab.connect(page, queue, data_dir)
        more.connect(page, queue, data_dir)
        for panel in (text.panel, image.panel, more.panel):
            connect_saves(panel, data_dir)
        connect_sends(text, image, more, info, data_dir)
        connect_history(past, history, text, image, more, data_dir)
        _connect_checkpoint(checkpoint, refresh, text, image, queue)
        page.load(fn=_current_checkpoint, outputs=[checkpoint], **QUICK)
    shared.demo = page
    return page


def _tab(labels: dict[str, str], ident: str, label: str) -> gr.Column:
    """One of the tabs below the checkpoint; host.js makes the row of buttons from `labels`.

    Plain columns, since gradio keeps the content of its own tabs out of the page until they are opened, and the scripts
    of extensions look for it when the page is loaded.
    """
    labels[f"tab_{ident}"] = label
    return gr.Column(elem_id=f"tab_{ident}", elem_classes="tabitem")


def _quicksettings() -> tuple[Any, Any]:
    with gr.Row(elem_id="quicksettings"):
        chosen = shared.sd_model.sd_checkpoint_info
        checkpoint = gr.Dropdown(
            label="Stable Diffusion checkpoint",
            choices=checkpoints.checkpoint_tiles(),
            elem_id="setting_sd_model_checkpoint",
            value=chosen.title if chosen is not None else None,
            allow_custom_value=True,  # a title gets its hash once another page loads it; the resolver knows both
            scale=0,
            min_width=520,
        )
        refresh = ToolButton(value="\U0001f504", elem_id="refresh_sd_model_checkpoint")
        gr.HTML("", elem_id="quicksettings_space")
        theme_button = ToolButton(value="\U0001f313", elem_id="steer_theme")
    theme_button.click(fn=None, js="() => switchTheme()", **QUICK)
    return checkpoint, refresh


def _current_checkpoint() -> Any:
    return gr.update(choices=checkpoints.checkpoint_tiles(), value=checkpoints.select_checkpoint().title)


def _connect_checkpoint(checkpoint: Any, refresh: Any, text: Tab, image: Tab, queue: JobQueue) -> None:
    sizes = [text.fields["width"], text.fields["height"], image.fields["width"], image.fields["height"]]

    async def change(title: str) -> list[Any]:
        try:
            await in_turn(queue, lambda: set_options({"sd_model_checkpoint": title}), "checkpoint")
        except Exception as error:  # the page shows a message, whatever it is
            warn(sentence_for(error)[0])
            return [_current_checkpoint(), *[gr.update() for _ in sizes], gr.update(), gr.update()]
        new = checkpoints.defaults_of(shared.sd_model)
        edit = getattr(shared.sd_model, "cond_stage_key", "txt") == "edit"
        both = [new.width, new.height] * 2
        return [_current_checkpoint(), *both, gr.update(visible=edit), first_run_html(new.examples)]

    def look() -> Any:
        checkpoints.list_models()
        return gr.update(choices=checkpoints.checkpoint_tiles())

    event: dict[str, Any] = {
        "fn": change,
        "inputs": [checkpoint],
        "outputs": [checkpoint, *sizes, image.fields["image_cfg_scale"], text.panel.first_run],
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    refresh.click(fn=look, outputs=[checkpoint], **QUICK)
    other = gr.Button("Change checkpoint", elem_id="change_checkpoint", visible="hidden")  # selectCheckpoint presses it
    for changed in (checkpoint.input(**event), other.click(**event, js="(title) => takeDesiredCheckpoint(title)")):
        changed.then(fn=None, js="() => readOptions()", **QUICK)  # scripts hear of it, as in the WebUI


def _component(key: str, info: Any) -> Any:
    """The control for one setting: its own, or one for the type of its default."""
    args = info.component_args() if callable(info.component_args) else dict(info.component_args or {})
    value = shared.opts.data.get(key, info.default)
    common = {"label": info.label, "value": value, "elem_id": f"setting_{key}"}
    if info.component is not None:
        return info.component(**common, **args)
    if isinstance(info.default, bool):
        return gr.Checkbox(**common, **args)
    if isinstance(info.default, (int, float)):
        precision = {"precision": 0} if isinstance(info.default, int) else {}
        return gr.Number(**common, **{**precision, **args})
    return gr.Textbox(**common, **args)


def is_shown(key: str, info: Any) -> bool:
    """Whether the tab has a control for this setting: none for folders of the server and for what is elsewhere."""
    args = info.component_args
    hidden = isinstance(args, dict) and args.get("visible") is False
    plain = isinstance(info.default, (bool, int, float, str)) or info.component is not None
    return plain and not hidden and not info.do_not_save and not info.restrict_api and key != "sd_model_checkpoint"


def apply_settings(values: dict[str, Any]) -> int:
    """Sets and saves what changed; how many settings that were. BadRequest with a sentence."""
    wanted = check_options({key: value for key, value in values.items() if value is not None})
    changed = {key: value for key, value in wanted.items() if shared.opts.data.get(key) != value}
    set_options(changed)
    return len(changed)


def _settings(queue: JobQueue) -> None:
    """The tab Settings, made from the descriptions of the settings, those of extensions included."""
    with gr.Row(elem_classes="settings-head"):
        apply = gr.Button("Apply settings", variant="primary", elem_id="settings_submit", scale=0, min_width=180)
        result = gr.HTML(elem_id="settings_result")
    sections: dict[tuple[Any, ...], list[tuple[str, Any]]] = {}
    for key, info in shared.opts.data_labels.items():
        if is_shown(key, info):
            sections.setdefault(tuple(info.section or (None, "Other")), []).append((key, info))
    components: dict[str, Any] = {}
    for number, ((name, title), items) in enumerate(sections.items()):
        with gr.Accordion(title or "Other", open=number == 0, elem_id=f"settings_{name}"):
            for key, info in items:
                components[key] = _component(key, info)
                if info.comment_after:
                    gr.HTML(info.comment_after, elem_classes="setting-comment")
    shared.settings_components = components

    async def submit(*values: Any) -> str:
        try:
            count = await in_turn(queue, lambda: apply_settings(dict(zip(components, values))), "settings")
        except Exception as error:  # the page shows a message, whatever it is
            return error_html(sentence_for(error)[0])
        return as_html(f"{count} setting{'' if count == 1 else 's'} changed." if count else "Nothing has changed.")

    applied = apply.click(
        fn=submit,
        inputs=list(components.values()),
        outputs=[result],
        api_visibility="private",
        concurrency_limit=None,
    )
    applied.then(fn=None, js="() => readOptions()", **QUICK)  # scripts hear of it, as in the WebUI
