"""Dynamic thresholding in the WebUI. What it does is in lib_methods/guiders.

API: `"alwayson_scripts": {"Steer Dynamic thresholding": {"args": [...]}}`, values in the order of the controls, or one
object of their names in the first place: `{"mimic_scale": 5, "threshold_percentile": 99.5}`. A request that cannot be
used is answered with 422 before its job starts. A job of the page runs without dynamic thresholding then, and says so.

At CFG scale 1, and with settings that change nothing, it is an ordinary job: nothing is written to the infotext.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules import script_callbacks, scripts, ui_components

from lib_methods.guiders.settings import CONTROLS, MIMIC, RESCALE, ThresholdSettings
from lib_methods.webui.method_script import MethodScript, Tab, switched_off
from lib_methods.webui.widgets import Widgets


class DynamicThresholdingScript(MethodScript, scripts.Script):
    table = CONTROLS
    key = "dynamic_thresholding"
    room = "lib_methods.guiders"
    subject = "It"
    follows = ("cfg_scale", "steps")
    peer = "Dynamic Thresholding (CFG Scale Fix)"

    def summary(self, settings: ThresholdSettings, enabled: bool, tab: Tab) -> str:
        return switched_off(settings.describe(tab.cfg_scale, tab.steps or 1), enabled)

    def layout(self, widgets: Widgets, status: Any, found: Mapping[str, Any]) -> None:
        widgets.add("method")
        widgets.add("mimic_scale", "rescale")
        with widgets.accordion("More"):
            widgets.add("threshold_percentile", "interpolate_phi")
            widgets.add("mimic_mode", "mimic_scale_min")
            widgets.add("cfg_mode", "cfg_scale_min")
            widgets.add("schedule_value")
            widgets.add("separate_feature_channels", "scaling_startpoint", "variability_measure")

    def begin(self, p: Any, settings: ThresholdSettings) -> None:
        if title := self._other_box(p):
            self.jobs.give_up(p, f'"{title}" is on, too, and does the same. Turn off one of the two.')
            return
        scales = [float(scale) for scale in (p.cfg_scale, getattr(p, "hr_cfg", None)) if scale is not None]
        if any(settings.acts_at(scale) for scale in scales):
            super().begin(p, settings)
        else:
            p.comment(f"{CONTROLS.title}: {settings.describe(max(scales), p.steps)}")

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
    def axis_fields(cls, name: str, value: float, before: Mapping[str, Any]) -> dict[str, Any]:
        """Its own scales also switch the method on, and at 0 off."""
        if name == "threshold_percentile":
            return {name: value, "enabled": before.get("enabled", True)}
        method = MIMIC if name == "mimic_scale" else RESCALE
        return {"enabled": True, "method": method, name: value} if value else {"enabled": False}


DynamicThresholdingScript.start(scripts, script_callbacks, ui_components)
