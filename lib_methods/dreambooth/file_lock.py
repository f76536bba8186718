"""A lock on a file that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO


class FileLock:
    """Held by one process at a time; the file stays when it is let go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def take(self) -> bool:
        """Whether this object holds the lock now; False when another one does. Raises OSError: no such folder."""
        if self._file is not None:
            return True
        file = self.path.open("ab")
        try:
            _lock(file)
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Lets go; nothing happens if it was not held."""
        if self._file is not None:
            self._file.close()  # which unlocks it
            self._file = None


def is_held(path: Path) -> bool:
    """Whether some process, this one included, holds the lock."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        if not lock.take():
            return True
        lock.release()
    except OSError:  # it cannot be opened: then nobody could lock it
        pass
    return False


def _lock(file: IO[bytes]) -> None:
    """Raises OSError when another process, or another open file of this one, has it."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file.fileno(), 0, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
