"""Infotext, the text under an image that says how it was made: reading and pasting it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lib_methods.errors import UserError
from lib_methods.pictures.convert import ImageError, open_image, to_rgba
from standalone.engine.names import shown
from standalone.host import checkpoints, images, paths, shared
from standalone.host.sampling import prompt_parser
from standalone.infotext import pairs, text

sys.modules["modules.generation_parameters_copypaste"] = sys.modules[__name__]

quote, unquote = pairs.quote, pairs.unquote

# fields that an infotext leaves out when they have their usual value
_USUAL: dict[str, Any] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}


@dataclass(eq=False)
class ParamBinding:
    """A "send to" button: where it takes its data from, and the tab that they go to."""

    paste_button: Any
    tabname: str
    source_text_component: Any = None
    source_image_component: Any = None
    source_tabname: str | None = None
    override_settings_component: Any = None
    paste_field_names: list[str] | None = None

    def __post_init__(self) -> None:
        self.paste_field_names = self.paste_field_names or []


class PasteField(tuple[Any, Any]):
    """A control and what fills it: an infotext field, or a function of all fields. `api` names it in requests."""

    api: str | None

    def __new__(
        cls, component: Any, target: str | Callable[[dict[str, Any]], Any], *, api: str | None = None
    ) -> PasteField:
        return super().__new__(cls, (component, target))

    def __init__(
        self, component: Any, target: str | Callable[[dict[str, Any]], Any], *, api: str | None = None
    ) -> None:
        super().__init__()
        self.api = api
        self.component = component
        self.label = target if isinstance(target, str) else None
        self.function = target if callable(target) else None


paste_fields: dict[str, dict[str, Any]] = {}
registered_param_bindings: list[ParamBinding] = []
infotext_to_setting_name_mapping: list[tuple[str, str]] = []


def reset() -> None:
    paste_fields.clear()
    registered_param_bindings.clear()


def add_paste_fields(
    tabname: str, init_img: Any, fields: list[Any] | None, override_settings_component: Any = None
) -> None:
    """Registers the controls of a tab that an infotext fills."""
    if fields is not None:
        fields[:] = [field if isinstance(field, PasteField) else PasteField(*field) for field in fields]
    paste_fields[tabname] = {
        "init_img": init_img,
        "fields": fields,
        "override_settings_component": override_settings_component,
    }


def register_paste_params_button(binding: ParamBinding) -> None:
    registered_param_bindings.append(binding)


def _file_allowed(path: Path) -> bool:
    """Whether the page may name this file: gradio's own copies and the host's images, nothing else."""
    import tempfile

    from gradio.utils import get_upload_folder

    allowed = [Path(get_upload_folder()), Path(tempfile.gettempdir()) / "gradio", Path(paths.default_output_dir)]
    return any(folder.resolve() in path.resolve().parents for folder in allowed)


def image_from_url_text(filedata: Any) -> Image.Image | None:
    """The image of a gallery's value, in any of gradio's forms: PIL, (PIL, caption), a file dict, a data URL, base64.

    Lists give their first image. Raises UserError for what is no image, and for files outside the host's folders.
    """
    if isinstance(filedata, (list, tuple)):
        filedata = filedata[0] if filedata else None
        if isinstance(filedata, (list, tuple)):
            filedata = filedata[0] if filedata else None
    if isinstance(filedata, dict):
        inner = filedata.get("image", filedata)
        filedata = (
            inner
            if isinstance(inner, (Image.Image, str))
            else inner.get("path") or inner.get("name") or inner.get("data")
        )
    if filedata is None or isinstance(filedata, Image.Image):
        return filedata
    if not isinstance(filedata, str):
        raise UserError("That is not an image.")
    try:
        if not filedata.startswith("data:"):
            path = Path(filedata.rsplit("?", 1)[0])
            if len(filedata) < 4096 and path.is_absolute() and path.is_file():
                if not _file_allowed(path):
                    raise UserError("That image file is outside the folders that this page may read.")
                return images.read(path)
        return to_rgba(open_image(filedata), with_texts=True)
    except ImageError as error:
        raise UserError("That image cannot be read.") from error


def send_image_and_dimensions(x: Any) -> tuple[Any, Any, Any]:
    """The image for img2img with its width and height, or updates that change nothing."""
    import gradio as gr

    image = x if isinstance(x, Image.Image) else image_from_url_text(x)
    if shared.opts.send_size and isinstance(image, Image.Image):
        return image, image.width, image.height
    return image, gr.update(), gr.update()


def parse_generation_parameters(x: str, skip_fields: list[str] | None = None) -> dict[str, Any]:
    """The fields of an infotext as a dict; values are text, sizes come as "Size-1" and "Size-2".

    Never raises: what cannot be read is left out. Fields with a usual value that are not in the text are added. Of a
    text longer than `MAX_LENGTH` the rest is not looked at.
    """
    prompt, negative_prompt, fields = text.read(x)
    res: dict[str, Any] = {**fields, "Prompt": prompt, "Negative prompt": negative_prompt}
    _old_hires(res)
    _old_names(res)
    if str(res.get("Version", "")).startswith(text.OURS):
        res.setdefault("Resize mode", "Just resize")  # other hosts do not write it
    for key, value in _USUAL.items():
        res.setdefault(key, value)
    weights = [*prompt_parser.parse_prompt_attention(prompt), *prompt_parser.parse_prompt_attention(negative_prompt)]
    if any(weight != 1.0 and piece != "BREAK" for piece, weight in weights):
        res.setdefault("Emphasis", "Original")
    for key in shared.opts.infotext_skip_pasting if skip_fields is None else skip_fields:
        res.pop(key, None)
    return res


def _old_hires(res: dict[str, Any]) -> None:
    """Reads what hosts wrote before "Hires resize": "Size" was that of the result, and 0x0 a first pass of 512x512's
    area in steps of 64."""
    try:
        first = int(res["First pass size-1"]), int(res["First pass size-2"])
        width, height = int(res.get("Size-1", 512)), int(res.get("Size-2", 512))
        if 0 in first:
            scale = 512 / math.sqrt(width * height)
            first = math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64
    except (KeyError, ValueError, ZeroDivisionError, OverflowError):
        return
    res["Size-1"], res["Size-2"] = map(str, first)
    res["Hires resize-1"], res["Hires resize-2"] = str(width), str(height)


def _old_names(res: dict[str, Any]) -> None:
    """Names that carry a schedule, as before v1.9 of the WebUI, become two fields."""
    from standalone.host.sampling import registry

    def split(sampler: str, schedule: str) -> bool:
        name, carried = registry.find_sampler(res.get(sampler, "")) or (None, None)
        if name is None or carried is None:
            return False
        res[sampler] = name.name
        res.setdefault(schedule, carried.label)
        return True

    split("Hires sampler", "Hires schedule type")
    if split("Sampler", "Schedule type") and "Hires sampler" in res:
        res.setdefault("Hires schedule type", "Automatic")  # the name meant the first pass alone


def _setting_names() -> list[tuple[str, str]]:
    known = [(info.infotext, key) for key, info in shared.opts.data_labels.items() if info.infotext]
    return [*known, *infotext_to_setting_name_mapping]


def create_override_settings_dict(text_pairs: Iterable[str]) -> dict[str, Any]:
    """Settings from pairs such as "Clip skip: 2"; names that are no setting are left out."""
    params = {key: value.strip() for key, value in (pair.split(":", maxsplit=1) for pair in text_pairs if ":" in pair)}
    return {name: shared.opts.cast_value(name, params[label]) for label, name in _setting_names() if label in params}


def get_override_settings(
    params: dict[str, Any],
    *,
    skip_fields: Sequence[str] | dict[str, Any] | None = None,
    left_out: list[str] | None = None,
) -> list[tuple[str, str, Any]]:
    """(label, setting, value) for the fields of an infotext that are settings, and not as they are now.

    left_out: gets a sentence for each value that does not fit.

    What this host wrote leaves out settings that have their defaults: these count as well.
    """
    res: list[tuple[str, str, Any]] = []
    if str(params.get("Version", "")).startswith(text.OURS):
        skipped = ("Model hash", "Emphasis", *shared.opts.infotext_skip_pasting)  # emphasis counts where a weight is
        usual = {label: shared.opts.get_default(name) for label, name in _setting_names() if label not in skipped}
        params = {**usual, **params}
    for label, name in _setting_names():
        if label in (skip_fields or ()) or params.get(label) is None:
            continue
        given = params[label]
        if name == "sd_model_checkpoint":
            checkpoint = None if shared.opts.disable_weights_auto_swap else checkpoints.checkpoint_of_infotext(params)
            if checkpoint is None:  # `job_fields` has a sentence for it
                continue
            given = given if checkpoint.shorthash else checkpoint.title
        try:
            value = shared.opts.cast_value(name, given)
        except (TypeError, ValueError):
            if left_out is not None:
                left_out.append(f"{label} '{shown(params[label])}' does not fit and was left out.")
            continue
        if value is not None and value != getattr(shared.opts, name, None):
            res.append((label, name, value))
    return res
