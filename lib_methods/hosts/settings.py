"""The pack's page in the host's settings."""

from __future__ import annotations

from modules import shared

SECTION = ("steer", "Steer")
SHOW = "steer_show_"
"""Begins the names of the settings that status.js reads: which boxes are on the page."""


def add_show(key: str, title: str) -> None:
    """A setting whether a method's box is on the page. One that is switched on, or named in an infotext, always is."""
    option = shared.OptionInfo(True, f"Show {title} in txt2img and img2img", section=SECTION)
    shared.opts.add_option(f"{SHOW}{key}", option)
