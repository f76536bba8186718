"""The jobs of a tab of the page: from the button to the gallery, also after a reload."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lib_methods.errors import UserError
from lib_methods.files import read_json, write_whole
from standalone.api.errors import sentence_for

from .controls import QUICK, OutputPanel, Submit
from .results import as_html, error_html, scratch_folder, shown_infotext

Outputs = tuple[Any, ...]


@dataclass(frozen=True)
class Shown:
    """What a job leaves on the page; without `files` the gallery is empty."""

    files: list[str]
    first: int = 0
    generation_info: str = ""
    infotext: str = ""
    log: str = ""

    def outputs(self) -> Outputs:
        """Gallery, JSON, infotext, log."""
        gallery = gr.update(value=self.files, selected_index=self.first) if self.files else []
        return gallery, self.generation_info, self.infotext, self.log


Work = Callable[[str | None, Sequence[Any]], Awaitable[Shown]]
"""A job by its task's id and the values of the controls."""


class PageJobs:
    """The jobs of one tab by task id. A page that was reloaded in mid-job, or a second one, gets the results; those of
    finished jobs are kept in the scratch folder, so that the last gallery survives a restart of the server, too."""

    def __init__(self, work: Work, data_dir: Path) -> None:
        self._work, self._data_dir = work, data_dir
        self._tasks: dict[str, asyncio.Task[Shown]] = {}

    async def generate(self, task_id: str | None, *values: Any) -> Outputs:
        """Behind Generate: (task id, values of the controls) -> gallery, JSON, infotext, log."""
        task = asyncio.get_running_loop().create_task(self._run(task_id, values))
        if task_id and task_id not in self._tasks:
            self._tasks[task_id] = task
            task.add_done_callback(lambda done: self._tasks.pop(task_id, None))
        return (await asyncio.shield(task)).outputs()

    async def restore(self, task_id: str | None) -> Outputs:
        """What `generate` gives for this task, once the job is done; no change for one that is not known."""
        task = self._tasks.get(task_id or "")
        shown = await asyncio.shield(task) if task else self._read(task_id or "")
        return shown.outputs() if shown else (gr.skip(),) * 4

    def _file(self, task_id: str) -> Path:
        """A task's results. Its id is a secret and may be any text, so the name is its hash."""
        return scratch_folder(self._data_dir) / f"{hashlib.sha256(task_id.encode()).hexdigest()}.json"

    def _read(self, task_id: str) -> Shown | None:
        """The results of a finished job; None if they, or images of theirs, are not there any more."""
        try:
            shown = Shown(**read_json(self._file(task_id)))
        except (OSError, ValueError, TypeError):
            return None
        return shown if all(Path(file).is_file() for file in shown.files) else None

    async def _run(self, task_id: str | None, values: Sequence[Any]) -> Shown:
        try:
            shown = await self._work(task_id or None, values)
        except Exception as error:  # the last line of defence: whatever it is, the page shows a message
            shown = Shown([], log=error_html(sentence_for(error)[0]))
        if task_id:
            with contextlib.suppress(UserError):  # a full disk: only a reload loses them
                write_whole(self._file(task_id), json.dumps(asdict(shown)).encode())
        return shown


def connect_jobs(
    tab: str, jobs: PageJobs, submit: Submit, panel: OutputPanel, inputs: Sequence[Any], also: Sequence[Any] = ()
) -> None:
    """Connects Generate with the gallery. also: events that start a job as well, such as a prompt's `submit`."""
    job: dict[str, Any] = {
        "fn": jobs.generate,
        "inputs": [submit.task_id, *inputs],
        "outputs": panel.outputs,
        "js": f"(...args) => submitTask('{tab}', args)",
        "show_progress": "hidden",
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    found = {"fn": jobs.restore, "inputs": [submit.task_id], "js": f"() => restoreTask('{tab}')"}
    begun = [start(**job) for start in (submit.button.click, *also)]
    for event in (*begun, submit.restore.click(**{**job, **found})):
        event.success(fn=None, js=f"() => taskFinished('{tab}')", **QUICK)
        event.failure(fn=None, js=f"() => taskFailed('{tab}')", **QUICK)
    panel.gallery.select(fn=_chosen, inputs=[panel.generation_info], outputs=[panel.selected, panel.infotext], **QUICK)
    panel.generation_info.change(
        fn=lambda: (None, gr.update(value=None, visible=False)), outputs=[panel.selected, panel.download], **QUICK
    )


def _chosen(generation_info: str, event: gr.SelectData) -> tuple[int, str]:
    index = int(event.index if not isinstance(event.index, (list, tuple)) else event.index[0])
    return index, as_html(shown_infotext(generation_info, index))


_KEPT = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.CheckboxGroup, gr.Radio, gr.Dropdown)


def remember(page: gr.Blocks, tab: str, keep: Any, controls: Sequence[Any]) -> None:
    """Keeps the controls' values in the browser's tab (memory.js), but for those that a method keeps itself."""
    kept = [
        control
        for control in controls
        if isinstance(control, _KEPT) and not getattr(control, "do_not_save_to_config", False)
    ]
    names = [(type(control).__name__, control.elem_id, control.label) for control in kept]
    which = f"'{tab}', '{hashlib.sha256(repr(names).encode()).hexdigest()[:16]}'"
    script = f"(...values) => rememberSettings({which}, values)"
    # one event that the page presses, not one a control: gradio walks all of the page's components for each
    keep.click(fn=None, inputs=kept, js=script, **QUICK)
    page.load(fn=None, outputs=kept, js=f"() => recallSettings({which}, {len(kept)})", **QUICK)
