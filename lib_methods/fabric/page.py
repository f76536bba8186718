"""What FABRIC's controls do when they are used, without the controls: values in, values out.

Handlers return gradio updates as plain dicts of `gr.update`; everything else here is text.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from .board import board_html, status_html, status_of
from .inbox import answer_message
from .presets import PresetFolder, clean_name
from .request import CONTROLS, format_images, parse_request
from .settings import SettingsError
from .store import ImageStore


class PageHandlers:
    """Event handlers of one tab ("txt2img" or "img2img"). Keeps no state: that is in the page."""

    def __init__(self, store: ImageStore, presets: PresetFolder, tab: str) -> None:
        self.store = store
        self.presets = presets
        self.tab = tab

    def board(self, likes: str, dislikes: str) -> str:
        """Both lists as HTML."""
        return board_html(likes or "", dislikes or "", self.store, self.tab)

    def status(self, enabled: bool, *values: Any, steps: int = 20) -> str:
        """The line about what will happen, from the values of `request.CONTROLS`."""
        try:
            request = parse_request([True, *values], self.store, skip_missing=True)
        except SettingsError as error:
            return status_html(str(error), problem=True)
        return status_of(request.settings, bool(enabled), steps, request.notes)

    def describe(self, *values: Any) -> str:
        """`status` for an event: the values of all controls, then the number of sampling steps."""
        *controls, steps = values
        return self.status(*controls, steps=int(steps or 20))

    def receive(self, message: str, likes: str, dislikes: str) -> list[Any]:
        """A message of the browser; returns enabled, likes, dislikes, inbox and outbox. A new picture switches FABRIC
        on."""
        if not message:  # the inbox has just been emptied
            return [gr.update() for _ in range(5)]
        outcome = answer_message(message, likes or "", dislikes or "", self.store)
        enabled = gr.update(value=True) if outcome.added else gr.update()
        return [enabled, outcome.likes, outcome.dislikes, "", outcome.answer]

    def load_preset(self, name: Any) -> list[Any]:
        """All controls as the preset has them, and the status line."""
        try:
            settings = self.presets.load(name)
        except SettingsError as error:
            return [*(gr.update() for _ in CONTROLS), status_html(str(error), problem=True)]
        values: dict[str, Any] = {name: getattr(settings, name) for name in CONTROLS if name != "enabled"}
        values["likes"], values["dislikes"] = format_images(settings.likes), format_images(settings.dislikes)
        values["enabled"] = True
        status = self.status(*(values[name] for name in CONTROLS))
        return [*(gr.update(value=values[name]) for name in CONTROLS), status]

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
