"""Runs a job when Generate is pressed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from pydantic import ValidationError

from standalone.api.checks import check_request
from standalone.api.errors import BadRequest, field_sentence, sentence_for
from standalone.api.generation import Generation
from standalone.api.models import GenerationRequest, ImageToImageRequest, TextToImageRequest
from standalone.api.routes import in_turn
from standalone.host import pasting, shared
from standalone.host.jobs.queue import JobQueue

from .masks import inpaint_inputs
from .results import as_html, error_html, gallery_files, log_html

Outputs = tuple[Any, ...]
REMEMBERED = 64
"""Number of finished jobs kept for reloaded pages; each is a few texts and file names."""

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
    """The jobs of one tab by task id. They survive the request that started them, so that a page that was reloaded in
    mid-job, or a second one, gets the results."""

    def __init__(self, tab: str, names: Sequence[str], queue: JobQueue, data_dir: Path) -> None:
        self._tab, self._names, self._queue, self._data_dir = tab, names, queue, data_dir
        self._tasks: dict[str, asyncio.Task[Shown]] = {}

    async def generate(self, task_id: str | None, *values: Any) -> Outputs:
        """Behind Generate: (task id, controls, scripts' arguments) -> gallery, JSON, infotext, log."""
        task = asyncio.get_running_loop().create_task(self._run(task_id, values))
        if task_id:
            self._tasks.setdefault(task_id, task)
            for old in [name for name, known in self._tasks.items() if known.done()][:-REMEMBERED]:
                del self._tasks[old]
        return (await asyncio.shield(task)).outputs()

    async def restore(self, task_id: str | None) -> Outputs:
        """What `generate` gives for this task, once the job is done; no change for one that is not known."""
        task = self._tasks.get(task_id or "")
        return (gr.skip(),) * 4 if task is None else (await asyncio.shield(task)).outputs()

    async def _run(self, task_id: str | None, values: Sequence[Any]) -> Shown:
        started = time.monotonic()
        try:
            generation = make_generation(self._tab, self._names, values)
            processed = await in_turn(self._queue, generation.run, self._tab, task_id or None)
            if shared.state.interrupted and not processed.images:
                return Shown([], log=as_html("Interrupted."))
            files = gallery_files(processed, self._data_dir)
            log = log_html(processed, time.monotonic() - started)
            return Shown(files, processed.index_of_first_image, processed.js(), as_html(processed.info), log)
        except Exception as error:  # the last line of defence: whatever it is, the page shows a message
            return Shown([], log=error_html(sentence_for(error)[0]))
