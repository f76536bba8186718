"""Guidance in the WebUI. What it does is in lib_methods/guiders.

API: `"alwayson_scripts": {"Steer Guidance": {"args": [...]}}`, values in the order of the controls, or one object of
their names in the first place: `{"method": "APG", "apg_eta": 0.2}`. Requests to "Steer Dynamic thresholding", the box's
former name, mean what they meant. A request that cannot be used is answered with 422 before its job starts. A job of
the page runs without Guidance then, and says so.

At CFG scale 1, where only PAG and SEG work, and with settings that change nothing, it is an ordinary job: nothing is
written to the infotext.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modules import script_callbacks, scripts, shared, ui_components

from lib_methods.checks import SettingsError
from lib_methods.guiders import page
from lib_methods.guiders.line import describe
from lib_methods.guiders.settings import CONTROLS, MIDDLE, MIMIC, SKIMMED, GuidanceSettings
from lib_methods.webui.method_script import MethodScript, Tab, switched_off
from lib_methods.webui.widgets import Widgets


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
        offer = page.add_offer(f"{self.key}_{self.tab()}_offer")
        controls = super().ui(is_img2img)
        page.connect_offer(offer, scale, controls)
        return controls

    def summary(self, settings: GuidanceSettings, enabled: bool, tab: Tab) -> str:
        if enabled and settings.perturbs and settings.perturbed_layers == MIDDLE:
            from lib_methods.guiders.apply import without_middle
            from lib_methods.hosts.models import obstacle  # here, as in `MethodJobs.guide`

            if why := obstacle(without_middle):
                raise SettingsError(why)
        line = switched_off(describe(settings, tab.cfg_scale, tab.steps or 1), enabled)
        if not enabled and tab.cfg_scale >= page.HIGH:
            line += f" Most checkpoints burn at CFG {tab.cfg_scale:g}: tick the box."
        return line

    def layout(self, widgets: Widgets, status: Any, found: Mapping[str, Any]) -> None:
        page.add_controls(widgets)

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


GuidanceScript.start(scripts, script_callbacks, ui_components)
