"""What "Send to" does: an image and, if it has an infotext, its settings go to another tab."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.pictures.convert import ImageError, open_image, to_rgba
from lib_methods.webui.gradio_compat import as_toast
from standalone.host import shared
from standalone.infotext.fields import IMG2IMG, TABLES

from . import paste
from .controls import QUICK, TELLS
from .extras import SINGLE, ExtrasTab
from .results import as_file, chosen_image, infotext_of, scratch_folder
from .tab import Tab

NO_IMAGE = "There is no image to send yet. Generate one first."


def image_fields(image: Tab) -> list[paste.Field]:
    """What an infotext that comes with an image sets in img2img."""
    return [field for field in image.paste_fields if field[0] is not image.fields["denoising_strength"]]


def connect_sends(text: Tab, image: Tab, extras: ExtrasTab, info: dict[str, Any], data_dir: Path) -> None:
    """Connects "Send to": the image and, if it has an infotext, its settings."""
    fields = image_fields(image)
    modes, group = image.extras["modes"], image.extras["inpaint_controls"]
    for panel in (text.panel, image.panel, extras.panel):
        gallery, selected, generation_info = panel.gallery, panel.selected, panel.generation_info
        for mode, target in (("img2img", image.fields["image"]), ("inpaint", image.fields["editor"])):
            # the tab first: an image sent to an editor that is not on the page yet gets lost
            panel.buttons[mode].click(
                fn=lambda mode=mode: gr.update(selected=mode), outputs=[modes], js=f"() => switch_to_{mode}()", **QUICK
            ).then(fn=None, js="() => pageIsDrawn()", **QUICK).then(
                fn=send_image(mode, fields, image.fields),
                inputs=[gallery, selected, generation_info],
                outputs=[target, image.fields["mode"], group, *[component for component, _ in fields]],
                **TELLS,
            )
        panel.buttons["txt2img"].click(
            fn=send_text(text),
            inputs=[generation_info, selected],
            outputs=[component for component, _ in text.paste_fields],
            **TELLS,
        ).then(fn=None, js="() => openTab('tab_txt2img')", **QUICK)
        if "extras" in panel.buttons:
            send_to_extras(panel.buttons["extras"], _send_file, [gallery, selected, generation_info], extras)
    info["txt2img"].click(
        fn=lambda words: send_text(text)(words, -1),
        inputs=[info["infotext"]],
        outputs=[component for component, _ in text.paste_fields],
        **TELLS,
    ).then(fn=None, js="() => openTab('tab_txt2img')", **QUICK)
    info["img2img"].click(
        fn=lambda: gr.update(selected="img2img"), outputs=[modes], js="() => switch_to_img2img()", **QUICK
    ).then(
        fn=lambda picture, words: sent(picture, words, "img2img", fields, image.fields),
        inputs=[info["picture"], info["infotext"]],
        outputs=[image.fields["image"], image.fields["mode"], group, *[component for component, _ in fields]],
        **TELLS,
    )
    send_to_extras(
        info["extras"],
        lambda picture, words: as_file(picture, words, scratch_folder(data_dir)) if picture is not None else gr.skip(),
        [info["picture"], info["infotext"]],
        extras,
    )


def send_to_extras(
    button: Any, get_file: Callable[..., Any], inputs: Sequence[Any], extras: ExtrasTab, js: str | None = None
) -> None:
    """Connects a button with Extras' image. get_file: a PNG's path for the values of `inputs`, or no change."""
    button.click(fn=lambda: SINGLE, outputs=[extras.mode], js="() => switch_to_extras()", **QUICK).then(
        fn=None, js="() => pageIsDrawn()", **QUICK
    ).then(fn=get_file, inputs=list(inputs), outputs=[extras.image], js=js, **TELLS)


def _send_file(gallery: list[Any] | None, selected: int | None, generation_info: str) -> Any:
    path, _ = chosen_image(gallery, selected, generation_info)
    if path is None:
        gr.Info(NO_IMAGE)
        return gr.skip()
    return str(path)


def sent(
    picture: Image.Image, words: str, mode: str, fields: Sequence[paste.Field], controls: Mapping[str, Any]
) -> list[Any]:
    """The updates for an image and its infotext: the image's control, the mode, the group of inpainting, `fields`."""
    params = paste.sendable(words)
    paste.say_left_out(params, IMG2IMG, controls)
    value: Any = picture
    if mode == "inpaint":
        value = {"background": picture, "layers": [], "composite": picture}
    size = {"Size-1": picture.width, "Size-2": picture.height} if picture is not None and shared.opts.send_size else {}
    head = [value, mode, gr.update(visible=mode != "img2img")]
    return [*head, *paste.updates({**params, **size}, fields)]


def send_image(mode: str, fields: Sequence[paste.Field], controls: Mapping[str, Any]) -> Callable[..., list[Any]]:
    """What sends the selected image of a gallery to img2img (`mode` "img2img") or to inpainting ("inpaint")."""

    def send(gallery: list[Any] | None, selected: int | None, generation_info: str) -> list[Any]:
        path, index = chosen_image(gallery, selected, generation_info)
        if path is None:
            gr.Info(NO_IMAGE)
            return [gr.update() for _ in range(3 + len(fields))]
        try:
            with open_image(path) as opened:
                picture = to_rgba(opened)
        except ImageError as error:
            gr.Info(as_toast(str(error)))
            return [gr.update() for _ in range(3 + len(fields))]
        return sent(picture, infotext_of(generation_info, index), mode, fields, controls)

    return send


def send_text(tab: Tab) -> Callable[[str, int | None], list[Any]]:
    """What sends an infotext's settings to `tab`; `selected` -1 means that the text is the infotext itself."""

    def send(generation_info: str, selected: int | None) -> list[Any]:
        words = generation_info if selected == -1 else infotext_of(generation_info, selected)
        if not words:
            gr.Info("This image has no infotext to send.")
            return [gr.update() for _ in tab.paste_fields]
        params = paste.sendable(words)
        paste.say_left_out(params, TABLES[tab.name], tab.fields)
        return paste.updates(params, tab.paste_fields)

    return send
