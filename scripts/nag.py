"""NAG in the WebUI: negative prompts inside cross-attention. What it does is in lib_methods/nag.

API: `"alwayson_scripts": {"Steer NAG": {"args": [...]}}`, values in the order of the controls, or one object of their
names in the first place: `{"scale": 5}`. A request that cannot be used is answered with 422 before its job starts.
"""

from __future__ import annotations

from typing import Any

from modules import script_callbacks, scripts, ui_components

from lib_methods.denoiser import Part, Sampling
from lib_methods.hosts.a1111.text import final_negatives
from lib_methods.nag import apply
from lib_methods.nag.settings import CONTROLS, NagSettings
from lib_methods.webui.method_script import MethodScript, Tab, switched_off


class NagScript(MethodScript, scripts.Script):
    table = CONTROLS
    key = "nag"
    room = "lib_methods.nag"

    def attach(self, p: Any, sampling: Sampling, settings: NagSettings) -> Part | None:
        return apply.attach(sampling, settings, final_negatives(p))

    def begin(self, p: Any, settings: NagSettings) -> None:
        if settings.active:
            super().begin(p, settings)

    def summary(self, settings: NagSettings, enabled: bool, tab: Tab) -> str:
        return switched_off(settings.describe(), enabled)


NagScript.start(scripts, script_callbacks, ui_components)
