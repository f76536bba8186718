"""Guidance's box on the page: its controls, its presets, and the button above it that offers one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from lib_methods.guiders.settings import CONTROLS, PRESETS
from lib_methods.webui.gradio_compat import follow_changes, listen, unsaved
from lib_methods.webui.widgets import Widgets

HIGH = 10.0
"""The CFG scale from which on most checkpoints burn."""


def add_controls(widgets: Widgets) -> None:
    """The controls, rare ones behind accordions, and a button for each preset."""
    widgets.add("method")
    widgets.add("skimming_scale", "rescale")
    buttons = widgets.buttons(
        sd1="Set for SD1 at a high CFG scale",
        sdxl="Set for SDXL at a high CFG scale",
        v_prediction="Set for a v-prediction checkpoint",
    )
    with widgets.accordion("Interval of the full CFG scale", "interval"):
        widgets.add("highest_sigma", "lowest_sigma")
        widgets.add("outside_scale")
    with widgets.accordion("Mimic scale", "mimic"):
        widgets.add("mimic_scale", "threshold_percentile")
        widgets.add("mimic_mode", "mimic_scale_min")
        widgets.add("cfg_mode", "cfg_scale_min")
        widgets.add("schedule_value", "interpolate_phi")
        widgets.add("separate_feature_channels", "scaling_startpoint", "variability_measure")
    with widgets.accordion("APG", "apg"):
        widgets.add("apg_eta", "apg_norm", "apg_momentum")
    with widgets.accordion("Perturbed attention: PAG, SEG", "perturbed"):
        widgets.add("perturbation_scale", "perturbation")
        widgets.add("perturbed_layers", "seg_blur")
    for button, preset in zip(buttons, PRESETS):
        listen(button.click, _giving(preset), [], [widgets[name] for name in CONTROLS.names])


def add_offer(elem_id: str) -> Any:
    """The button above the box, not shown yet."""
    return unsaved(gr.Button("", size="sm", elem_id=elem_id, visible=False))


def connect_offer(offer: Any, scale: Any, controls: Sequence[Any]) -> None:
    """Shows the button while the CFG scale is high and the box is not ticked; a click chooses the checkpoint's preset.

    scale: the page's CFG scale. controls: the box's switch, and the others in the table's order.
    """
    follow_changes([scale, controls[0]], offered, [controls[0], scale], [offer])
    listen(offer.click, lambda: _values(_family()), [], list(controls))


def offered(enabled: bool, scale: float | None) -> Any:
    """The button's text, and whether it is shown."""
    text = f"Most checkpoints burn at CFG {scale or 0:g}: turn on Guidance"
    return gr.update(value=text, visible=not enabled and (scale or 0) >= HIGH)


def _family() -> str:
    from lib_methods.hosts.models import family  # here, as in `MethodJobs.guide`

    return family()


def _giving(preset: str) -> Callable[[], list[Any]]:
    return lambda: _values(preset)


def _values(preset: str) -> list[Any]:
    values = {"enabled": True, **CONTROLS.defaults, **PRESETS[preset]}
    return [values[name] for name in CONTROLS.names]
