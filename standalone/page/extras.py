"""The tab Extras: one image, several files or a folder through the postprocessing scripts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.webui.image_box import file_box, uploads_only
from standalone.api.errors import BadRequest
from standalone.api.routes import in_turn
from standalone.host import extras, shared
from standalone.host.jobs.queue import JobQueue
from standalone.host.scripts import loading

from .controls import QUICK, OutputPanel, Submit, generate_box, output_panel
from .jobs import PageJobs, Shown, Work, connect_jobs, remember
from .results import as_file, as_html, before_html, error_html, log_html, scratch_folder, shown_infotext

SINGLE, BATCH, FOLDER = "single", "batch", "folder"
MOST_SHOWN = 200
"""Images in the gallery; all are saved."""


@dataclass
class ExtrasTab:
    """The tab's controls. mode: SINGLE, BATCH or FOLDER, whichever part is open."""

    submit: Submit
    panel: OutputPanel
    mode: Any
    image: Any
    files: Any
    folder: Any
    show: Any
    script_inputs: list[Any]

    def connect(self, page: gr.Blocks, queue: JobQueue, data_dir: Path) -> None:
        """Connects Generate, and keeps the scripts' settings over a reload."""
        remember(page, "extras", self.submit.keep, self.script_inputs)
        inputs = [self.mode, self.image, self.files, self.folder, self.show, *self.script_inputs]
        connect_jobs("extras", PageJobs(extras_work(queue, data_dir), data_dir), self.submit, self.panel, inputs)
        self.image.change(fn=lambda: loading.scripts_postproc.image_changed(), **QUICK)


def folders_are_allowed() -> bool:
    """Whether the page may read folders of this machine: only where nobody from elsewhere can open it."""
    return not (shared.cmd_opts.listen or shared.cmd_opts.allowed_hosts)


def _image_box() -> Any:
    """The uploaded file itself, since its infotext is kept in the result."""
    box = gr.Image(
        label="Source",
        show_label=False,
        elem_id="extras_image",
        sources=["upload", "clipboard"],
        type="filepath",
        format="png",
        height=360,
    )
    box.preprocess = lambda payload: payload.path if payload is not None else None
    return uploads_only(box)


def build_extras() -> ExtrasTab:
    """Makes the components inside the current gradio Blocks."""
    mode = gr.Textbox(value=SINGLE, visible=False, label="mode")
    with gr.Row(elem_classes="two-columns"):
        with gr.Column(variant="compact", elem_id="extras_settings", min_width=320):
            with gr.Tabs(elem_id="mode_extras"):
                with gr.Tab("Single Image", id=SINGLE, elem_id="extras_single_tab") as single:
                    image = _image_box()
                with gr.Tab("Batch Process", id=BATCH, elem_id="extras_batch_process_tab") as batch:
                    files = file_box(
                        label="Images",
                        show_label=False,
                        elem_id="extras_image_batch",
                        file_count="multiple",
                        file_types=["image"],
                        height=360,
                    )
                with gr.Tab(
                    "Batch from Directory",
                    id=FOLDER,
                    elem_id="extras_batch_directory_tab",
                    visible=folders_are_allowed(),
                ) as directory:
                    folder = gr.Textbox(
                        label="Input directory",
                        elem_id="extras_batch_input_dir",
                        placeholder="A folder on this machine",
                        info="The results are saved in the folder for outputs, under extras-images.",
                        max_lines=1,
                    )
                    show = gr.Checkbox(label="Show result images", value=True, elem_id="extras_show_extras_results")
            script_inputs = loading.scripts_postproc.setup_ui()
        with gr.Column(elem_id="extras_right", min_width=320):
            submit = generate_box("extras")
            panel = output_panel("extras")
    for name, part in ((SINGLE, single), (BATCH, batch), (FOLDER, directory)):
        part.select(fn=lambda name=name: name, outputs=[mode], **QUICK)
    return ExtrasTab(submit, panel, mode, image, files, folder, show, script_inputs)


def sources_of(mode: str, image: str | None, files: Sequence[str] | None, folder: str | None) -> list[extras.Source]:
    """The images of the open part of the tab. Raises BadRequest or UserError."""
    if mode == FOLDER:
        if not folders_are_allowed():
            raise BadRequest("Folders can only be read without --listen and --allowed-hosts. Upload the files.")
        return extras.folder_sources(folder or "")
    if mode == BATCH:
        if not files:
            raise BadRequest("There are no images. Add some in the box on the left.")
        return [extras.file_source(Path(file), keeps_name=True) for file in files]
    if not image:
        raise BadRequest("There is no image. Add one in the box on the left.")
    return [extras.file_source(Path(image))]


def extras_work(queue: JobQueue, data_dir: Path) -> Work:
    """What Generate does: (mode, image, files, folder, whether to show a folder's results, scripts' arguments)."""
    scratch = scratch_folder(data_dir)

    def run(sources: list[extras.Source], show: bool, args: Sequence[Any]) -> Shown:
        started = time.monotonic()
        job = extras.Extras(sources, args, extras.output_folder())
        files: list[str] = []
        texts: dict[str, Any] = {"index_of_first_image": 0, "infotexts": [], "postprocessing": []}
        count, before = 0, ""
        for result in job.results():
            count += 1
            if show and count <= MOST_SHOWN:
                files.append(as_file(result.image, None, scratch))
                texts["infotexts"].append(result.infotext)
                texts["postprocessing"].append(result.done)
            if len(sources) == 1 and count == 1:
                before = before_html(_first(sources), 0, result.image.size, scratch)
        comments = list(job.problems)
        if count and not show:
            comments.append(f"{count} image{'' if count == 1 else 's'} saved.")
        elif count > MOST_SHOWN:
            comments.append(f"The first {MOST_SHOWN} of {count} images are shown. All are in History.")
        if not count and job.problems:
            return Shown([], log=error_html(" ".join(comments)))
        if shared.state.interrupted:
            comments.append("Interrupted.")
        info = json.dumps(texts)
        log = log_html("\n".join(comments), time.monotonic() - started) + (before if count == 1 else "")
        return Shown(files, 0, info, as_html(shown_infotext(info, 0)), log)

    async def work(task_id: str | None, values: Sequence[Any]) -> Shown:
        mode, image, files, folder, show, *args = values
        sources = sources_of(mode, image, files, folder)
        return await in_turn(queue, lambda: run(sources, bool(show) or mode != FOLDER, args), "extras", task_id)

    return work


def _first(sources: Sequence[extras.Source]) -> Image.Image:
    return sources[0].open()
