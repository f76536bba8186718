"""A generation tab: its parts, and how its buttons are connected."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops
from pydantic import ValidationError

from standalone.api.checks import check_request
from standalone.api.errors import BadRequest, field_sentence
from standalone.api.generation import Generation
from standalone.api.models import GenerationRequest, ImageToImageRequest, TextToImageRequest
from standalone.api.routes import in_turn
from standalone.host import pasting, shared
from standalone.host.jobs.queue import JobQueue
from standalone.infotext.fields import TABLES

from .controls import QUICK, TELLS, Fields, OutputPanel, Toprow, both_counters, counter_html
from .jobs import PageJobs, Shown, Work, connect_jobs, remember
from .paste import Field, make_paste
from .results import as_html, before_html, gallery_files, infotext_of, log_html, scratch_folder

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


def generation_work(tab: str, names: Sequence[str], queue: JobQueue, data_dir: Path) -> Work:
    """What Generate of txt2img and img2img does. names: of the controls whose values come first."""

    async def work(task_id: str | None, values: Sequence[Any]) -> Shown:
        started = time.monotonic()
        generation = make_generation(tab, names, values)
        start = next(iter(generation.fields.get("init_images") or ()), None)
        processed = await in_turn(queue, generation.run, tab, task_id)
        if shared.state.interrupted and not processed.images:
            return Shown([], log=as_html("Interrupted."))
        files = gallery_files(processed, data_dir)
        log = log_html(processed.comments, time.monotonic() - started)
        if start is not None and processed.images:
            size, mode = processed.images[processed.index_of_first_image].size, generation.fields["resize_mode"]
            log += before_html(start, mode, size, scratch_folder(data_dir))
        return Shown(files, processed.index_of_first_image, processed.js(), as_html(processed.info), log)

    return work


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
        shown = [self.fields[name] for name in self.fields if name not in _NOT_KEPT]
        remember(page, self.name, self.top.submit.keep, [*shown, *self.script_inputs])
        jobs = PageJobs(generation_work(self.name, list(self.fields), queue, data_dir), data_dir)
        inputs = [*self.fields.values(), *self.script_inputs]
        connect_jobs(self.name, jobs, self.top.submit, self.panel, inputs, [self.top.prompt.submit])
        self._count_tokens()
        paste = make_paste(self.paste_fields, TABLES[self.name], self.fields)
        self.top.paste.click(
            fn=lambda prompt, info, selected: paste(prompt, infotext_of(info, selected)),
            inputs=[self.top.prompt, self.panel.generation_info, self.panel.selected],
            outputs=[*[component for component, _ in self.paste_fields], self.fields["override_settings"]],
            **TELLS,
        )

    def _count_tokens(self) -> None:
        """While typing, the last text alone is counted ("always_last"). Only one listener of an event may be of that
        kind: two call each other again for ever (gradio 6.31)."""
        steps, counters = self.fields["steps"], list(self.top.counters)
        prompts = [self.top.prompt, self.top.negative_prompt]
        for prompt, counter, positive in zip(prompts, counters, (True, False)):
            count = partial(counter_html, positive=positive)
            prompt.change(fn=count, inputs=[prompt, steps], outputs=[counter], trigger_mode="always_last", **QUICK)
        steps.change(fn=both_counters, inputs=[*prompts, steps], outputs=counters, trigger_mode="always_last", **QUICK)
