"""Files that are there whole or not at all, and names that every system takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

from lib_methods.checks import MAX_NAME, SettingsError, clean_name
from lib_methods.errors import UserError

MAX_JSON_BYTES = 16 * 2**20
MAX_NAME_BYTES = 200  # of 255, which leaves room for endings and numbers
_DEVICES = re.compile(
    r"(con|prn|aux|nul|clock\$|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE
)
_NAME = re.compile(r"\w[\w .+()-]*")


def is_file_name(name: str) -> bool:
    """Whether a file or folder can have this name on every system, with any ending behind it.

    Letters, digits, spaces and `_.+()-`, the first a letter or digit; no name of a Windows device ("con", "nul.txt"),
    no dot or space at the end, which Windows drops.
    """
    return (
        bool(_NAME.fullmatch(name))
        and len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
        and name[-1] not in " ."
        and not _DEVICES.fullmatch(name)
    )


def as_file_name(stem: str, ending: str = "", otherwise: str = "file") -> str:
    """Stem and ending without what `is_file_name` refuses, the stem shortened. otherwise: for an empty stem."""
    plain, end = (re.sub(r"[^\w .()+-]", "_", text) for text in (stem, ending[:20]))
    plain, end = plain.strip(" .").lstrip(".+()- ") or otherwise, end.rstrip(" .")
    short = plain[:100]
    while len(f"{short}{end}".encode("utf-8", "replace")) > MAX_NAME_BYTES - 1:
        short = short[:-1]
    short = f"{short}{end}".rstrip(" .")
    return f"_{short}" if _DEVICES.fullmatch(short) else short


def hashed_file_name(prefix: str, name: str) -> str:
    """A file name, without ending, for any name: a readable part, and a hash that tells "Cat" from "cat" on every disk.

    prefix: keeps the names of Windows' devices (CON, NUL, COM1 ...) out.
    """
    readable = re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")[:40]
    return f"{prefix}_{readable}-{hashlib.sha256(name.encode('utf-8')).hexdigest()[:16]}"


def remove(path: Path, what: str, error: type[UserError]) -> bool:
    """Remove a file; False if there was none. what: names it in the sentence of the error."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError:
        raise error(f"{what} could not be deleted. Close programs that use its file.") from None
    return True


class NamedFiles:
    """Files of one kind in `folder`, found by the names that they hold: FABRIC's presets, pix2pix-zero's directions.

    So "../x", "CON", "a/b" or "猫" are ordinary names on every system, and none leaves the folder. Files that a user
    puts there are listed, too. kind: what sentences call one. error: raised with a sentence.
    """

    kind: ClassVar[str]
    suffix: ClassVar[str]
    error: ClassVar[type[SettingsError]] = SettingsError

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @classmethod
    def clean_name(cls, name: object) -> str:
        """The normalised name, see `lib_methods.checks`. Raises `error`."""
        return clean_name(name, cls.kind, cls.error)

    def read_name(self, file: Path) -> str:
        """The name that a file holds. Raises `error` if it is damaged or something else."""
        raise NotImplementedError

    def path(self, name: str) -> Path:
        """Where a file of this name is saved."""
        return self.folder / f"{hashed_file_name(self.kind, name)}{self.suffix}"

    def find(self, name: object) -> Path:
        """The file of this name, damaged or not. Raises `error` if there is none."""
        clean = self.clean_name(name)
        file = self.files().get(clean, self.path(clean))
        if not file.is_file():
            raise self.error(f'There is no {self.kind} "{clean}".')
        return file

    def delete(self, name: object) -> bool:
        """Remove a file; False if there was none."""
        clean = self.clean_name(name)
        return remove(self.files().get(clean, self.path(clean)), f'The {self.kind} "{clean}"', self.error)

    def names(self) -> tuple[str, ...]:
        """All names in alphabetical order. A damaged file goes by its file's name, so that it can be deleted."""
        return tuple(sorted(self.files(), key=lambda name: (name.casefold(), name)))

    def files(self) -> dict[str, Path]:
        """The files by the names that they go by. Every name comes from here: none is ever joined to a path."""
        try:
            entries = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_file())
        except OSError:  # no folder yet: nothing was saved
            return {}
        found: dict[str, Path] = {}
        for entry in entries:
            stem, suffix = os.path.splitext(entry)
            if suffix.casefold() != self.suffix or stem.startswith("."):
                continue
            file = self.folder / entry
            try:
                name = self.clean_name(self.read_name(file))
            except SettingsError:
                name = ""
            # What we saved goes first: a copy of a file holds the same name, and is recognised by its file's.
            if name and self.path(name).name == entry:
                if name in found:
                    found[self._unused(found[name].stem, found)] = found[name]
                found[name] = file
                continue
            found[name if name and name not in found else self._unused(stem, found)] = file
        return found

    def _unused(self, stem: str, names: dict[str, Path]) -> str:
        """A name for a file that holds none, or one that is taken: its stem as far as it can be seen, numbered."""
        try:
            base = self.clean_name(stem[:MAX_NAME])
        except SettingsError:
            base = "damaged"
        name, number = base, 2
        while name in names:
            name = f"{base[: MAX_NAME - 6]} ({number})"
            number += 1
        return name


def is_file_inside(text: str, folders: Sequence[Path]) -> bool:
    """Whether `text` is the absolute path of a file that lies in one of `folders`, also after symbolic links.

    The text is compared before the file system is asked: merely asking for a UNC path makes Windows call that machine.
    """
    if "\0" in text or not Path(text).is_absolute() or text.startswith(("\\\\", "//")):
        return False
    plain = Path(os.path.normpath(text))
    if ".." in Path(text).parts or not any(_inside(plain, folder) for folder in folders):
        return False
    try:
        real = plain.resolve(strict=True)
        return real.is_file() and any(_inside(real, folder.resolve()) for folder in folders)
    except (OSError, RuntimeError, ValueError):
        return False


def _inside(path: Path, folder: Path) -> bool:
    return folder == path or folder in path.parents


def read_json(path: Path) -> Any:
    """The value in a JSON file of at most `MAX_JSON_BYTES`. Raises OSError, or ValueError for anything else that it can
    be: too large, no JSON, no UTF-8, nested too deep."""
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is too large")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deep") from None


_SAVING = ".saving-"
_LEFT = re.compile(r"\.(?:saving|merging)-(?:(\d+)-)?.*\.tmp")


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well; else `path` stays as it was.

    What was written is on the disk before the names change, so that not even a power cut leaves half a file. The folder
    must be there. shared: others may write the same file at the same time, and each then has its own; without it,
    what a killed process left behind is written over by the next. Raises OSError.
    """
    if shared:
        handle, name = tempfile.mkstemp(prefix=f"{_SAVING}{os.getpid()}-", suffix=".tmp", dir=path.parent)
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


def write_whole(path: Path, data: bytes, what: str = "") -> Path:
    """Writes `data` in place of `path`, whole or not at all, making its folder.

    what: put before the file's name in the error. Raises UserError when the disk is full or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        reason = error.strerror or "the disk may be full"
        raise UserError(f"{what} {path.name} cannot be written: {reason}.".strip()) from error
    return path


def sweep(*folders: Path) -> int:
    """Removes what killed processes left half written in `folders` and below them; how many files that were.

    What a living process writes stays, as its number is in the name.
    """
    found = 0
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if not name.startswith(".")]  # .venv and .git are none of ours
            for name in names:
                left = _LEFT.fullmatch(name)
                if left is None or (left[1] and _is_alive(int(left[1]))):
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(place, name))
                    found += 1
    return found


def _is_alive(number: int) -> bool:
    """Whether a process of this number runs; asking must not harm it, as `os.kill` does on Windows."""
    if number == os.getpid():
        return True
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, number)  # to ask, no more
        if handle:
            kernel.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a new name last. Windows keeps names without being asked, and has no way to ask."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
