"""Small copies of images, each made when it is first looked at, in a folder of limited size."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from pathlib import Path

from PIL import Image

from lib_methods.files import replacing
from lib_methods.pictures.convert import open_image, to_rgb
from lib_methods.pictures.store import image_id

from .files import ImageFile

SIDE = 320
MOST_BYTES = 256 * 2**20
KEPT_SHARE = 0.8
"""Of the limit; what was used last stays when it is exceeded."""
TYPE = "image/webp"


class Thumbnails:
    """The folder."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self._most_bytes = most_bytes
        self._bytes: int | None = None
        self._lock = threading.Lock()

    def path(self, file: ImageFile) -> Path:
        return self.folder / f"{file.ident}.webp"

    def find(self, file: ImageFile) -> bytes | None:
        """The thumbnail, if there is one."""
        path = self.path(file)
        try:
            os.utime(path)
            return path.read_bytes()
        except OSError:
            return None

    def make(self, file: ImageFile) -> tuple[bytes, str]:
        """The thumbnail's bytes, and the id that the image store gives the image. Raises ImageError."""
        with open_image(Path(file.path)) as opened:
            image = to_rgb(opened)
            pixels = image_id(image)
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
            data = _webp(image)
        with contextlib.suppress(OSError):  # a full disk: it is made again next time
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path(file), shared=True) as written:
                written.write(data)
            self._grown(len(data))
        return data, pixels

    def _grown(self, size: int) -> None:
        with self._lock:
            if self._bytes is not None and self._bytes + size <= self._most_bytes:
                self._bytes += size
                return
            found = []
            for path in self.folder.glob("*.webp"):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
            left = sum(size for _, size, _ in found)
            if left > self._most_bytes:
                for _, size, path in sorted(found):
                    if left <= self._most_bytes * KEPT_SHARE:
                        break
                    with contextlib.suppress(OSError):
                        path.unlink()
                        left -= size
            self._bytes = left


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80, method=2)
    return buffer.getvalue()
