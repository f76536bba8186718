"""All saved images as one list, newest first, that can be searched without opening each file each time."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import Gone, ImageFile, find_images
from .texts import Known, Texts
from .thumbnails import Thumbnails
from .trash import Trash

FRESH = 2.0
"""Seconds in which the folder is not looked through again, unless that is asked for."""
READ_SECONDS = 1.0
"""How long one search opens files that it does not know yet."""
AT_ONCE = 50


@dataclass(frozen=True)
class Page:
    """A part of the list. version: of the whole list for this search; parts of different ones do not fit together.
    unread: how many files the search has not looked into yet; ask again."""

    files: Sequence[ImageFile]
    known: dict[str, Known]
    total: int
    version: str
    unread: int
    in_trash: int


class History:
    """The images below `outputs`. What is remembered of them lies in `data_dir`, and can be deleted at any time."""

    def __init__(self, outputs: Path, data_dir: Path) -> None:
        self.outputs = outputs
        self.texts = Texts(data_dir / "history.sqlite")
        self.thumbnails = Thumbnails(data_dir / "tmp" / "history")
        self.trash = Trash(outputs)
        self.trash.sweep()
        self._lock = threading.RLock()
        self._reading = threading.Lock()
        self._looked = float("-inf")
        self._files: list[ImageFile] = []
        self._deleted: list[ImageFile] = []
        self._by_ident: dict[str, ImageFile] = {}

    def look(self, at_most_seconds_old: float = 0.0) -> None:
        """Looks through the folder, unless it was done a moment ago."""
        with self._lock:
            if time.monotonic() - self._looked < at_most_seconds_old:
                return
            self._files = sorted(find_images(self.outputs), key=lambda file: (file.modified, file.name), reverse=True)
            self._deleted = self.trash.files()
            self._by_ident = {file.ident: file for file in (*self._deleted, *self._files)}
            self.texts.forget(self._by_ident)
            self._looked = time.monotonic()

    def find(self, ident: str) -> ImageFile:
        """The image of this id. Raises Gone."""
        found = self._by_ident.get(ident)
        if found is None or not Path(found.path).is_file():
            self.look(0.0 if found else FRESH)
            found = self._by_ident.get(ident)
        if found is None:
            raise Gone
        return found

    def page(self, query: str = "", offset: int = 0, limit: int = 100, *, in_trash: bool = False) -> Page:
        """Images number `offset` and following of those that have all words of the query, or of those in the trash.

        The folder is looked through for the first ones; only files of this part are opened, or by a search those that
        it does not know yet, for a second.
        """
        self.look(FRESH if offset else 0.0)
        with self._lock:
            files, deleted = (self._deleted, True) if in_trash else (self._files, False)
            count = len(self._deleted)
        unread = 0
        if query.strip():
            unread = self._read(files)
            fitting = self.texts.search(query)
            files = [file for file in files if file.ident in fitting]
        part = files[offset : offset + limit]
        self.texts.read(part)
        digest = hashlib.blake2b(f"{deleted}{query}".encode("utf-8", "replace"), digest_size=8)
        digest.update("".join(file.ident for file in files).encode())
        known = self.texts.known(file.ident for file in part)
        return Page(part, known, len(files), digest.hexdigest(), unread, count)

    def _read(self, files: Sequence[ImageFile]) -> int:
        """Opens files that are not known yet, for a second; how many are left."""
        end = time.monotonic() + READ_SECONDS
        with self._reading:
            new = [file for file in files if file.ident not in self.texts.idents]
            for place in range(0, len(new), AT_ONCE):
                if time.monotonic() > end:
                    return len(new) - place
                self.texts.read(new[place : place + AT_ONCE])
        return 0

    def find_thumbnail(self, ident: str) -> bytes | None:
        """A small WebP of the image, if it was made before. Raises Gone."""
        return self.thumbnails.find(self.find(ident))

    def make_thumbnail(self, ident: str) -> bytes:
        """A small WebP of the image. Raises Gone, or ImageError where the image cannot be read."""
        file = self.find(ident)
        data, pixels = self.thumbnails.make(file)
        self.texts.read([file])
        self.texts.set_pixels(ident, pixels)
        return data

    def delete(self, ident: str) -> None:
        """Moves an image to the trash. Raises UserError."""
        with self._lock:
            file = self.find(ident)
            if file in self._deleted:
                raise Gone
            self.trash.put(file)
            self._looked = float("-inf")

    def restore(self, ident: str) -> None:
        """Moves an image back from the trash. Raises UserError."""
        with self._lock:
            self.look(FRESH)
            file = next((file for file in self._deleted if file.ident == ident), None)
            if file is None:
                raise Gone
            self.trash.restore(file)
            self._looked = float("-inf")

    def empty_trash(self) -> int:
        """Deletes what is in the trash for good; how many images that were."""
        with self._lock:
            self._looked = float("-inf")
            return self.trash.empty()
