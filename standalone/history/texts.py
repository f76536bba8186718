"""What is known of each image without opening it: the words of its infotext, kept in a database over restarts."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lib_methods.pictures.convert import DECODE_ERRORS, ImageError, open_image, to_rgba
from standalone.host.images import read_info_from_image
from standalone.infotext import text as infotexts

from .files import ImageFile

LONGEST = 20_000
"""Characters of an image's words that are searched."""
LONGEST_PROMPT = 300
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS texts(ident TEXT PRIMARY KEY, words TEXT NOT NULL, prompt TEXT NOT NULL, "
    "tab TEXT NOT NULL, several INTEGER NOT NULL, pixels TEXT NOT NULL DEFAULT '') WITHOUT ROWID"
)
_VERSION = 1
_TERM = re.compile(r'"([^"]+)"|(\S+)')
_SHEET = re.compile(r"(?:^|/)(?:[^/]*-grids/|grid-|xyz_grid-)")
_PLOT = re.compile(r"(?:^|, )(?:Script: X/Y/Z plot|[XYZ] Values: )", re.MULTILINE)


@dataclass(frozen=True)
class Known:
    """prompt: its beginning. tab: which tab made it. several: whether it shows several images. pixels: the id that the
    image store gives it, "" as long as its pixels were not read."""

    prompt: str
    tab: str
    several: bool
    pixels: str = ""


def plain(text: str) -> str:
    """As texts are compared: without case, and without full width."""
    return unicodedata.normalize("NFKC", text).casefold()


def terms(query: str) -> list[str]:
    """The words of a search, all of which must occur; "words in quotes" are one."""
    return [plain(quoted or word) for quoted, word in _TERM.findall(query)]


def texts_of(file: ImageFile, whole: bool = False) -> tuple[str, str]:
    """An image's infotext, and what Extras did to it; "" without one.

    whole: reads all of a file whose head has none: some programs write it at the end. Raises ImageError for a file
    that cannot be read.
    """
    with open_image(Path(file.path)) as image:
        found, others = read_info_from_image(image)
        if found is None and whole:
            to_rgba(image)
            found, others = read_info_from_image(image)
    if found is None:
        with contextlib.suppress(OSError), file.text_file.open("rb") as beside:
            found = beside.read(infotexts.MAX_LENGTH).decode("utf-8", "replace").rstrip("\n")
    done = others.get("postprocessing")
    return found or "", done if isinstance(done, str) else ""


def infotext_of(file: ImageFile, whole: bool = False) -> str:
    """The first of `texts_of`."""
    return texts_of(file, whole)[0]


def _row(file: ImageFile) -> tuple[str, str, str, str, bool]:
    try:
        text, done = texts_of(file)
    except (ImageError, *DECODE_ERRORS):
        text = done = ""  # found by its name; its tile says that it cannot be read
    read = infotexts.read(text)
    folder = file.name.partition("-")[0]
    if folder not in ("txt2img", "img2img"):
        from_image = "Denoising strength" in read.fields and not any(key.startswith("Hires ") for key in read.fields)
        folder = "img2img" if from_image else "txt2img"
    date = datetime.fromtimestamp(file.modified / 1e9).strftime("%Y-%m-%d")
    words = plain(f"{file.name}\n{date}\n{text[:LONGEST]}\n{done[:LONGEST]}")
    several = bool(_SHEET.search(file.name) or _PLOT.search(text))
    row = (file.ident, words, read.prompt[:LONGEST_PROMPT], folder, several)
    return tuple(value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for value in row)  # type: ignore[return-value]


class Texts:
    """The database. It holds nothing that the files do not: where it cannot be used, memory is, until the end."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            self._database = self._open(str(path))
        except sqlite3.Error:
            with contextlib.suppress(OSError):
                path.unlink()  # damaged: everything in it can be read again
            try:
                self._database = self._open(str(path))
            except sqlite3.Error:
                self._database = self._open(":memory:")
        self.idents = {ident for (ident,) in self._database.execute("SELECT ident FROM texts")}

    @staticmethod
    def _open(path: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, check_same_thread=False, timeout=10)
        try:
            if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                database.execute("DROP TABLE IF EXISTS texts")
                database.execute(f"PRAGMA user_version = {_VERSION}")
            database.execute(_SCHEMA)
            database.commit()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def read(self, files: Sequence[ImageFile]) -> None:
        """Opens those of the files that are not known yet."""
        new = [_row(file) for file in files if file.ident not in self.idents]
        if not new:
            return
        insert = "INSERT OR IGNORE INTO texts(ident, words, prompt, tab, several) VALUES (?, ?, ?, ?, ?)"
        with self._lock:
            try:
                with self._database:
                    self._database.executemany(insert, new)
            except sqlite3.Error:  # a full or read-only disk
                self._database.close()
                self._database = self._open(":memory:")
                self.idents.clear()
                self._database.executemany(insert, new)
            self.idents.update(row[0] for row in new)

    def known(self, idents: Iterable[str]) -> dict[str, Known]:
        """What is known of these images."""
        asked = list(idents)
        marks = ", ".join("?" * len(asked))
        with self._lock:
            rows = self._database.execute(
                f"SELECT ident, prompt, tab, several, pixels FROM texts WHERE ident IN ({marks})", asked
            ).fetchall()
        return {ident: Known(prompt, tab, bool(several), pixels) for ident, prompt, tab, several, pixels in rows}

    def set_pixels(self, ident: str, pixels: str) -> None:
        with self._lock, contextlib.suppress(sqlite3.Error), self._database:
            self._database.execute("UPDATE texts SET pixels = ? WHERE ident = ?", (pixels, ident))

    def search(self, query: str) -> set[str]:
        """The ids of known images that have all words of the query."""
        wanted = terms(query)
        condition = " AND ".join(["instr(words, ?)"] * len(wanted)) or "1"
        with self._lock:
            rows = self._database.execute(f"SELECT ident FROM texts WHERE {condition}", wanted).fetchall()
        return {ident for (ident,) in rows}

    def forget(self, kept: Iterable[str]) -> None:
        """Removes what is known of images that are no longer there."""
        lost = self.idents - set(kept)
        if len(lost) < 1000:
            return
        with self._lock, contextlib.suppress(sqlite3.Error):
            with self._database:
                self._database.executemany("DELETE FROM texts WHERE ident = ?", [(ident,) for ident in lost])
            self.idents -= lost
