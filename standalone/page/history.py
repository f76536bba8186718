"""The tab History. history.js shows the images; here is what takes one of them to another tab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.errors import UserError
from lib_methods.pictures.convert import ImageError, open_image, to_rgba
from lib_methods.webui.gradio_compat import as_toast
from standalone.history.index import History
from standalone.history.texts import infotext_of
from standalone.infotext.fields import TABLES

from .controls import QUICK, TELLS
from .extras import ExtrasTab
from .paste import make_paste
from .results import as_file, scratch_folder
from .sends import image_fields, send_to_extras, sent
from .tab import Tab

CHOSEN = "() => [historyChosen()]"


def build_history() -> dict[str, Any]:
    """Makes the tab: an empty place for the images, and what history.js presses."""
    gr.HTML("<div id='history'></div>", elem_id="history_place")
    parts: dict[str, Any] = {"ident": gr.Textbox(visible="hidden", elem_id="history_ident", label="image")}
    for name in ("to_txt2img", "to_img2img", "send_img2img", "send_extras"):
        parts[name] = gr.Button(name, visible="hidden", elem_id=f"history_{name}")
    return parts


def connect_history(
    parts: dict[str, Any], history: History, text: Tab, image: Tab, extras: ExtrasTab, data_dir: Path
) -> None:
    """Connects "Use settings" with both tabs, "Send to img2img" and "Send to Extras"."""
    for tab in (text, image):
        parts[f"to_{tab.name}"].click(
            fn=_use_settings(history, tab),
            inputs=[parts["ident"]],
            outputs=[*[component for component, _ in tab.paste_fields], tab.fields["override_settings"]],
            js=CHOSEN,
            **TELLS,
        ).then(fn=None, js=f"() => openTab('tab_{tab.name}')", **QUICK)
    fields = image_fields(image)
    modes, group = image.extras["modes"], image.extras["inpaint_controls"]
    # the tab first: an image sent to a part of the page that is not drawn yet gets lost
    parts["send_img2img"].click(
        fn=lambda: gr.update(selected="img2img"), outputs=[modes], js="() => switch_to_img2img()", **QUICK
    ).then(fn=None, js="() => pageIsDrawn()", **QUICK).then(
        fn=_send_image(history, image),
        inputs=[parts["ident"]],
        outputs=[image.fields["image"], image.fields["mode"], group, *[component for component, _ in fields]],
        js=CHOSEN,
        **TELLS,
    )
    send_to_extras(parts["send_extras"], _file_of(history, data_dir), [parts["ident"]], extras, js=CHOSEN)


def _file_of(history: History, data_dir: Path) -> Callable[[str], Any]:
    """What gives an image as a PNG file that has its infotext."""

    def find(ident: str) -> Any:
        try:
            picture, words = _opened(history, ident)
        except (UserError, OSError) as error:
            gr.Info(as_toast(_sentence(error)))
            return gr.skip()
        return as_file(picture, words, scratch_folder(data_dir))

    return find


def _opened(history: History, ident: str) -> tuple[Image.Image, str]:
    """An image and its infotext. Raises UserError or OSError."""
    file = history.find(ident)
    with open_image(Path(file.path)) as opened:
        picture = to_rgba(opened)
    return picture, infotext_of(file, whole=True)


def _use_settings(history: History, tab: Tab) -> Callable[[str], list[Any]]:
    paste = make_paste(tab.paste_fields, TABLES[tab.name], tab.fields)

    def use(ident: str) -> list[Any]:
        try:
            words = infotext_of(history.find(ident), whole=True)
        except (UserError, OSError) as error:
            words, problem = "", _sentence(error)
        else:
            problem = "This image has no infotext, so there are no settings to use."
        if not words:
            gr.Info(as_toast(problem))
            return [gr.update() for _ in range(len(tab.paste_fields) + 1)]
        return paste("", words)

    return use


def _send_image(history: History, image: Tab) -> Callable[[str], list[Any]]:
    fields = image_fields(image)

    def send(ident: str) -> list[Any]:
        try:
            picture, words = _opened(history, ident)
        except (UserError, OSError) as error:
            gr.Info(as_toast(_sentence(error)))
            return [gr.update() for _ in range(3 + len(fields))]
        return sent(picture, words, "img2img", fields, image.fields)

    return send


def _sentence(error: Exception) -> str:
    if isinstance(error, (UserError, ImageError)):
        return str(error)
    return "This image cannot be read: it is gone, or you may not have permission."
