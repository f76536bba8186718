"""The buttons Save and ZIP below a gallery."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from lib_methods.errors import UserError, reason
from lib_methods.files import as_file_name, replacing
from lib_methods.pictures.convert import open_image, to_rgba
from lib_methods.webui.gradio_compat import as_toast
from standalone.host import images, pasting, shared

from .controls import TELLS, OutputPanel
from .results import chosen_image, image_file, infotext_of, scratch_folder

NO_IMAGE = "There is no image to save yet. Generate one first."


def connect_saves(panel: OutputPanel, data_dir: Path) -> None:
    """Connects both."""
    panel.buttons["save"].click(
        fn=save, inputs=[panel.gallery, panel.selected, panel.generation_info], outputs=[], **TELLS
    )
    panel.buttons["zip"].click(fn=make_zip(data_dir), inputs=[panel.gallery], outputs=[panel.download], **TELLS)


def save(gallery: list[Any] | None, selected: int | None, generation_info: str) -> None:
    """Saves a copy of the selected image, with its infotext, in the folder `outdir_save`."""
    path, index = chosen_image(gallery, selected, generation_info)
    if path is None:
        gr.Info(NO_IMAGE)
        return
    infotext = infotext_of(generation_info, index)
    seed = str(pasting.parse_generation_parameters(infotext).get("Seed", ""))
    try:
        with open_image(path) as opened:
            _, texts = images.read_info_from_image(opened)
            image = to_rgba(opened)
        kept = {key: value for key, value in texts.items() if isinstance(value, str)}
        saved, _ = images.save_image(
            image,
            shared.opts.outdir_save,
            "",
            seed if seed.isdecimal() else None,
            extension=shared.opts.samples_format,
            info=infotext or None,
            existing_info=kept,
        )
    except UserError as error:
        gr.Info(as_toast(str(error)))
    except OSError as error:
        gr.Info(as_toast(f"The image cannot be saved. {reason(error)}"))
    else:
        gr.Info(as_toast(f"Saved: {Path(saved).parent.name}/{Path(saved).name}"))


def make_zip(data_dir: Path) -> Callable[[list[Any] | None], Any]:
    """What packs all images of a gallery for download; the file is kept for a week, as other files of the page."""

    def zipped(gallery: list[Any] | None) -> Any:
        if not gallery:
            gr.Info(NO_IMAGE)
            return gr.skip()
        model = as_file_name(getattr(shared.sd_model.sd_checkpoint_info, "model_name", None) or "images")
        folder = scratch_folder(data_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            target = images.free_path(folder / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}_[{model}].zip")
            with replacing(target, shared=True) as file, zipfile.ZipFile(file, "w") as pack:  # PNGs are packed already
                for number, item in enumerate(gallery):
                    path = image_file(item)
                    name = path.name if path.name not in pack.namelist() else f"{number}-{path.name}"
                    pack.write(path, name)
        except FileNotFoundError:
            gr.Info("These images are no longer there. Generate them again.")
            return gr.skip()
        except OSError as error:
            gr.Info(as_toast(f"The ZIP file cannot be written. {reason(error)}"))
            return gr.skip()
        return gr.update(value=str(target), visible=True)

    return zipped
