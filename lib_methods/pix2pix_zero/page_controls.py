"""The controls of an edit on the page, by the names of `request.CONTROLS`, each with the settings' default."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lib_methods.pix2pix_zero.infotext import DEFAULTS
from lib_methods.pix2pix_zero.sentences import KINDS
from lib_methods.pix2pix_zero.settings import (
    DIRECTIONS_FROM,
    GUIDANCES,
    INVERSIONS,
    LAYERS,
    MASK_MODES,
    MAX_STRENGTH,
    MAX_STRUCTURE,
    REGULARISATIONS,
)
from lib_methods.webui.gradio_compat import unsaved
from lib_methods.webui.image_box import image_box


def build_edit(made: dict[str, Any], elem_id: str) -> None:
    """What everybody sets: words, strength, structure and caption."""
    with gr.Row():
        made["source"] = _text("Source", "cat", "what is in the image", f"{elem_id}_source")
        several = 'what it becomes; separate several with "|", used in turn'
        made["target"] = _text("Target", "dog", several, f"{elem_id}_target")
    with gr.Row():
        made["strength"] = _slider("strength", "Strength", MAX_STRENGTH, "how far it changes", 0.05)
        made["structure"] = _slider("structure", "Structure", MAX_STRUCTURE, "how firmly its form is held", 0.01)
    made["caption"] = _text("Caption", "a cat on a sofa", "what the image shows; empty: the prompt above")


def build_where(made: dict[str, Any], elem_id: str) -> tuple[Any, Any, Any]:
    """Where the picture may change. Returns the box for a mask, its preview, and the button that removes it."""
    with gr.Accordion("Where it may change", open=False, elem_id=f"{elem_id}_where"):
        with gr.Row():
            made["mask_mode"] = _choice("mask_mode", "Mask", MASK_MODES)
            made["mask_word"] = _text("Word", "cat", "for the mask by word; empty: the source")
            made["mask_level"] = _slider("mask_level", "Mask level", 1.0, "lower: a larger mask", 0.05)
        with gr.Row():
            drop = unsaved(image_box(label="Mask picture", height=220, elem_id=f"{elem_id}_drop"))
            shown = gr.HTML("", elem_id=f"{elem_id}_mask_preview")
        forget = gr.Button("Remove mask", size="sm", elem_id=f"{elem_id}_mask_clear")
    return drop, shown, forget


def build_more(made: dict[str, Any], elem_id: str) -> None:
    """What has a good value already."""
    with gr.Accordion("More", open=False, elem_id=f"{elem_id}_more"):
        with gr.Row():
            made["guidance"] = _choice("guidance", "Guidance", GUIDANCES, "soft blend: no gradients, less memory")
            made["layers"] = _choice("layers", "Layers", LAYERS)
        with gr.Row():
            made["start"] = _slider("start", "Start", 1.0, "of the guidance, share of the steps", 0.01)
            made["end"] = _slider("end", "End", 1.0, "of the guidance, share of the steps", 0.01)
        with gr.Row():
            made["inversion"] = _choice("inversion", "Inversion", INVERSIONS, "direct: the reconstruction is exact")
            made["regularisation"] = _choice("regularisation", "Regularisation", REGULARISATIONS)
            made["refinements"] = _slider("refinements", "Refinements", 10, "slower, closer", 1)
        with gr.Row():
            swapped = "caption: yours, with the source swapped for the target"
            made["direction_from"] = _choice("direction_from", "Direction from", DIRECTIONS_FROM, swapped)
            made["words_are"] = _choice("words_are", "The words are", KINDS, "decides the sentences they stand in")
        with gr.Row():
            made["caption_as_negative"] = _switch(
                "caption_as_negative", "Caption as negative prompt where that is empty"
            )
            made["save_memory"] = _switch("save_memory", "Save memory")
            made["show"] = _switch("show", "Show reconstruction and attention")


def _text(label: str, example: str, info: str, elem_id: str | None = None) -> Any:
    return gr.Textbox(value="", label=label, placeholder=example, info=info, lines=1, elem_id=elem_id)


def _slider(name: str, label: str, maximum: float, info: str, step: float) -> Any:
    return gr.Slider(0, maximum, value=DEFAULTS[name], step=step, label=label, info=info)


def _choice(name: str, label: str, choices: tuple[str, ...], info: str | None = None) -> Any:
    return gr.Radio(list(choices), value=DEFAULTS[name], label=label, info=info)


def _switch(name: str, label: str) -> Any:
    return gr.Checkbox(DEFAULTS[name], label=label)
