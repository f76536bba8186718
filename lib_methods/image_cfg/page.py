"""What the controls do when they are used, without the controls: values in, values out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.image_cfg.request import CONTROLS, parse_images, parse_request
from lib_methods.pictures import named
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.status import status_html


class PageHandlers:
    """Event handlers of one tab. Keeps no state: that is in the page."""

    def __init__(self, store: ImageStore, is_img2img: bool, obstacle: Callable[[], str] = str) -> None:
        """obstacle: why the loaded checkpoint will not do, or an empty text."""
        self.store, self.is_img2img, self.obstacle = store, is_img2img, obstacle

    def receive(self, picture: Image.Image | None, image: str, enabled: bool) -> list[Any]:
        """A picture was put into the upload box; returns that box (empty again), the picture's hash, whether the method
        is on and the status line. A new picture takes the place of the one before and switches the method on."""
        image, problem = named.received(picture, image, self.store)
        if problem:
            return [None, image, enabled, status_html(problem, problem=True)]
        enabled = enabled or picture is not None
        return [None, image, enabled, self.status(enabled, image)]

    def receive_mask(self, picture: Image.Image | None, *values: Any) -> list[Any]:
        """A picture was put into the box for the mask; returns that box (empty again), the mask's hash and the status
        line. `values` are those of `request.CONTROLS`."""
        enabled, *others = values
        place = CONTROLS.index("mask") - 1
        others[place], problem = named.received(picture, others[place], self.store, as_mask=True)
        status = status_html(problem, problem=True) if problem else self.status(enabled, *others)
        return [None, others[place], status]

    def describe(self, *values: Any) -> str:
        """`status` for an event: whether the tab holds an image ("yes", "no" or unknown), then the values of all
        controls."""
        holds, *controls = values
        return self.status(*controls, tab_is_empty=holds == "no")

    def status(self, enabled: bool, *values: Any, tab_is_empty: bool = False) -> str:
        """The line about what will happen, from the values of `request.CONTROLS`."""
        if enabled and (why := self.obstacle()):
            return status_html(why, problem=True)
        try:
            settings = parse_request([True, *values], self.store)
        except SettingsError as error:
            return status_html(str(error), problem=True)
        assert settings is not None  # as it is switched on above
        text = settings.describe(self.is_img2img, tab_is_empty)
        return status_html(text if enabled or not settings.images else f"Switched off ({text}).")

    def preview(self, image: str, shows: str = "picture to edit") -> str:
        """The pictures that will be edited, or the mask, small, as HTML that every gradio version shows alike."""
        try:
            names = parse_images(image or "", None)
        except SettingsError:
            names = ()
        return "".join(named.preview(self.store, name, shows) for name in names)
