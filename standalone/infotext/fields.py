"""The table of job fields that an infotext sets, for the API and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lib_methods.errors import UserError
from standalone.engine import names
from standalone.host import checkpoints, shared, upscalers
from standalone.host.sampling import registry
from standalone.infotext.foreign import UNREAD

Params = Mapping[str, Any]
Source = str | Callable[[Params], Any]
"""An infotext's key, or a function of all of them; None leaves a field as it is."""

MASK_MODES = ("Inpaint masked", "Inpaint not masked")
FILLS = ("fill", "original", "latent noise", "latent nothing")
AREAS = ("Whole picture", "Only masked")
RESIZE_MODES = ("Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)")
CHOICES = {
    "inpainting_mask_invert": MASK_MODES,
    "inpainting_fill": FILLS,
    "inpaint_full_res": AREAS,
    "resize_mode": RESIZE_MODES,
}
"""Fields that are written as a word and are a number in requests."""


def hires_is_on(params: Params) -> bool:
    """Whether the image was made with Hires. fix; "Denoising strength" alone is img2img's, too."""
    if any(f"Hires {name}" in params for name in ("upscale", "upscaler", "steps")):
        return True
    return any(str(params.get(f"Hires resize-{side}", 0)) not in ("0", "") for side in (1, 2))


COMMON: dict[str, Source] = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "steps": "Steps",
    "sampler_name": registry.get_sampler_from_infotext,
    "scheduler": registry.get_scheduler_from_infotext,
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "width": "Size-1",
    "height": "Size-2",
    "batch_size": "Batch size",
    "subseed": "Variation seed",
    "subseed_strength": "Variation seed strength",
    "seed_resize_from_w": "Seed resize from-1",
    "seed_resize_from_h": "Seed resize from-2",
    "denoising_strength": "Denoising strength",
    "refiner_checkpoint": "Refiner",
    "refiner_switch_at": "Refiner switch at",
}
TXT2IMG: dict[str, Source] = {
    **COMMON,
    "enable_hr": hires_is_on,
    "hr_scale": "Hires upscale",
    "hr_upscaler": "Hires upscaler",
    "hr_second_pass_steps": "Hires steps",
    "hr_resize_x": "Hires resize-1",
    "hr_resize_y": "Hires resize-2",
    "hr_checkpoint_name": "Hires checkpoint",
    "hr_sampler_name": registry.get_hr_sampler_from_infotext,
    "hr_scheduler": registry.get_hr_scheduler_from_infotext,
    "hr_prompt": "Hires prompt",
    "hr_negative_prompt": "Hires negative prompt",
    "hr_cfg": lambda params: params.get("Hires CFG scale", params.get("Hires CFG Scale")),
}
IMG2IMG: dict[str, Source] = {
    **COMMON,
    "image_cfg_scale": "Image CFG scale",
    "resize_mode": "Resize mode",
    "mask_blur": "Mask blur",
    "mask_blur_x": "Mask blur x",
    "mask_blur_y": "Mask blur y",
    "inpainting_mask_invert": "Mask mode",
    "inpainting_fill": "Masked content",
    "inpaint_full_res": "Inpaint area",
    "inpaint_full_res_padding": "Masked area padding",
}
_MISSING = {
    "Hypernet": "None",
    "Face restoration": "None",
    "Tiling": "False",
    "Token merging ratio": "0",
    "Token merging ratio hr": "0",
    "FP8 weight": "Disable",
}
"""What changes an image in the WebUI and is missing here, with the value that changes nothing."""
TABLES = {"txt2img": TXT2IMG, "img2img": IMG2IMG}
_USUAL = (None, "", 0, "0", "Automatic", "Use same checkpoint", "Use same sampler", "Use same scheduler")
_NAMES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "sampler_name": ("Sampler", registry.resolve),
    "scheduler": ("Schedule type", lambda name: registry.resolve(None, name)),
    "hr_upscaler": ("Hires upscaler", upscalers.find_hires_upscaler),
    "hr_sampler_name": ("Hires sampler", lambda name: registry.resolve_hires(name, None)),
    "hr_scheduler": ("Hires schedule type", lambda name: registry.resolve_hires(None, name)),
    "hr_checkpoint_name": ("Hires checkpoint", checkpoints.find_checkpoint),
    "refiner_checkpoint": ("Refiner", checkpoints.find_checkpoint),
}


def value_of(source: Source, params: Params) -> Any:
    return source(params) if callable(source) else params.get(source)


def job_fields(params: Params, table: Mapping[str, Source]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a job that an infotext sets, and a sentence for each name in it that is not here.

    params: of `infotext_utils.parse_generation_parameters`. table: TXT2IMG or IMG2IMG. Values are text as it was
    written, or a choice's number.
    """
    values = {name: value for name, source in table.items() if (value := value_of(source, params)) is not None}
    left_out: list[str] = []
    if UNREAD in params:
        left_out.append(f"This is metadata of {names.shown(params[UNREAD])}, not an infotext. It was left out.")
    left_out += _models_not_here(params)
    left_out += [
        f"{key} '{names.shown(params[key])}' does not exist here and was left out."
        for key, off in _MISSING.items()
        if params.get(key, off) != off
    ]
    for name, (key, resolve) in _NAMES.items():
        if name not in values:
            continue
        try:
            resolve(str(values[name]))
        except UserError:
            left_out.append(f"{key} '{names.shown(values.pop(name))}' does not exist here and was left out.")
    if "refiner_checkpoint" not in values:
        values.pop("refiner_switch_at", None)
    for name, choices in CHOICES.items():
        if name in values and values[name] not in choices:
            left_out.append(f"{table[name]} '{names.shown(values.pop(name))}' does not exist here and was left out.")
        elif name in values:
            values[name] = choices.index(values[name])
    return values, left_out


def _models_not_here(params: Params) -> list[str]:
    """A sentence for a checkpoint, and one for a VAE, that an infotext would load and that is not here."""
    model, checksum, vae = (str(params.get(key) or "").strip() for key in ("Model", "Model hash", "VAE"))
    shown = {"Model": f"{model} [{checksum}]" if model and checksum else model or checksum, "VAE": vae}
    if shared.opts.disable_weights_auto_swap or checkpoints.checkpoint_of_infotext(params) is not None:
        shown["Model"] = ""
    if names.folded(vae) in ("automatic", "none"):
        shown["VAE"] = ""
    return [f"{key} '{names.shown(name)}' does not exist here and was left out." for key, name in shown.items() if name]


def without_control(params: Params, table: Mapping[str, Source], controls: Mapping[str, Any]) -> list[str]:
    """A sentence if an infotext sets fields that a page has no control for."""
    missing = [
        source if isinstance(source, str) else name
        for name, source in table.items()
        if name not in controls and value_of(source, params) not in _USUAL
    ]
    labels = dict.fromkeys(name.removesuffix("-1").removesuffix("-2") for name in missing)
    labels = {"Hires CFG scale" if label == "hr_cfg" else label: None for label in labels}
    return [f"This page has no control for: {', '.join(labels)}. Left out."] if labels else []
