"""pix2pix-zero in the WebUI. What it does is in lib_methods/pix2pix_zero.

API: `"alwayson_scripts": {"Steer pix2pix-zero": {"args": [...]}}`, values in the order of the controls, or one object
of their names in the first place: `{"source": "cat", "target": "dog"}`. A request that cannot be used is answered with
422. The library of directions has its own routes, see lib_methods/pix2pix_zero/workshop.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules import paths, script_callbacks, scripts, shared, ui_components

from lib_methods.denoiser import Part, Sampling
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero import page, session
from lib_methods.pix2pix_zero.library import DirectionLibrary
from lib_methods.pix2pix_zero.settings import CONTROLS, Pix2PixZeroSettings
from lib_methods.pix2pix_zero.workshop import Workshop, add_routes
from lib_methods.webui.door import Door
from lib_methods.webui.method_script import MethodScript, Tab, switched_off
from lib_methods.webui.widgets import Widgets

FOLDER = Path(paths.data_path) / "feedback"
STORE, DIRECTIONS = ImageStore(FOLDER / "images"), FOLDER / "directions"
WORKSHOP = Workshop(DirectionLibrary(DIRECTIONS), page.with_text_encoder, Path(paths.models_path) / "text")


class Pix2PixZeroScript(MethodScript, scripts.Script):
    table = CONTROLS
    key = "pix2pix_zero"
    room = "lib_methods.pix2pix_zero"
    extra_keys = (session.PSNR_KEY, session.NOTE_KEY)
    follows = ("steps", "sampling")
    sees_tab_image = True
    store = STORE

    @classmethod
    def guard(cls, demo: Any, app: Any) -> None:
        super().guard(demo, app)
        if shared.cmd_opts.api:
            add_routes(app, WORKSHOP, Door.of_host(shared.cmd_opts))

    def summary(self, settings: Pix2PixZeroSettings, enabled: bool, tab: Tab) -> str:
        return switched_off(settings.describe(tab.is_img2img, tab.steps, tab.is_empty), enabled)

    def layout(self, widgets: Widgets, status: Any, found: Mapping[str, Any]) -> None:
        page.add_controls(widgets, STORE, status, found.get("img2img_image") if self.is_img2img else None)
        page.add_library(widgets, WORKSHOP)

    def process(self, p: Any, *args: Any) -> None:
        p.pix2pix_zero_session, p.pix2pix_zero_sheets = None, []
        super().process(p, *args)

    def begin(self, p: Any, settings: Pix2PixZeroSettings) -> None:
        super().begin(p, replace(settings, words_are=settings.kind))  # the infotext says what was guessed
        if settings.caption:
            p.all_prompts = [prompt if prompt.strip() else settings.caption for prompt in p.all_prompts]

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        def fill(sampling: Sampling, settings: Pix2PixZeroSettings) -> None:
            p.negative_prompts = session.negatives(sampling, settings, session.job_of(p, shared.state), DIRECTIONS)

        if (latent := getattr(p, "init_latent", None)) is not None:
            self.jobs.guide(p, latent, fill, latent.new_zeros(latent.shape))  # where it starts does not count yet

    def attach(self, p: Any, sampling: Sampling, settings: Pix2PixZeroSettings) -> Part | None:
        try:
            begun = session.begin(sampling, settings, session.job_of(p, shared.state), STORE, DIRECTIONS)
        finally:
            shared.state.textinfo = None
        if begun is None or sampling.is_hires:
            return None
        shared.state.textinfo = session.EDITING
        p.pix2pix_zero_session = begun
        return begun.edit

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        edited, p.pix2pix_zero_session = getattr(p, "pix2pix_zero_session", None), None
        if edited is not None:
            shared.state.textinfo = None
        super().postprocess_batch(p, *args, **kwargs)
        if edited is None or (settings := self.jobs.settings_of(p)) is None:
            return
        for key in self.extra_keys:
            p.extra_generation_params.pop(key, None)
        p.extra_generation_params.update(edited.told())
        for say, sentences in ((self.jobs.remark, edited.remarks), (self.jobs.tell, edited.notes)):
            for sentence in sentences:
                say(p, sentence)
        if settings.show:
            p.pix2pix_zero_sheets += [(sheet, edited.sheet_text()) for sheet in edited.sheets(kwargs.get("images", ()))]

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        sheets, p.pix2pix_zero_sheets = getattr(p, "pix2pix_zero_sheets", []), []
        processed.images += [sheet for sheet, _ in sheets]
        processed.infotexts += [text for _, text in sheets]


Pix2PixZeroScript.start(scripts, script_callbacks, ui_components)
