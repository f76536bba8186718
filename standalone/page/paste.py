"""Infotext into controls: the paste button, "Send to", PNG Info."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from modules import infotext_utils, script_callbacks, sd_samplers, shared

Source = str | Callable[[Mapping[str, Any]], Any]
Field = tuple[Any, Source]
"""A control, and the infotext key or the function of all parsed keys that gives its value."""

_UPDATES = ("update", "generic_update")


def as_fields(found: Sequence[Any]) -> list[Field]:
    """Plain pairs of what scripts give: pairs, or the host's PasteField."""
    return [
        (item.component, item.function or item.label) if hasattr(item, "component") else (item[0], item[1])
        for item in found
    ]


def fitting(component: Any, value: Any) -> Any:
    """`value`, mostly text, as the control wants it; a gradio update that changes nothing when it does not fit."""
    if value is None:
        return gr.update()
    if isinstance(value, Mapping) and value.get("__type__") in _UPDATES:
        return value
    default = getattr(component, "value", None)
    try:
        if isinstance(default, bool) or component.__class__.__name__ in ("Checkbox", "InputAccordion"):
            return value if isinstance(value, bool) else str(value).strip().lower() not in ("false", "0", "")
        if isinstance(component, (gr.Slider, gr.Number)):
            number = float(value)
            return int(number) if number == int(number) else number
    except (ValueError, OverflowError):
        return gr.update()
    if isinstance(component, gr.Dropdown) and not component.multiselect and not component.allow_custom_value:
        choices = [choice[1] if isinstance(choice, (tuple, list)) else choice for choice in component.choices]
        return value if value in choices else gr.update()
    return value


def parse(infotext: str) -> dict[str, Any]:
    """Parsed infotext, after the callbacks have seen it; {} when the text is none."""
    params: dict[str, Any] = infotext_utils.parse_generation_parameters(infotext)
    script_callbacks.infotext_pasted_callback(infotext, params)
    return params


def sendable(infotext: str) -> dict[str, Any]:
    """What "Send to" takes over of an infotext, by the settings "send_seed" and "send_size"."""
    params = parse(infotext) if infotext else {}
    kept_back = [] if shared.opts.send_seed else ["Seed"]
    kept_back += [] if shared.opts.send_size else ["Size-1", "Size-2"]
    return {key: value for key, value in params.items() if key not in kept_back}


def updates(params: Mapping[str, Any], fields: Sequence[Field]) -> list[Any]:
    """One gradio update per field."""
    found = []
    for component, source in fields:
        value = source(params) if callable(source) else params.get(source)
        found.append(fitting(component, value))
    return found


def settings_update(params: Mapping[str, Any]) -> Any:
    """The update of "Override settings" for settings that the infotext names and that are not so now."""
    chosen = [f"{name}: {value}" for name, _, value in infotext_utils.get_override_settings(dict(params))]
    return gr.update(value=chosen, choices=chosen, visible=bool(chosen))


def looks_like_infotext(text: str) -> bool:
    """Whether a prompt box holds a whole infotext rather than a prompt."""
    return "\nSteps: " in text or text.strip().startswith("Steps: ")


def make_paste(fields: Sequence[Field]) -> Callable[[str, str], list[Any]]:
    """The function behind ↙: (text in the prompt box, infotext of this page's last image) -> updates.

    Outputs are the controls of `fields` and then "Override settings".
    """

    def paste(prompt: str, last: str) -> list[Any]:
        text = prompt if looks_like_infotext(prompt or "") else "" if (prompt or "").strip() else last
        if not text:
            gr.Info("Put an infotext into the prompt box first, or leave the box empty to take the last picture's.")
            return [gr.update() for _ in range(len(fields) + 1)]
        params = parse(text)
        return [*updates(params, fields), settings_update(params)]

    return paste


def common_fields(controls: Mapping[str, Any]) -> list[Field]:
    """The fields that both tabs have."""
    names: dict[str, Source] = {
        "prompt": "Prompt",
        "negative_prompt": "Negative prompt",
        "steps": "Steps",
        "sampler_name": sd_samplers.get_sampler_from_infotext,
        "scheduler": sd_samplers.get_scheduler_from_infotext,
        "cfg_scale": "CFG scale",
        "seed": "Seed",
        "width": "Size-1",
        "height": "Size-2",
        "batch_size": "Batch size",
        "subseed": "Variation seed",
        "subseed_strength": "Variation seed strength",
        "denoising_strength": "Denoising strength",
    }
    return [(controls[name], key) for name, key in names.items() if name in controls]


def hires_fields(controls: Mapping[str, Any]) -> list[Field]:
    """The fields of Hires. fix."""

    def enabled(params: Mapping[str, Any]) -> bool:
        return "Denoising strength" in params and any(
            f"Hires {key}" in params for key in ("upscale", "upscaler", "resize-1")
        )

    names: dict[str, Source] = {
        "hr_scale": "Hires upscale",
        "hr_upscaler": "Hires upscaler",
        "hr_second_pass_steps": "Hires steps",
        "hr_resize_x": "Hires resize-1",
        "hr_resize_y": "Hires resize-2",
        "hr_sampler_name": sd_samplers.get_hr_sampler_from_infotext,
        "hr_scheduler": sd_samplers.get_hr_scheduler_from_infotext,
        "hr_prompt": "Hires prompt",
        "hr_negative_prompt": "Hires negative prompt",
    }
    return [(controls["enable_hr"], enabled), *[(controls[name], key) for name, key in names.items()]]


def inpaint_fields(controls: Mapping[str, Any]) -> list[Field]:
    """The fields of img2img and inpainting."""
    names = {"mask_blur": "Mask blur", "inpaint_full_res_padding": "Masked area padding"}
    return [(controls[name], key) for name, key in names.items()]
