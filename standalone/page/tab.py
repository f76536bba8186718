"""What a finished generation tab consists of, and how its buttons are connected."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from standalone.engine.job import JobQueue

from .generate import make_handler
from .parts import QUICK, Fields, OutputPanel, Toprow
from .paste import Field, make_paste
from .results import as_html, infotext_of
from .tokens import counter_html


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

    def connect(self, queue: JobQueue, data_dir: Path) -> None:
        """Connects Generate, the gallery and the paste button."""
        names = list(self.fields)
        job: dict[str, Any] = {
            "fn": make_handler(self.name, names, queue, data_dir),
            "inputs": [self.top.task_id, *self.fields.values(), *self.script_inputs],
            "outputs": self.panel.outputs,
            "js": f"(...args) => submitTask('{self.name}', args)",
            "show_progress": "hidden",
            "concurrency_limit": None,
            "api_visibility": "private",
        }
        done = {"fn": None, "js": f"() => taskFinished('{self.name}')"}
        for event in (self.top.submit.click(**job), self.top.prompt.submit(**job)):
            event.then(**done, **QUICK)
        self.panel.gallery.select(
            fn=_chosen, inputs=[self.panel.generation_info], outputs=[self.panel.selected, self.panel.infotext], **QUICK
        )
        self.panel.generation_info.change(fn=lambda: None, outputs=[self.panel.selected], **QUICK)
        self._count_tokens()
        paste = make_paste(self.paste_fields)
        self.top.paste.click(
            fn=lambda prompt, info, selected: paste(prompt, infotext_of(info, selected)),
            inputs=[self.top.prompt, self.panel.generation_info, self.panel.selected],
            outputs=[*[component for component, _ in self.paste_fields], self.fields["override_settings"]],
            **QUICK,
        )

    def _count_tokens(self) -> None:
        steps = self.fields["steps"]
        for prompt, counter, positive in zip(
            (self.top.prompt, self.top.negative_prompt), self.top.counters, (True, False)
        ):
            count: dict[str, Any] = {
                "fn": partial(counter_html, positive=positive),
                "inputs": [prompt, steps],
                "outputs": [counter],
                "trigger_mode": "always_last",  # while typing, the last text alone has to be counted
            }
            prompt.change(**count, **QUICK)
            steps.change(**count, **QUICK)


def _chosen(generation_info: str, event: gr.SelectData) -> tuple[int, str]:
    index = int(event.index if not isinstance(event.index, (list, tuple)) else event.index[0])
    return index, as_html(infotext_of(generation_info, index))
