"""What the controls do when they are used, without the controls: values in, values out."""

from __future__ import annotations

import html
from typing import Any

from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.image_cfg.request import CONTROLS, parse_images, parse_request
from lib_methods.pictures.store import ImageStore
from lib_methods.pictures.thumbnail import thumbnail
from lib_methods.ui.status import status_html

THUMBNAIL_SIDE = 192


class PageHandlers:
    """Event handlers of one tab. Keeps no state: that is in the page."""

    def __init__(self, store: ImageStore, is_img2img: bool) -> None:
        self.store, self.is_img2img = store, is_img2img

    def receive(self, picture: Image.Image | None, image: str, enabled: bool) -> list[Any]:
        """A picture was put into the upload box; returns that box (empty again), the picture's hash, whether the method
        is on and the status line. A new picture takes the place of the one before and switches the method on."""
        if picture is None:
            return [None, image, enabled, self.status(enabled, image)]
        try:
            image = self.store.add(picture)
        except SettingsError as error:
            return [None, image, enabled, status_html(str(error), problem=True)]
        return [None, image, True, self.status(True, image)]

    def receive_mask(self, picture: Image.Image | None, *values: Any) -> list[Any]:
        """A picture was put into the box for the mask; returns that box (empty again), the mask's hash and the status
        line. `values` are those of `request.CONTROLS`."""
        enabled, *others = values
        place = CONTROLS.index("mask") - 1
        if picture is not None:
            try:
                others[place] = self.store.add(picture)
            except SettingsError as error:
                return [None, others[place], status_html(str(error), problem=True)]
        return [None, others[place], self.status(enabled, *others)]

    def status(self, enabled: bool, *values: Any) -> str:
        """The line about what will happen, from the values of `request.CONTROLS`."""
        try:
            settings = parse_request([True, *values], self.store)
        except SettingsError as error:
            return status_html(str(error), problem=True)
        assert settings is not None  # as it is switched on above
        text = settings.describe(self.is_img2img)
        return status_html(text if enabled or not settings.images else f"Switched off ({text}).")

    def preview(self, image: str, shows: str = "picture to edit") -> str:
        """The pictures that will be edited, or the mask, small, as HTML that every gradio version shows alike."""
        try:
            names = parse_images(image or "", None)
        except SettingsError:
            names = ()
        return "".join(_figure(self.store, name, shows) for name in names)


def _figure(store: ImageStore, name: str, shows: str) -> str:
    try:
        url = thumbnail(store, name, THUMBNAIL_SIDE)
    except (OSError, SettingsError):
        return f"<em>{html.escape(name[:8])}… is not on this machine</em>"
    return f'<img src="{url}" alt="{shows}" style="max-width: 100%; display: inline-block">'
