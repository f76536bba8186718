"""The image files below a folder. Each goes by an id, so no path ever comes from a request."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib_methods.errors import UserError

TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jfif": "image/jpeg",
    ".webp": "image/webp",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}


class Gone(UserError):
    """There is no such image, or no longer."""

    def __init__(self) -> None:
        super().__init__("This image is no longer there.")


@dataclass(frozen=True)
class ImageFile:
    """ident: of this name, time and size, so a file that was overwritten has another one. name: below the folder, with
    "/". modified: nanoseconds."""

    ident: str
    path: str
    name: str
    modified: int
    size: int

    @property
    def kind(self) -> str:
        """The media type, by the file's ending."""
        return TYPES[os.path.splitext(self.path)[1].lower()]

    @property
    def text_file(self) -> Path:
        """Where the infotext is if the image's format cannot hold it."""
        return Path(self.path).with_suffix(".txt")


def _ident(name: str, modified: int, size: int) -> str:
    text = f"{name}\0{modified}\0{size}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def find_images(root: str | os.PathLike[str]) -> Iterator[ImageFile]:
    """All image files below a folder, in no order. Hidden folders and links are left out, as is what cannot be read."""
    waiting = [(os.fspath(root), "")]
    while waiting:
        folder, below = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, f"{below}{entry.name}/"))
                    elif os.path.splitext(entry.name)[1].lower() in TYPES and entry.is_file(follow_symlinks=False):
                        found = entry.stat(follow_symlinks=False)
                        name, modified, size = f"{below}{entry.name}", found.st_mtime_ns, found.st_size
                        yield ImageFile(_ident(name, modified, size), entry.path, name, modified, size)
        except OSError:  # removed meanwhile, or not ours to read
            continue
