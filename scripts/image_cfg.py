"""InstructPix2Pix in the WebUI. What it does is in lib_methods/image_cfg.

API: `"alwayson_scripts": {"Steer InstructPix2Pix": {"args": [...]}}`, values in the order of the controls, or one
object of their names in the first place: `{"image": image, "image_scale": 1.5, "text_scale": 7.5}`. A bad request
is answered with 422. A job of the page runs without the method and says so, as does any whose checkpoint sees no image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules import paths, script_callbacks, scripts, ui_components

from lib_methods import hosts
from lib_methods.denoiser import Part, Sampling, picture_of
from lib_methods.image_cfg.settings import CONTROLS, ImageCfgSettings
from lib_methods.pictures.fit import of_the_tab
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.method_script import MethodScript, Tab, switched_off
from lib_methods.webui.widgets import Widgets

STORE = ImageStore(Path(paths.data_path) / "feedback" / "images")
NO_IMAGE = "There is no image to edit, so the model generates from the words alone. Add one in the accordion."
NO_MASK = "There is no mask: nothing is painted in the inpaint tab, so the image scale is the same everywhere."
SECOND_PASS = "The second pass's checkpoint is not an InstructPix2Pix checkpoint, so that pass ran without the method."


class ImageCfgScript(MethodScript, scripts.Script):
    table = CONTROLS
    key = "image_cfg"
    room = "lib_methods.image_cfg"
    needs_picture = True
    sees_tab_image = True
    store = STORE

    def attach(self, p: Any, sampling: Sampling, settings: ImageCfgSettings) -> Part | None:
        if sampling.is_hires and not picture_of(sampling).has_channels:
            self.jobs.tell(p, SECOND_PASS)
            return None
        return super().attach(p, sampling, settings)

    def summary(self, settings: ImageCfgSettings, enabled: bool, tab: Tab) -> str:
        return switched_off(settings.describe(tab.is_img2img, tab.is_empty), enabled or not settings.images)

    def layout(self, widgets: Widgets, status: Any, found: Mapping[str, Any]) -> None:
        label = "Image to edit, if not the tab's own" if self.is_img2img else "Image to edit"
        widgets.image("image", label, STORE, status, switch=widgets["enabled"])
        widgets.add("image_scale", "text_scale")
        widgets.add("fit")
        with widgets.accordion("Image scale by region", "region"):
            widgets.image("mask", "Mask: black takes the image scale, white the one below", STORE, status, kind="mask")
            widgets.add("mask_image_scale")
            if self.is_img2img:
                widgets.add("tab_mask")
        with widgets.accordion("More"):
            widgets.add("start", "end")
            widgets.add("image_schedule", "image_end_scale")
            widgets.add("text_schedule", "text_end_scale")
            widgets.add("hires_source", visible=not self.is_img2img)
            widgets.add("hires_image_scale", "hires_text_scale", visible=not self.is_img2img)
            widgets.add("latents")

    def begin(self, p: Any, settings: ImageCfgSettings) -> None:
        p.image_cfg_hosts_mask = getattr(p, "image_mask", None)
        if settings.tab_mask:
            settings = self._with_tab_mask(p, settings)
        p.image_cfg_hosts_scale = getattr(p, "image_cfg_scale", None)  # the host's own, which rests meanwhile
        p.image_cfg_scale = None
        hosts.keep_source(p)
        super().begin(p, settings)
        if not settings.images and not getattr(p, "init_images", None):
            self.jobs.tell(p, NO_IMAGE)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        try:
            super().process_before_every_sampling(p, *args, **kwargs)
        finally:
            hosts.end_without_picture(p)

    def _with_tab_mask(self, p: Any, settings: ImageCfgSettings) -> ImageCfgSettings:
        """The settings with the inpaint tab's mask. The host, which would keep all that is black, is left without."""
        if p.image_cfg_hosts_mask is None:
            self.jobs.tell(p, NO_MASK)
            return replace(settings, tab_mask=False)
        p.image_mask = None
        mask = of_the_tab(p.image_cfg_hosts_mask, bool(p.inpainting_mask_invert), float(p.mask_blur_x))
        return replace(settings, mask=STORE.add(mask), tab_mask=False)

    @classmethod
    def give_back(cls, p: Any) -> None:
        """What rested while the method was at work: the host's own image scale, and its mask."""
        p.image_cfg_scale = p.image_cfg_hosts_scale
        if getattr(p, "image_mask", None) is None and p.image_cfg_hosts_mask is not None:
            p.image_mask = p.image_cfg_hosts_mask


ImageCfgScript.start(scripts, script_callbacks, ui_components)
