"""What FABRIC's controls do when they are used, without the controls: values in, values out.

Handlers return values. Updates are for the presets' dropdown alone: gradio 6 builds a component anew for each update,
which components that a host derives from gradio's (the accordion with a switch) may not survive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from lib_methods.pictures.composites import Composites
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.status import status_html

from .board import board_html, status_of
from .inbox import answer_message
from .presets import PresetFolder, clean_name
from .request import CONTROLS, format_images, parse_request
from .settings import SettingsError


class PageHandlers:
    """Event handlers of one tab ("txt2img" or "img2img"). Keeps no state: that is in the page."""

    def __init__(
        self,
        store: ImageStore,
        presets: PresetFolder,
        tab: str,
        composites: Composites | None = None,
        obstacle: Callable[[], str] = str,
    ) -> None:
        """obstacle: why the loaded checkpoint will not do, or an empty text."""
        self.store = store
        self.composites = composites
        self.obstacle = obstacle
        self.presets = presets
        self.tab = tab

    def board(self, likes: str, dislikes: str) -> str:
        """Both lists as HTML."""
        return board_html(likes or "", dislikes or "", self.store, self.tab)

    def status(self, enabled: bool, *values: Any, steps: int = 20) -> str:
        """The line about what will happen, from the values of `request.CONTROLS`."""
        if enabled and (why := self.obstacle()):
            return status_html(why, problem=True)
        try:
            request = parse_request([True, *values], self.store, skip_missing=True)
        except SettingsError as error:
            return status_html(str(error), problem=True)
        return status_of(request.settings, bool(enabled), steps, request.notes)

    def describe(self, *values: Any) -> str:
        """`status` for an event: the values of all controls, then the number of sampling steps."""
        *controls, steps = values
        return self.status(*controls, steps=int(steps or 20))

    def receive(self, message: str, enabled: bool, likes: str, dislikes: str) -> list[Any]:
        """A message of the browser; returns enabled, likes, dislikes and outbox. A new picture switches FABRIC on."""
        outcome = answer_message(message or "", likes or "", dislikes or "", self.store, self.composites)
        return [bool(enabled) or outcome.added, outcome.likes, outcome.dislikes, outcome.answer]

    def load_preset(self, name: Any, *values: Any) -> list[Any]:
        """All controls as the preset has them, or as they were, and the status line."""
        try:
            settings = self.presets.load(name)
        except SettingsError as error:
            return [*values, status_html(str(error), problem=True)]
        named: dict[str, Any] = {name: getattr(settings, name) for name in CONTROLS if name != "enabled"}
        named["likes"], named["dislikes"] = format_images(settings.likes), format_images(settings.dislikes)
        named["enabled"] = True
        loaded = [named[name] for name in CONTROLS]
        return [*loaded, self.status(*loaded)]

    def save_preset(self, name: Any, *values: Any) -> list[Any]:
        """The dropdown with the new preset, and the status line."""
        try:
            clean = clean_name(name)
            request = parse_request([True, *values[1:]], self.store, skip_missing=True)
            assert request.settings is not None  # as it is switched on above
            self.presets.save(clean, request.settings)
        except SettingsError as error:
            return [gr.update(), status_html(str(error), problem=True)]
        text = " ".join([f'Preset "{clean}" is saved.', *request.notes])
        return [
            gr.update(choices=list(self.presets.list()), value=clean),
            status_html(text, problem=bool(request.notes)),
        ]

    def delete_preset(self, name: Any) -> list[Any]:
        """The dropdown without the preset, and the status line."""
        try:
            deleted = self.presets.delete(name)
        except SettingsError as error:
            return [gr.update(), status_html(str(error), problem=True)]
        text = f'Preset "{clean_name(name)}" is deleted.' if deleted else f'There is no preset "{clean_name(name)}".'
        return [gr.update(choices=list(self.presets.list()), value=None), status_html(text, problem=not deleted)]

    def refresh_presets(self) -> Any:
        """The dropdown's choices as they are on the disk now: the other tab may have saved one."""
        return gr.update(choices=list(self.presets.list()))
