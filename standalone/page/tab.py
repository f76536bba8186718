"""A generation tab: its parts, and how its buttons are connected."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops
from pydantic import ValidationError

from lib_methods.errors import UserError
from lib_methods.files import read_json, write_whole
from standalone.api.checks import check_request
from standalone.api.errors import BadRequest, field_sentence, sentence_for
from standalone.api.generation import Generation
from standalone.api.models import GenerationRequest, ImageToImageRequest, TextToImageRequest
from standalone.api.routes import in_turn
from standalone.host import pasting, shared
from standalone.host.jobs.queue import JobQueue
from standalone.infotext.fields import TABLES

from .controls import QUICK, Fields, OutputPanel, Toprow, both_counters, counter_html
from .paste import Field, make_paste
from .results import as_html, before_html, error_html, gallery_files, infotext_of, log_html, scratch_folder

PAINTED = 16
"""Alpha, of 255, from which a stroke counts."""


def inpaint_inputs(editor: dict[str, Any] | None) -> tuple[Image.Image | None, Image.Image | None]:
    """Image and mask from an ImageEditor's value: white in the mask where any layer is painted.

    (None, None) without an image; the mask is None when nothing is painted.
    """
    if not editor or editor.get("background") is None:
        return None, None
    background: Image.Image = editor["background"]
    mask = Image.new("L", background.size, 0)
    for layer in editor.get("layers") or []:
        if layer is not None:
            alpha = layer.convert("RGBA").getchannel("A").resize(background.size)
            mask = ImageChops.lighter(mask, alpha.point(lambda value: 255 if value >= PAINTED else 0))
    return background, mask if mask.getbbox() is not None else None


Outputs = tuple[Any, ...]

_PAGE_ONLY = {"mode", "image", "editor", "base_image", "mask_image", "override_settings", "resize_tab", "scale_by"}


def _request(kind: type[GenerationRequest], fields: dict[str, Any]) -> GenerationRequest:
    known = {name: value for name, value in fields.items() if name in kind.model_fields and name not in _PAGE_ONLY}
    settings = pasting.create_override_settings_dict(fields.get("override_settings") or [])
    try:
        return kind.model_validate({**known, "override_settings": settings, "save_images": True})
    except ValidationError as error:
        raise BadRequest(field_sentence(error.errors()[0])) from None


def _images(fields: dict[str, Any]) -> tuple[list[Image.Image], Image.Image | None]:
    """The init image and the mask, from the open part of img2img."""
    mode = fields["mode"]
    if mode == "inpaint":
        image, mask = inpaint_inputs(fields["editor"])
        if image is not None and mask is None:
            raise BadRequest("Inpaint: paint over the part of the image you want to change.")
    elif mode == "inpaint_upload":
        image, mask = fields["base_image"], fields["mask_image"]
        if image is not None and mask is None:
            raise BadRequest("Inpaint upload: add a mask. Its white parts will change.")
    else:
        image, mask = fields["image"], None
    if image is None:
        raise BadRequest("There is no image to start from. Add one in the box on the left.")
    return [image], mask


def make_generation(tab: str, names: Sequence[str], values: Sequence[Any]) -> Generation:
    """The job that the page's controls describe. Raises BadRequest with the reason if it is not possible.

    `values` begins with the controls called `names`, the scripts' arguments follow.
    """
    fields = dict(zip(names, values))
    args = list(values[len(names) :])
    args[0] = args[0] or 0  # the list of scripts gives None before anything is chosen
    if tab == "txt2img":
        request = _request(TextToImageRequest, fields)
        check_request(request)
        generation = Generation(request, tuple(args), is_api=False)
    else:
        images, mask = _images(fields)
        if fields.get("resize_tab") == "by":
            scale = float(fields.get("scale_by") or 1)
            fields["width"], fields["height"] = (int(side * scale) for side in images[0].size)
        request = _request(ImageToImageRequest, {**fields, "init_images": ["page"]})
        check_request(request)
        generation = Generation(request, tuple(args), init_images=images, mask=mask, is_api=False)
    generation.fields["do_not_save_samples"] = generation.fields["do_not_save_grid"] = False
    return generation


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


class PageJobs:
    """The jobs of one tab by task id. A page that was reloaded in mid-job, or a second one, gets the results; those of
    finished jobs are kept in the scratch folder, so that the last gallery survives a restart of the server, too."""

    def __init__(self, tab: str, names: Sequence[str], queue: JobQueue, data_dir: Path) -> None:
        self._tab, self._names, self._queue, self._data_dir = tab, names, queue, data_dir
        self._tasks: dict[str, asyncio.Task[Shown]] = {}

    async def generate(self, task_id: str | None, *values: Any) -> Outputs:
        """Behind Generate: (task id, controls, scripts' arguments) -> gallery, JSON, infotext, log."""
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
        shown = await self._shown(task_id, values)
        if task_id:
            with contextlib.suppress(UserError):  # a full disk: only a reload loses them
                write_whole(self._file(task_id), json.dumps(asdict(shown)).encode())
        return shown

    async def _shown(self, task_id: str | None, values: Sequence[Any]) -> Shown:
        started = time.monotonic()
        try:
            generation = make_generation(self._tab, self._names, values)
            start = next(iter(generation.fields.get("init_images") or ()), None)
            processed = await in_turn(self._queue, generation.run, self._tab, task_id or None)
            if shared.state.interrupted and not processed.images:
                return Shown([], log=as_html("Interrupted."))
            files = gallery_files(processed, self._data_dir)
            log = log_html(processed, time.monotonic() - started)
            if start is not None and processed.images:
                size, mode = processed.images[processed.index_of_first_image].size, generation.fields["resize_mode"]
                log += before_html(start, mode, size, scratch_folder(self._data_dir))
            return Shown(files, processed.index_of_first_image, processed.js(), as_html(processed.info), log)
        except Exception as error:  # the last line of defence: whatever it is, the page shows a message
            return Shown([], log=error_html(sentence_for(error)[0]))


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
