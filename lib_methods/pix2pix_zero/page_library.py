"""The library of directions on the page: its controls, and what they do when they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from lib_methods.checks import SettingsError
from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.sentences import read_text
from lib_methods.pix2pix_zero.workshop import BUILT_IN, Workshop
from lib_methods.webui.gradio_compat import listen, unsaved
from lib_methods.webui.image_box import file_box
from lib_methods.webui.status import status_html

HINT = "Saved directions, instead of source and target. Build one or drop files, then add it to the line of directions."


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


def build_library(workshop: Workshop, elem_id: str, words: Sequence[Any]) -> dict[str, Any]:
    """Draw the accordion and let it work. words: the controls of source, target and what they are.

    Returns the controls of the method that stand in it, by name.
    """
    handlers = LibraryHandlers(workshop)
    models = workshop.text_models()
    with gr.Accordion("Directions", open=False, elem_id=f"{elem_id}_library"):
        status = gr.HTML(status_html(HINT), elem_id=f"{elem_id}_library_status")
        with gr.Row():
            chosen = unsaved(
                gr.Dropdown(
                    workshop.names(), value=None, label="In the library", elem_id=f"{elem_id}_direction", scale=3
                )
            )
            weight = unsaved(gr.Number(1.0, label="Weight", info="-1 reverses it", elem_id=f"{elem_id}_weight"))
        record = gr.HTML("", elem_id=f"{elem_id}_record")
        add, delete = _buttons(elem_id, add="Add to the line", delete="Delete")
        line = gr.Textbox(
            value="",
            label="Directions",
            placeholder="cat to dog: 1, day to night: -0.5",
            info="instead of source and target; -1 reverses one; separate several with a bar, used in turn",
            lines=1,
        )
        name = unsaved(
            gr.Textbox(
                value="", label="Name", placeholder="cat to dog", info="of a new direction", elem_id=f"{elem_id}_name"
            )
        )
        build, combine = _buttons(elem_id, build="Build from source and target", combine="Keep the line as one")
        save_as = unsaved(
            gr.Textbox(
                value="",
                label="Keep the next edit's direction as",
                info="with its LoRAs and caption; replaces an older one at every Generate",
                lines=1,
            )
        )
        with gr.Accordion("My own sentences", open=False, elem_id=f"{elem_id}_sentences"):
            boxes, drops = [], []
            with gr.Row():
                for word in ("source", "target"):
                    with gr.Column():
                        boxes.append(_lines(f"Sentences about the {word}", f"{elem_id}_{word}_sentences"))
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
        with gr.Accordion("Import", open=False, elem_id=f"{elem_id}_import"):
            with gr.Row():
                first = _drop("Direction (.safetensors), or the source's .pt", f"{elem_id}_file", ".safetensors", ".pt")
                second = _drop("The target's .pt", f"{elem_id}_second_file", ".pt")
            (bring_in,) = _buttons(elem_id, bring_in="Import")
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
    return {"directions": line, "save_as": save_as}


def _buttons(elem_id: str, **labels: str) -> Sequence[Any]:
    with gr.Row():
        return [gr.Button(label, size="sm", elem_id=f"{elem_id}_{name}") for name, label in labels.items()]


def _lines(label: str, elem_id: str) -> Any:
    return unsaved(
        gr.Textbox(
            value="", label=label, lines=3, max_lines=10, info="one per line; {word} is the word", elem_id=elem_id
        )
    )


def _drop(label: str, elem_id: str, *types: str) -> Any:
    return unsaved(file_box(label=label, file_types=list(types), elem_id=elem_id, height=100))
