"""The errors of training, each with a sentence for the user."""

from __future__ import annotations

from lib_methods.errors import UserError


class DreamBoothError(UserError, ValueError):
    """Something that the user can mend; the text says what is wrong and what to do. It names files, never folders."""


class TrainingStopped(Exception):
    """The user cancelled; the training's state was saved at the end of a step and can be resumed."""
