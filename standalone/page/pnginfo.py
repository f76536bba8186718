"""The tab PNG Info: an image's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from lib_methods.pictures.convert import ImageError, open_image, to_rgba
from standalone.host import images

from .parts import QUICK
from .results import as_html


def describe(path: str | None) -> tuple[str, str, Any]:
    """(readable texts as HTML, infotext, the picture) of an image file."""
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


def build() -> dict[str, Any]:
    """Makes the tab's components: image, infotext (hidden), and the two buttons that use it."""
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
            texts = gr.HTML(elem_id="pnginfo_html2_info")
            infotext = gr.Textbox(visible="hidden", elem_id="pnginfo_generation_info", label="infotext")
            picture = gr.Image(visible=False, type="pil", image_mode="RGBA", format="png")
    image.change(fn=describe, inputs=[image], outputs=[texts, infotext, picture], **QUICK)
    return {"infotext": infotext, "picture": picture, "txt2img": to_txt2img, "img2img": to_img2img}
