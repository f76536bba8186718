"""FABRIC in the WebUI. What it does is in lib_methods/fabric.

API: `"alwayson_scripts": {"Steer FABRIC": {"args": [...]}}`, values in the order of the controls, or one object of
their names in the first place: `{"likes": [image, {"image": image, "weight": 0.5}], "strength": 0.8}`.

A request that cannot be used is answered with 422; a job of the page runs without FABRIC then, and says so. Images that
are no longer on this machine are left out with a sentence by the page. Without images, or at strength 0, it is an
ordinary job: nothing is written to the infotext.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import paths, script_callbacks, scripts, ui_components

from lib_methods.checks import SettingsError
from lib_methods.fabric import page
from lib_methods.fabric.feedback import foreign_images
from lib_methods.fabric.presets import PresetFolder
from lib_methods.fabric.settings import CONTROLS, FabricSettings
from lib_methods.pictures.composites import Composites
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.gradio_compat import open_at_first, warn
from lib_methods.webui.method_script import MethodScript, Tab, switched_off
from lib_methods.webui.widgets import Widgets

FOLDER = Path(paths.data_path) / "feedback"
STORE, PRESETS, COMPOSITES = ImageStore(FOLDER / "images"), PresetFolder(FOLDER / "presets"), Composites()


class FabricScript(MethodScript, scripts.Script):
    table = CONTROLS
    key = "fabric"
    room = "lib_methods.fabric"
    follows = ("steps",)
    store = STORE
    peer = CONTROLS.title
    sorting_priority = -1  # above the other methods, in hosts that sort by it

    @classmethod
    def check(cls, arguments: Sequence[Any]) -> None:
        if (settings := cls.read(arguments)) is not None:
            settings.without_missing(STORE, skip=False)

    def begin(self, p: Any, settings: FabricSettings) -> None:
        settings, notes = settings.without_missing(STORE, skip=not getattr(p, "is_api", False))
        for note in notes:
            self.jobs.tell(p, note)
        if settings.active:
            super().begin(p, settings)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        COMPOSITES.remember(processed.images, int(getattr(processed, "index_of_first_image", 0) or 0))

    def label(self) -> str:
        return f"{CONTROLS.title} (Steer)" if self.peer_is_here() else CONTROLS.title

    def summary(self, settings: FabricSettings, enabled: bool, tab: Tab) -> str:
        settings, notes = settings.without_missing(STORE, skip=True)
        text = settings.describe(tab.steps or Tab.steps)
        if notes:
            raise SettingsError(" ".join([f"{text.rstrip('.')}.", *notes]))
        return switched_off(text, enabled or not (settings.likes or settings.dislikes))

    def hidden(self, widgets: Widgets) -> None:
        page.add_mailboxes(widgets)

    def layout(self, widgets: Widgets, status: Any, found: Mapping[str, Any]) -> None:
        open_at_first(widgets["enabled"])
        handlers = page.PageHandlers(STORE, PRESETS, COMPOSITES, self.line)
        page.add_board(widgets, STORE, self.tab())
        widgets.add("strength")
        widgets.add("start", "end")
        widgets.add("consistent_batch")
        once = page.add_compare(widgets)
        presets = page.add_presets(widgets, handlers)
        with widgets.accordion("More"):
            widgets.add("negative_weight", "min_strength")
            widgets.add("weighting", "detail")
            widgets.add("reference_levels", "layers")
            widgets.add("colour_correction", "adain")
            widgets.add("hires", "hires_strength", visible=not self.is_img2img)
            widgets.add("cache_limit_mb", "seed")
        page.connect(widgets, handlers, status, presets, once, self.tab())


def tell_of_foreign_images(text: str, fields: dict[str, Any]) -> None:
    count = foreign_images(fields)
    if count and not FabricScript.peer_is_here():
        warn(f"FABRIC: the settings are restored, but not the {count} image(s) of another extension. Add them again.")


FabricScript.start(scripts, script_callbacks, ui_components)
script_callbacks.on_infotext_pasted(tell_of_foreign_images)
