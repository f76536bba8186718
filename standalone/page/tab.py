"""A generation tab: its parts, and how its buttons are connected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from standalone.host.jobs.queue import JobQueue
from standalone.infotext.fields import TABLES

from .generate import PageJobs
from .parts import QUICK, Fields, OutputPanel, Toprow
from .paste import Field, make_paste
from .results import as_html, infotext_of
from .tokens import both_counters, counter_html

_KEPT = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.CheckboxGroup, gr.Radio, gr.Dropdown)
_NOT_KEPT = ("mode", "resize_tab")  # which of the gradio tabs is open; those open at their first one


@dataclass
class Tab:
    """txt2img or img2img: its controls by field name, the scripts' controls, and what infotext sets."""

    name: str
    top: Toprow
    panel: OutputPanel
    fields: Fields
    script_inputs: list[Any]
    paste_fields: list[Field]
    extras: Fields = field(default_factory=dict)

    def connect(self, page: gr.Blocks, queue: JobQueue, data_dir: Path) -> None:
        """Connects Generate, the gallery and the paste button, and keeps settings over a reload."""
        self._remember(page)
        jobs = PageJobs(self.name, list(self.fields), queue, data_dir)
        job: dict[str, Any] = {
            "fn": jobs.generate,
            "inputs": [self.top.task_id, *self.fields.values(), *self.script_inputs],
            "outputs": self.panel.outputs,
            "js": f"(...args) => submitTask('{self.name}', args)",
            "show_progress": "hidden",
            "concurrency_limit": None,
            "api_visibility": "private",
        }
        found = {"fn": jobs.restore, "inputs": [self.top.task_id], "js": f"() => restoreTask('{self.name}')"}
        begun = [self.top.submit.click(**job), self.top.prompt.submit(**job)]
        for event in (*begun, self.top.restore.click(**{**job, **found})):
            event.success(fn=None, js=f"() => taskFinished('{self.name}')", **QUICK)
            event.failure(fn=None, js=f"() => taskFailed('{self.name}')", **QUICK)
        self.panel.gallery.select(
            fn=_chosen, inputs=[self.panel.generation_info], outputs=[self.panel.selected, self.panel.infotext], **QUICK
        )
        self.panel.generation_info.change(fn=lambda: None, outputs=[self.panel.selected], **QUICK)
        self._count_tokens()
        paste = make_paste(self.paste_fields, TABLES[self.name], self.fields)
        self.top.paste.click(
            fn=lambda prompt, info, selected: paste(prompt, infotext_of(info, selected)),
            inputs=[self.top.prompt, self.panel.generation_info, self.panel.selected],
            outputs=[*[component for component, _ in self.paste_fields], self.fields["override_settings"]],
            **QUICK,
        )

    def _remember(self, page: gr.Blocks) -> None:
        """Keeps the controls' values in the browser's tab (memory.js), but for those that a method keeps itself."""
        shown = [self.fields[name] for name in self.fields if name not in _NOT_KEPT]
        kept = [
            control
            for control in (*shown, *self.script_inputs)
            if isinstance(control, _KEPT) and not getattr(control, "do_not_save_to_config", False)
        ]
        names = [(type(control).__name__, control.elem_id, control.label) for control in kept]
        which = f"'{self.name}', '{hashlib.sha256(repr(names).encode()).hexdigest()[:16]}'"
        remember = f"(...values) => rememberSettings({which}, values)"
        # one event that the page presses, not one a control: gradio walks all of the page's components for each
        self.top.keep.click(fn=None, inputs=kept, js=remember, **QUICK)
        page.load(fn=None, outputs=kept, js=f"() => recallSettings({which}, {len(kept)})", **QUICK)

    def _count_tokens(self) -> None:
        """While typing, the last text alone is counted ("always_last"). Only one listener of an event may be of that
        kind: two call each other again for ever (gradio 6.31)."""
        steps, counters = self.fields["steps"], list(self.top.counters)
        prompts = [self.top.prompt, self.top.negative_prompt]
        for prompt, counter, positive in zip(prompts, counters, (True, False)):
            count = partial(counter_html, positive=positive)
            prompt.change(fn=count, inputs=[prompt, steps], outputs=[counter], trigger_mode="always_last", **QUICK)
        steps.change(fn=both_counters, inputs=[*prompts, steps], outputs=counters, trigger_mode="always_last", **QUICK)


def _chosen(generation_info: str, event: gr.SelectData) -> tuple[int, str]:
    index = int(event.index if not isinstance(event.index, (list, tuple)) else event.index[0])
    return index, as_html(infotext_of(generation_info, index))
