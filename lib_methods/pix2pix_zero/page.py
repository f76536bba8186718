"""pix2pix-zero's page beyond its table of controls: the host's caption, the library of directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.denoiser import Unsupported
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero.sentences import read_text
from lib_methods.pix2pix_zero.workshop import BUILT_IN, Workshop
from lib_methods.webui.gradio_compat import listen, unsaved
from lib_methods.webui.image_box import file_box
from lib_methods.webui.widgets import Widgets, status_html

HINT = "Saved directions, instead of source and target. Build one or drop files, then add it to the line of directions."


def caption_of(tell: Callable[[Image.Image], str], image: Image.Image | None, caption: str) -> list[str]:
    """The caption that `tell` gives the tab's image, or the one that was there, and the status line."""
    if image is None:
        return [caption, status_html("Add an image to the tab first.", problem=True)]
    try:
        return [tell(image), status_html("Caption by the WebUI. Correct it where it is wrong.")]
    except Unsupported as error:
        return [caption, status_html(str(error), problem=True)]


def with_text_encoder(work: Callable[[Any], Any]) -> Any:
    """What `work` returns for the loaded model's text encoder."""
    from lib_methods.hosts.a1111 import text  # here, so that the controls appear on hosts that have none

    return text.with_text_encoder(work)


def add_controls(widgets: Widgets, store: ImageStore, status: Any, tab_image: Any) -> None:
    """The controls of an edit. tab_image: img2img's own box, where the host can caption what is in it."""
    widgets.add("source", "target")
    widgets.add("strength", "structure")
    caption = widgets.add("caption")
    if tab_image is not None:
        from lib_methods.hosts.a1111.text import interrogator  # here, as above

        if (tell := interrogator()) is not None:
            ask = gr.Button("Caption by the WebUI", size="sm", elem_id=f"{widgets.elem_id}_describe")
            listen(ask.click, partial(caption_of, tell), [tab_image, caption], [caption, status])
    with widgets.accordion("Where it may change", "where"):
        widgets.add("mask_mode", "mask_word", "mask_level")
        widgets.image("mask", "Mask image", store, status, kind="mask")
    with widgets.accordion("More"):
        widgets.add("guidance", "layers")
        widgets.add("start", "end")
        widgets.add("inversion", "regularisation", "refinements")
        widgets.add("direction_from", "words_are")
        widgets.add("caption_as_negative", "save_memory", "show")


class LibraryHandlers:
    """Event handlers. Keeps no state: that is in the page and on the disk. Each returns the line that is shown, and
    before it what else changes."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def refresh(self) -> Any:
        """The choices as they are on the disk now."""
        return gr.update(choices=self.workshop.names())

    def show(self, name: Any) -> str:
        """What the chosen direction was made from."""
        record = self.workshop.record(name) if isinstance(name, str) else ""
        return status_html(record) if record else ""

    def add(self, name: Any, weight: Any, line: str) -> list[Any]:
        """The line of directions with the chosen one at its end."""
        if not isinstance(name, str) or not name:
            return [line, status_html("Choose a direction first.", problem=True)]
        value = float(weight or 0)
        before = (line or "").rstrip(" ,")
        added = f"{before}{'' if not before else ' ' if before.endswith('|') else ', '}{name}: {value:g}"
        return [added, status_html(f'"{name}" is in the line of directions, which is used instead of the words.')]

    def build(self, name: Any, source: str, target: str, kind: str, before: str, after: str, model: Any) -> list[Any]:
        """From words and, where there are any, the user's sentences."""
        texts = (before or "", after or "")
        return self._kept(
            lambda: self.workshop.build(name, source or "", target or "", kind, texts, str(model or BUILT_IN)),
            "is built",
        )

    def combine(self, name: Any, line: Any) -> list[Any]:
        """From the line of directions."""
        return self._kept(lambda: self.workshop.combine(name, line), "is combined")

    def bring_in(self, name: Any, before: Any, after: Any) -> list[Any]:
        """From dropped files."""
        files = [file if isinstance(file, str) else file.name for file in (before, after) if file is not None]
        return self._kept(lambda: self.workshop.bring_in(name, files), "is imported")

    def delete(self, name: Any) -> list[Any]:
        """The dropdown without the direction."""
        return self._kept(lambda: self.workshop.delete(str(name or "")), "is deleted", chosen=False)

    def read(self, file: Any, text: str) -> list[Any]:
        """A text file was dropped: the box for sentences with what is in it."""
        if file is None:
            return [text, gr.update()]
        try:
            return [read_text(file if isinstance(file, str) else file.name), status_html("Sentences read.")]
        except SettingsError as error:
            return [text, status_html(str(error), problem=True)]

    def _kept(self, work: Callable[[], str], what: str, chosen: bool = True) -> list[Any]:
        try:
            name = work()
        except (SettingsError, Unsupported) as error:
            return [gr.update(), status_html(str(error), problem=True)]
        update = gr.update(choices=self.workshop.names(), value=name if chosen else None)
        return [update, status_html(f'The direction "{name}" {what}.')]


def add_library(widgets: Widgets, workshop: Workshop) -> None:
    """Makes the accordion of the library and connects it."""
    handlers, elem_id = LibraryHandlers(workshop), widgets.elem_id
    models = workshop.text_models()
    words = [widgets[name] for name in ("source", "target", "words_are")]
    with widgets.accordion("Directions", "library"):
        status = gr.HTML(status_html(HINT), elem_id=f"{elem_id}_library_status")
        with gr.Row():
            chosen = unsaved(
                gr.Dropdown(
                    workshop.names(), value=None, label="In the library", elem_id=f"{elem_id}_direction", scale=3
                )
            )
            weight = unsaved(gr.Number(1.0, label="Weight", info="-1 reverses it", elem_id=f"{elem_id}_weight"))
        record = gr.HTML("", elem_id=f"{elem_id}_record")
        add, delete = widgets.buttons(add="Add to the line", delete="Delete")
        line = widgets.add("directions")
        name = unsaved(
            gr.Textbox(
                value="", label="Name", placeholder="cat to dog", info="of a new direction", elem_id=f"{elem_id}_name"
            )
        )
        build, combine = widgets.buttons(build="Build from source and target", combine="Keep the line as one")
        widgets.add("save_as")
        with widgets.accordion("My own sentences", "sentences"):
            boxes, drops = [], []
            with gr.Row():
                for word in ("source", "target"):
                    with gr.Column():
                        box = gr.Textbox(
                            value="",
                            label=f"Sentences about the {word}",
                            info="one per line; {word} is the word",
                            lines=3,
                            max_lines=10,
                            elem_id=f"{elem_id}_{word}_sentences",
                        )
                        boxes.append(unsaved(box))
                        drops.append(_drop("or a text file", f"{elem_id}_{word}_text", ".txt"))
            model = unsaved(
                gr.Dropdown(
                    [BUILT_IN, *models],
                    value=BUILT_IN,
                    label="Without your own",
                    info="the built-in sentences, or a text model writes them",
                    visible=bool(models),
                )
            )
        with widgets.accordion("Import", "import"):
            with gr.Row():
                first = _drop("Direction (.safetensors), or the source's .pt", f"{elem_id}_file", ".safetensors", ".pt")
                second = _drop("The target's .pt", f"{elem_id}_second_file", ".pt")
            (bring_in,) = widgets.buttons(bring_in="Import")
    listen(chosen.focus, handlers.refresh, [], [chosen])
    listen(chosen.change, handlers.show, [chosen], [record])
    listen(add.click, handlers.add, [chosen, weight, line], [line, status])
    listen(delete.click, handlers.delete, [chosen], [chosen, status])
    listen(build.click, lambda: status_html("Embedding the sentences …"), [], [status])
    listen(build.click, handlers.build, [name, *words, *boxes, model], [chosen, status])
    listen(combine.click, handlers.combine, [name, line], [chosen, status])
    listen(bring_in.click, handlers.bring_in, [name, first, second], [chosen, status])
    for drop, box in zip(drops, boxes):
        listen(drop.change, handlers.read, [drop, box], [box, status])


def _drop(label: str, elem_id: str, *types: str) -> Any:
    return unsaved(file_box(label=label, file_types=list(types), elem_id=elem_id, height=100))
