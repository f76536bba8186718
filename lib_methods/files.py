"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well; else `path` stays as it was.

    What was written is on the disk before the names change, so that not even a power cut leaves half a file. The folder
    has to be there. shared: others may write the same file at the same time, and each then has one of its own; without
    it, what a killed process left behind is written over by the next. Raises OSError.
    """
    if shared:
        handle, name = tempfile.mkstemp(prefix=".saving-", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        opened: IO[bytes] = os.fdopen(handle, "wb")
    else:
        temporary = path.with_name(path.name + ".new")
        opened = temporary.open("wb")
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a new name last. Windows keeps names without being asked, and has no way to ask."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
