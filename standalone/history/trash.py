"""Deleted images, in a hidden folder beside the others, until 30 days have passed or it is emptied."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from lib_methods.errors import UserError, reason

from .files import Gone, ImageFile, find_images

FOLDER = ".trash"
KEPT_SECONDS = 30 * 24 * 3600
_RECORD = re.compile(r"(\d{9,12})-[0-9a-f]{24}")


class Trash:
    """Each deleted image keeps its name, in a folder named by time and id.

    All errors are UserError with a sentence.
    """

    def __init__(self, outputs: Path, now: Callable[[], float] = time.time) -> None:
        self.outputs = outputs
        self.folder = outputs / FOLDER
        self._now = now

    def _records(self) -> list[tuple[int, Path]]:
        """When each was deleted, and its folder, newest first."""
        with contextlib.suppress(OSError):
            found = [(_RECORD.fullmatch(path.name), path) for path in self.folder.iterdir()]
            return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
        return []

    def files(self) -> list[ImageFile]:
        """The images in it, what was deleted last first; ids and names are those that they had."""
        return [file for _, folder in self._records() for file in find_images(folder)]

    def put(self, file: ImageFile) -> None:
        """Moves an image here, with its text file. Raises Gone where somebody else was faster."""
        record = self.folder / f"{int(self._now())}-{file.ident}"
        target = record / file.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file.path, target)
        except FileNotFoundError:
            self._remove_empty(target.parent)
            raise Gone from None
        except OSError as error:
            self._remove_empty(target.parent)
            name = Path(file.path).name
            raise UserError(f"{name} could not be moved to the trash. {reason(error)}") from error
        with contextlib.suppress(OSError):
            shutil.move(file.text_file, target.with_suffix(".txt"))
        self.sweep()

    def restore(self, file: ImageFile) -> str:
        """Moves one of `files` back, and returns its name: another one where the old name is taken."""
        target = self.outputs / file.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            number = 0
            while target.exists():
                number += 1
                target = (self.outputs / file.name).with_stem(f"{Path(file.name).stem}-{number}")
            shutil.move(file.path, target)
        except FileNotFoundError:
            raise Gone from None
        except OSError as error:
            raise UserError(f"{Path(file.name).name} could not be restored. {reason(error)}") from error
        with contextlib.suppress(OSError):
            if not target.with_suffix(".txt").exists():
                shutil.move(file.text_file, target.with_suffix(".txt"))
        self._remove_empty(Path(file.path).parent)
        return target.relative_to(self.outputs).as_posix()

    def empty(self, older_than: float = 0.0) -> int:
        """Deletes what has been here for so many seconds, for good; how many images that were."""
        count = 0
        for deleted, folder in self._records():
            if self._now() - deleted < older_than:
                continue
            inside = len(list(find_images(folder)))
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(f"The trash could not be emptied. {reason(error)}") from error
            count += inside
        return count

    def sweep(self) -> None:
        """Deletes what is older than 30 days."""
        with contextlib.suppress(UserError):
            self.empty(KEPT_SECONDS)

    def _remove_empty(self, folder: Path) -> None:
        """Removes a folder and those around it, within the trash, that have nothing left in them."""
        with contextlib.suppress(OSError):
            while folder != self.outputs and self.outputs in folder.parents:
                folder.rmdir()
                folder = folder.parent
