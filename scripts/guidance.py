"""Guidance in the WebUI. What it does is in lib_methods/guiders.

API: `"alwayson_scripts": {"Steer Guidance": {"args": [...]}}`, values in the order of the controls, or one object of
their names in the first place: `{"method": "APG", "apg_eta": 0.2}`. Requests to "Steer Dynamic thresholding", the box's
former name, mean what they meant. A request that cannot be used is answered with 422 before its job starts. A job of
the page runs without Guidance then, and says so.

At CFG scale 1, where only PAG and SEG work, and with settings that change nothing, it is an ordinary job: nothing is
written to the infotext.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from modules import script_callbacks, scripts, shared, ui_components

from lib_methods.checks import SettingsError
from lib_methods.guiders.line import describe
from lib_methods.guiders.settings import CONTROLS, MIDDLE, MIMIC, PRESETS, SKIMMED, GuidanceSettings
from lib_methods.webui.gradio_compat import follow, listen, unsaved
from lib_methods.webui.method_script import MethodScript, Tab, switched_off
from lib_methods.webui.widgets import Widgets

HIGH = 10.0
"""The CFG scale from which on most checkpoints burn."""


class GuidanceScript(MethodScript, scripts.Script):
    table = CONTROLS
    key = "guidance"
    room = "lib_methods.guiders"
    subject = "It"
    follows = ("cfg_scale", "steps")
    peer = "Dynamic Thresholding (CFG Scale Fix)"
    ui_config = getattr(shared.cmd_opts, "ui_config_file", None)

    def ui(self, is_img2img: bool) -> list[Any]:
        """The box, and above it, where the line cannot be read while the box is closed, a button that offers it."""
        scale = self.found.get("cfg_scale")
        if scale is None:  # hosts call this again outside of the page
            return super().ui(is_img2img)
        offer = unsaved(gr.Button("", size="sm", elem_id=f"{self.key}_{self.tab()}_offer", visible=False))
        controls = super().ui(is_img2img)
        for component in (scale, controls[0]):
            follow(component.change, offered, [controls[0], scale], [offer])
        listen(offer.click, _best, [], controls)
        return controls

    def summary(self, settings: GuidanceSettings, enabled: bool, tab: Tab) -> str:
        if enabled and settings.perturbs and settings.perturbed_layers == MIDDLE:
            from lib_methods.guiders.apply import without_middle
            from lib_methods.hosts.models import obstacle  # here, as in `MethodJobs.guide`

            if why := obstacle(without_middle):
                raise SettingsError(why)
        line = switched_off(describe(settings, tab.cfg_scale, tab.steps or 1), enabled)
        if not enabled and tab.cfg_scale >= HIGH:
            line += f" Most checkpoints burn at CFG {tab.cfg_scale:g}: tick the box."
        return line

    def layout(self, widgets: Widgets, status: Any, found: Mapping[str, Any]) -> None:
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

    def begin(self, p: Any, settings: GuidanceSettings) -> None:
        if title := self._other_box(p):
            self.jobs.give_up(p, f'"{title}" is on, too, and does the same. Turn off one of the two.')
            return
        scales = [float(scale) for scale in (p.cfg_scale, getattr(p, "hr_cfg", None)) if scale is not None]
        if any(settings.acts_at(scale) for scale in scales):
            super().begin(p, settings)
        else:
            p.comment(f"{CONTROLS.title}: {describe(settings, max(scales), p.steps)}")

    @staticmethod
    def _other_box(p: Any) -> str:
        """The title of another extension's dynamic thresholding (Forge has one built in) that is on in this job."""
        for script in getattr(getattr(p, "scripts", None), "alwayson_scripts", ()):
            title = str(script.title())
            if title.lower().replace(" ", "").startswith("dynamicthresholding"):
                given = list(p.script_args)[script.args_from : script.args_to]
                if given and given[0] is True:  # its switch
                    return title
        return ""

    @classmethod
    def axis_fields(cls, name: str, value: Any, before: Mapping[str, Any]) -> dict[str, Any]:
        """A scale of a method's own also chooses that method, and a mimic scale of 0 switches the box off."""
        if name == "mimic_scale" and not value:
            return {"enabled": False}
        chosen = {"mimic_scale": MIMIC, "skimming_scale": SKIMMED}.get(name)
        if chosen is None:
            return {"enabled": before.get("enabled", True), name: value}
        return {"enabled": True, "method": chosen, name: value}


def offered(enabled: bool, scale: float | None) -> Any:
    """The button above the box: there while the CFG scale is high and the box is not ticked."""
    high = not enabled and (scale or 0) >= HIGH
    text = f"Most checkpoints burn at CFG {scale or 0:g}: turn on Guidance"
    return gr.update(value=text, visible=high)


def _best() -> list[Any]:
    from lib_methods.hosts.models import family  # here, as in `MethodJobs.guide`

    return _giving(family())()


def _giving(preset: str) -> Callable[[], list[Any]]:
    values = {"enabled": True, **CONTROLS.defaults, **PRESETS[preset]}
    return lambda: [values[name] for name in CONTROLS.names]


GuidanceScript.start(scripts, script_callbacks, ui_components)
