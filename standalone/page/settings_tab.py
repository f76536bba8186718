"""The tab Settings, made from the descriptions of the settings, those of extensions included."""

from __future__ import annotations

from typing import Any

import gradio as gr

from standalone.api.errors import sentence_for
from standalone.api.listings import check_options, set_options
from standalone.api.routes import in_turn
from standalone.host import shared
from standalone.host.jobs.queue import JobQueue

from .results import as_html, error_html


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


def build(queue: JobQueue) -> None:
    """Makes the tab inside the current gradio Blocks."""
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

    apply.click(
        fn=submit,
        inputs=list(components.values()),
        outputs=[result],
        api_visibility="private",
        concurrency_limit=None,
    )
