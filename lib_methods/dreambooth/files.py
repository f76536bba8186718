"""Small files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.files import replacing


def write_whole(path: Path, data: bytes, what: str = "") -> Path:
    """Writes `data` in place of `path`, whole or not at all, making its folder.

    what: put before the file's name in the error. Raises DreamBoothError when the disk is full or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        reason = error.strerror or "the disk may be full"
        raise DreamBoothError(f"{what} {path.name} cannot be written: {reason}.".strip()) from error
    return path
