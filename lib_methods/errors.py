"""Errors for the person at the page or the command line: the root of our own, and what the system's mean."""

from __future__ import annotations

import errno
import re


class UserError(Exception):
    """Something the user can put right. The text is for them: what is wrong, then what to do; no path of the server."""


class CheckpointError(UserError, ValueError):
    """A model's file or folder that cannot be used, and why. The text names the file, and no folder above it."""


class Cancelled(Exception):
    """The user stopped the work. What was saved until then can be resumed."""


NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "failed to allocate",
    "unable to allocate",
    "alloc_failed",
    "paging file is too small",
)
_FULL = "The disk is full. Make room and try again."
_DENIED = "You may not have write permission there, or another program has the file open."
_READ_ONLY = "The disk is read-only. Choose another folder."
_TOO_LONG = "The path is too long for this system. Choose a shorter name, or a folder nearer to the top."
_REASONS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "The quota of this account is used up. Make room and try again.",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _READ_ONLY,
    errno.ENAMETOOLONG: _TOO_LONG,
    errno.EFBIG: "The file is too large for this disk. FAT32 holds files of up to 4 GB; choose another disk.",
    errno.EIO: "The disk reported an error. Check it, or choose another disk.",
    errno.EMFILE: "Too many files are open. Close other programs and try again.",
    errno.ENFILE: "Too many files are open. Close other programs and try again.",
    errno.ENOTDIR: "Part of the path is a file, not a folder. Choose another path.",
    errno.EISDIR: "There is a folder with the file's name. Choose another name.",
}
_WINDOWS = {5: _DENIED, 19: _READ_ONLY, 32: _DENIED, 33: _DENIED, 39: _FULL, 112: _FULL, 206: _TOO_LONG}
# libraries that are not written in Python put the system's error into their text
_TEXT = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|(No space left on device)", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or the CPU: libraries raise their own error for it, or only say so."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(words in text for words in NO_MEMORY)


def known_reason(error: BaseException) -> str | None:
    """What an error of the system means and what to do, one or two sentences; None when it is not a known one."""
    if isinstance(error, OSError):
        windows = _WINDOWS.get(getattr(error, "winerror", None) or 0)
        found = windows or _REASONS.get(error.errno or 0)
        if found is not None:
            return found
    told = _TEXT.search(str(error))
    if told is None:
        return None
    number = errno.ENOSPC if told[3] else int(told[1] or told[2])
    return _REASONS.get(number)


def reason(error: OSError) -> str:
    """What an error of the system means, for the end of a message: `known_reason`, else the system's own words."""
    return known_reason(error) or (f"The system says: {error.strerror}." if error.strerror else "Check the disk.")
