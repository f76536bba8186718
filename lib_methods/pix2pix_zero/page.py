"""What the controls do when they are used, and what the results are shown as: values in, values out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw

from lib_methods.checks import SettingsError
from lib_methods.denoiser import Unsupported
from lib_methods.pictures import named
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero.request import CONTROLS, parse_request
from lib_methods.webui.status import status_html

GAP, LINE = 8, 22
LEAST_COLUMN = 92  # for the longest name


class PageHandlers:
    """Event handlers of one tab. Keeps no state: that is in the page."""

    def __init__(self, store: ImageStore, is_img2img: bool, obstacle: Callable[[], str] = str) -> None:
        """obstacle: why the loaded checkpoint is not suitable, or an empty text."""
        self.store, self.is_img2img, self.obstacle = store, is_img2img, obstacle

    def show(self, *values: Any) -> str:
        """`status` for an event: whether the tab holds an image ("yes", "no" or unknown), then its values."""
        holds, *others = values
        return self.status(*others, tab_is_empty=holds == "no")

    def status(self, enabled: bool, *values: Any, tab_is_empty: bool = False) -> str:
        """The line about what will happen, from the values of `request.CONTROLS` and the number of steps."""
        if enabled and (why := self.obstacle()):
            return status_html(why, problem=True)
        *controls, steps = values
        try:
            settings = parse_request([True, *controls], self.store)
        except SettingsError as error:
            return status_html(str(error), problem=bool(enabled))
        assert settings is not None  # as it is switched on above
        text = settings.describe(self.is_img2img, int(steps or 0), tab_is_empty)
        return status_html(text if enabled else f"Switched off ({text}).")

    def receive_mask(self, picture: Image.Image | None, *values: Any) -> list[Any]:
        """A picture was put into the box for the mask; returns that box (empty again), the mask's hash and the status
        line. `values` are those of `request.CONTROLS` and the number of steps."""
        enabled, *others = values
        place = CONTROLS.index("mask") - 1
        others[place], problem = named.received(picture, others[place], self.store, as_mask=True)
        status = status_html(problem, problem=True) if problem else self.status(enabled, *others)
        return [None, others[place], status]

    def describe(self, picture: Image.Image | None, caption: str, tell: Callable[[Image.Image], str]) -> list[str]:
        """The caption that `tell` gives the tab's picture, or the one that was there, and the status line."""
        if picture is None:
            return [caption, status_html("Put a picture into the tab first.", problem=True)]
        try:
            return [tell(picture), status_html("The caption is the WebUI's. Correct it where it is wrong.")]
        except Unsupported as error:
            return [caption, status_html(str(error), problem=True)]

    def preview(self, mask: str) -> str:
        """The mask, small, as HTML that every gradio version shows alike."""
        return named.preview(self.store, mask, "mask") if mask else ""


def sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one size side by side, each under its name; small ones stand apart, so that the names have room."""
    width, height = pictures[0][1].size
    column = max(width, LEAST_COLUMN)
    canvas = Image.new("RGB", (len(pictures) * (column + GAP) - GAP, height + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, picture) in enumerate(pictures):
        left = index * (column + GAP)
        draw.text((left + 2, 5), name, fill="black")
        canvas.paste(picture.convert("RGB").resize((width, height)), (left, LINE))
    return canvas


def decibels(value: float) -> str:
    """A PSNR as it is told to people."""
    return "exact" if math.isinf(value) else f"{value:.1f} dB"
