"""Infotext into controls: the paste button, "Send to", PNG Info."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lib_methods.pictures.convert import ImageError, open_image, to_rgba
from lib_methods.webui.gradio_compat import warn
from standalone.host import callbacks, images, pasting, shared
from standalone.infotext import text
from standalone.infotext.fields import Source, job_fields, value_of, without_control

from .controls import QUICK
from .results import as_html

Field = tuple[Any, Source]
"""A control, and the infotext key or the function of all parsed keys that gives its value."""

_BEGIN = re.compile(r"(?:^|\n)[ \t]*Steps: \d+, ")
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
    if isinstance(component, gr.Radio) or (
        isinstance(component, gr.Dropdown) and not component.multiselect and not component.allow_custom_value
    ):
        choices = [choice[1] if isinstance(choice, (tuple, list)) else choice for choice in component.choices]
        return value if value in choices else gr.update()
    return value


def parse(infotext: str) -> dict[str, Any]:
    """Parsed infotext, after the callbacks have seen it; {} when the text is none."""
    params: dict[str, Any] = pasting.parse_generation_parameters(infotext)
    callbacks.infotext_pasted_callback(infotext, params)
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
        found.append(fitting(component, value_of(source, params)))
    return found


def settings_update(params: Mapping[str, Any]) -> Any:
    """The update of "Override settings" for settings that the infotext names and that are not so now."""
    chosen = [f"{name}: {value}" for name, _, value in pasting.get_override_settings(dict(params))]
    return gr.update(value=chosen, choices=chosen, visible=bool(chosen))


def looks_like_infotext(words: str) -> bool:
    """Whether a prompt box holds a whole infotext rather than a prompt."""
    return _BEGIN.search(words) is not None or bool(text.read(words).fields)


def make_paste(
    fields: Sequence[Field], table: Mapping[str, Source], controls: Mapping[str, Any]
) -> Callable[[str, str], list[Any]]:
    """The function behind ↙: (text in the prompt box, infotext of this page's last image) -> updates.

    Outputs are the controls of `fields` and then "Override settings". table, controls: see `say_left_out`.
    """

    def paste(prompt: str, last: str) -> list[Any]:
        words = prompt if looks_like_infotext(prompt or "") else "" if (prompt or "").strip() else last
        if not words:
            gr.Info("Paste an infotext into the prompt box first, or empty the box to use the last image's.")
            return [gr.update() for _ in range(len(fields) + 1)]
        params = parse(words)
        say_left_out(params, table, controls)
        return [*updates(params, fields), settings_update(params)]

    return paste


def say_left_out(params: Mapping[str, Any], table: Mapping[str, Source], controls: Mapping[str, Any]) -> None:
    """Tells the user what of an infotext no control takes. table: TXT2IMG or IMG2IMG; controls: by the field's name."""
    left_out = [*job_fields(params, table)[1], *without_control(params, table, controls)]
    for sentence in left_out:
        warn(sentence)


def table_fields(table: Mapping[str, Source], controls: Mapping[str, Any]) -> list[Field]:
    """A tab's controls, and what of an infotext sets each."""
    return [(controls[name], source) for name, source in table.items() if name in controls]


def describe(path: str | None) -> tuple[str, str, Any]:
    """(readable texts as HTML, infotext, the image) of an image file."""
    if not path:
        return "", "", None
    try:
        with open_image(Path(path)) as image:
            picture = to_rgba(image)
            infotext, items = images.read_info_from_image(image)
    except ImageError as error:
        return as_html(str(error)), "", None
    texts: Mapping[str, Any] = {**({"parameters": infotext} if infotext else {}), **items}
    parts = [
        f"<div class='infotext'><b>{as_html(str(key))}</b>{as_html(str(value))}</div>"
        for key, value in texts.items()
        if isinstance(value, (str, int, float)) and (value != infotext or key == "parameters")
    ]
    return "".join(parts) or as_html("This image has no infotext."), infotext or "", picture


def build_png_info() -> dict[str, Any]:
    """Makes the components of the tab PNG Info: image, infotext (hidden), and the buttons that use it."""
    with gr.Row(equal_height=False):
        with gr.Column(variant="panel", min_width=280):
            image = gr.Image(
                elem_id="pnginfo_image",
                label="Source",
                sources=["upload", "clipboard"],
                type="filepath",
                height=380,
                format="png",
            )
        with gr.Column(variant="panel", min_width=280):
            with gr.Row(elem_classes="image-buttons"):
                to_txt2img = gr.Button("📝 Send to txt2img", elem_id="pnginfo_send_to_txt2img", size="sm")
                to_img2img = gr.Button("🖼️ Send to img2img", elem_id="pnginfo_send_to_img2img", size="sm")
                to_extras = gr.Button("📐 Send to Extras", elem_id="pnginfo_send_to_extras", size="sm")
            texts = gr.HTML(elem_id="pnginfo_html2_info")
            infotext = gr.Textbox(visible="hidden", elem_id="pnginfo_generation_info", label="infotext")
            picture = gr.Image(visible=False, type="pil", image_mode="RGBA", format="png")
    image.change(fn=describe, inputs=[image], outputs=[texts, infotext, picture], **QUICK)
    sends = {"txt2img": to_txt2img, "img2img": to_img2img, "extras": to_extras}
    return {"infotext": infotext, "picture": picture, **sends}
