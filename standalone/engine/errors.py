"""Errors whose text is meant for the person at the page or the command line."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right. The message is one plain sentence, without a path of the server."""


class CheckpointError(UserError):
    """A checkpoint that cannot be loaded, and why."""


class SettingError(UserError, ValueError):
    """A setting that is not there, or a value that it cannot have, and what it can."""
