"""Errors of the engine; their text is for the person at the page or the command line."""

from __future__ import annotations

from lib_methods.errors import UserError


class CheckpointError(UserError):
    """A checkpoint that cannot be loaded, and why."""


class SettingError(UserError, ValueError):
    """A setting that is not there, or a value that it cannot have, and what it can."""
