"""Styles: the list below Generate, and the dialog that saves and deletes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lib_methods.errors import UserError
from lib_methods.webui.gradio_compat import as_toast
from standalone.host import shared
from standalone.host.components import ToolButton

from .controls import QUICK, TELLS
from .tab import Tab

_ABOUT = "A style's text comes after the prompt, or around it where you write {prompt} in its place."


@dataclass
class StylesDialog:
    """The parts of the dialog; dialogs.js opens and closes it."""

    known: Any
    name: Any
    copy: Any
    prompt: Any
    negative_prompt: Any
    save: Any
    delete: Any

    def connect(self, text: Tab, image: Tab) -> None:
        """Connects the dialog with both tabs' prompts and lists."""
        texts, lists = [self.prompt, self.negative_prompt], [text.top.styles, image.top.styles]
        self.known.input(fn=_style, inputs=[self.known], outputs=[self.name, *texts], **QUICK)
        self.copy.click(
            fn=None,
            inputs=[*text.top.prompts, *image.top.prompts],
            outputs=texts,
            js="(...all) => uiOpenTab === 'tab_img2img' ? all.slice(2) : all.slice(0, 2)",
            **QUICK,
        )
        self.save.click(fn=_save, inputs=[self.name, *texts, *lists], outputs=[self.known, *lists], **TELLS)
        self.delete.click(
            fn=_delete,
            inputs=[self.name, *lists],
            outputs=[self.known, *lists, self.name, *texts],
            js="(name, ...lists) => [name && confirm(`Delete the style ${name}?`) ? name : '', ...lists]",
            **TELLS,
        )
        for top in (text.top, image.top):
            top.apply_styles.click(
                fn=_apply, inputs=[*top.prompts, top.styles], outputs=[*top.prompts, top.styles], **QUICK
            )


def build_dialog() -> StylesDialog:
    """Makes the dialog."""
    with gr.Column(elem_id="styles_dialog", elem_classes="dialog"):
        gr.HTML(f"<h2>Styles</h2><p>{_ABOUT}</p>")
        with gr.Row():
            chosen = gr.Dropdown(known(), value=None, label="Saved styles", elem_id="style_known", min_width=120)
            name = gr.Textbox(label="Name", elem_id="style_name", max_lines=1, min_width=120)
            copy = ToolButton(value="\U0001f4dd", elem_id="style_copy")
        prompt = gr.Textbox(label="Prompt", elem_id="style_prompt", lines=3, elem_classes="prompt")
        negative = gr.Textbox(label="Negative prompt", elem_id="style_neg_prompt", lines=3, elem_classes="prompt")
        with gr.Row():
            save = gr.Button("Save", variant="primary", elem_id="style_save", min_width=80)
            delete = gr.Button("Delete", elem_id="style_delete", min_width=80)
            gr.Button("Close", elem_classes="dialog-close", min_width=80)
    return StylesDialog(chosen, name, copy, prompt, negative, save, delete)


def known() -> list[str]:
    """The names of all styles."""
    return list(shared.prompt_styles.styles)


def choices() -> list[Any]:
    """Updates for the lists of txt2img, of img2img and of the dialog, with what the file has now."""
    shared.prompt_styles.reload()
    return [gr.update(choices=known()) for _ in range(3)]


def _style(name: str | None) -> Sequence[Any]:
    style = shared.prompt_styles.styles.get(name or "")
    return style[:3] if style is not None else [gr.skip()] * 3


def _save(name: str, prompt: str, negative_prompt: str, *lists: Sequence[str]) -> list[Any]:
    try:
        kept = shared.prompt_styles.keep(name, prompt, negative_prompt)
    except UserError as error:
        gr.Info(as_toast(str(error)))
        return [gr.skip()] * 3
    gr.Info(as_toast(f"Saved the style {kept}."))
    return [gr.update(choices=known(), value=kept), *_still_there(lists)]


def _delete(name: str, *lists: Sequence[str]) -> list[Any]:
    try:
        gone = bool(name) and shared.prompt_styles.drop(name.strip())
    except UserError as error:
        gr.Info(as_toast(str(error)))
        return [gr.skip()] * 6
    if name and not gone:
        gr.Info(as_toast(f"There is no style named {name}."))
    texts = [""] * 3 if gone else [gr.skip()] * 3
    return [gr.update(choices=known(), value=None), *_still_there(lists), *texts]


def _still_there(lists: Sequence[Sequence[str]]) -> list[Any]:
    names = known()
    return [gr.update(choices=names, value=[name for name in chosen if name in names]) for chosen in lists]


def _apply(prompt: str, negative_prompt: str, chosen: Sequence[str]) -> tuple[str, str, list[str]]:
    styles = shared.prompt_styles
    prompt = styles.apply_styles_to_prompt(prompt, chosen)
    return prompt, styles.apply_negative_styles_to_prompt(negative_prompt, chosen), []
