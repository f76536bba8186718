"""The image store: a folder of PNG files, each named by the hash of its pixels; and images in requests and on the page.

An image is known by its id alone: the SHA-256 of its size and RGB pixels as 64 hex digits. Infotexts shorten it to
the first 16, and every method takes such a beginning for the id. An id is never a path and a path is never an id, so no
request, preset or infotext can name another file of the machine.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.errors import reason
from lib_methods.files import replacing
from lib_methods.pictures.convert import MAX_TOTAL_PIXELS, ImageError, ImageSource, open_image, to_mask, to_rgb

THUMBNAIL_SIDE = 192
MAX_SIDE = 8192
MAX_PIXELS = 40_000_000

ID_DIGITS, SHORT_ID_DIGITS = 64, 16
"""Of a hundred million images two share 16 digits with a chance of 1 in 4,000."""
_IMAGE_ID = re.compile(rf"[0-9a-f]{{{SHORT_ID_DIGITS},{ID_DIGITS}}}")
StoreError = ImageError


def is_image_id(text: object) -> bool:
    """Whether `text` has the form of an image id or of its beginning (it may still be unknown)."""
    return isinstance(text, str) and _IMAGE_ID.fullmatch(text) is not None


def image_id(image: Image.Image) -> str:
    """The id of an RGB image: SHA-256 over "WIDTHxHEIGHT:" and its pixels, row by row, 3 bytes each; 64 hex
    digits."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode("ascii"))
    digest.update(image.tobytes())
    return digest.hexdigest()


class ImageStore:
    """Images in `folder`, which is made when the first one is added. Safe to use from several threads and
    processes.

    Every method that takes an id raises `StoreError` at anything that is not one.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._pixels_left: int | None = None

    def for_request(self, most: int = MAX_TOTAL_PIXELS) -> ImageStore:
        """The same images, for one request: `add` takes no more than `most` pixels in all, counted before they are
        decoded."""
        limited = ImageStore(self.folder)
        limited._pixels_left = most
        return limited

    def add(self, source: ImageSource, *, as_mask: bool = False) -> str:
        """Keep an image and return its id; one that is there already is not written again.

        It is kept as `to_rgb` gives it, a mask as `to_mask` does.

        Raises:
            StoreError: not a readable image, or larger than 8192 pixels on a side or 40 megapixels.
        """
        opened = self.open(source)
        if self._pixels_left is not None:
            self._pixels_left -= opened.width * opened.height
            if self._pixels_left < 0:
                raise StoreError(
                    "The images of this request have too many pixels in total. Send smaller or fewer images."
                )
        image = to_mask(opened).convert("RGB") if as_mask else to_rgb(opened)
        name = image_id(image)
        if not self.exists(name):
            self._write(name, image)
        return name

    def open(self, source: ImageSource) -> Image.Image:
        """What `add` would keep, with only the header read. Raises `StoreError` where it is none, or too large."""
        return open_image(source, max_side=MAX_SIDE, max_pixels=MAX_PIXELS)

    def load(self, name: str) -> Image.Image:
        """The image with this id, RGB.

        Raises:
            StoreError: the id is unknown, or the file's pixels are no longer those that the id stands for.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise StoreError(f"The image {name[:8]}… is not on this machine. Add it again.") from None
        except OSError:
            raise StoreError(f"The image {name[:8]}… cannot be read from the disk.") from None
        try:
            image = to_rgb(open_image(data, max_side=MAX_SIDE, max_pixels=MAX_PIXELS))
        except StoreError:
            image = None
        if image is None or not image_id(image).startswith(name):
            raise StoreError(f"The file of the image {name[:8]}… is damaged. Remove it and add it again.")
        return image

    def find(self, name: str) -> str:
        """The whole id of the image that `name` begins; `name` itself where there is none.

        Raises:
            StoreError: several images begin so, or `name` is neither an id nor a beginning of 16 digits.
        """
        if not is_image_id(name):
            raise StoreError("An image is named by its hash (16 to 64 digits), not by a file name or path.")
        found = self._beginning_with(name) if len(name) < ID_DIGITS else []
        if len(found) > 1:
            raise StoreError(f"{len(found)} images on this machine have a hash that begins with {name}. Add it again.")
        return found[0] if found else name

    def shorten(self, name: str) -> str:
        """The shortest beginning of an id, of 16 digits at least, that no other image here has."""
        others = [other for other in self._beginning_with(name[:SHORT_ID_DIGITS]) if other != name]
        digits = range(SHORT_ID_DIGITS, ID_DIGITS)
        return next((name[:n] for n in digits if not any(other.startswith(name[:n]) for other in others)), name)

    def _beginning_with(self, name: str) -> list[str]:
        return [path.stem for path in self.folder.glob(f"{name}*.png") if len(path.stem) == ID_DIGITS]

    def exists(self, name: str) -> bool:
        """Whether an image with this id is there."""
        return self.path(name).is_file()

    def path(self, name: str) -> Path:
        """The file of the image with this id, whether it is there or not."""
        return self.folder / f"{self.find(name)}.png"

    def _write(self, name: str, image: Image.Image) -> None:
        """Write to a temporary file, then rename: a reader sees the whole image or none."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path(name), shared=True) as file:
                image.save(file, format="PNG", compress_level=4)
        except OSError as error:
            # Windows refuses to replace a file that another thread is reading; then the same pixels are in place
            # already.
            if not self.exists(name):
                raise StoreError(f"The image cannot be saved. {reason(error)}") from None


def picture_name(value: str, place: str, kind: str, store: ImageStore | None) -> str:
    """The hash of an image that is named by it, or sent along as base64 or data URL.

    place, kind: what it is, for the sentences: "Picture 2 of 3" and "picture". store: where one that comes along is
    kept; with None only hashes are accepted. Raises `SettingsError`, also of the store.
    """
    if store is None:
        if is_image_id(value.strip()):
            return value.strip()
        raise SettingsError(f"{kind.capitalize()}s are named by their hash here.")
    try:
        return store.find(value.strip()) if is_image_id(value.strip()) else store.add(value, as_mask=kind == "mask")
    except SettingsError as error:
        raise type(error)(f"{place}: {error}") from None


def mask_name(value: Any, store: ImageStore | None = None) -> str:
    """The hash of a mask, see `picture_name`; empty for none."""
    if not isinstance(value, str):
        raise SettingsError('"mask" must be one image: base64, a data URL or a hash.')
    return "" if value == "" else picture_name(value, "The mask", "mask", store)


def whole_names(line: str, store: ImageStore | None) -> str:
    """A line of hashes, each perhaps with ":" and a weight, with whole ids for the beginnings that infotexts have.

    Those that are not here, or could be several, stay: who uses them says so.
    """
    words = []
    for word in line.split():
        name, colon, weight = word.partition(":")
        try:
            words.append((store.find(name) if store is not None else name) + colon + weight)
        except SettingsError:
            words.append(word)
    return " ".join(words)


def short_names(line: str, store: ImageStore | None) -> str:
    """The opposite of `whole_names`; without a store the ids stay whole."""
    split = [word.partition(":") for word in line.split()]
    return " ".join((store.shorten(name) if store is not None else name) + colon + rest for name, colon, rest in split)


def check_there(store: ImageStore, name: str, kind: str) -> None:
    """Raise `SettingsError` where an image that a request names is not in the store; empty names none."""
    if name and not store.exists(name):
        raise SettingsError(f"The {kind} {name[:8]}… is not on this machine. Send the {kind} itself.")


def received(picture: Image.Image | None, kept: str, store: ImageStore, *, as_mask: bool = False) -> tuple[str, str]:
    """A page's upload box was changed: the hash to hold now, and a sentence if the image cannot be taken. The box was
    emptied where there is no image; then `kept` stays."""
    if picture is None:
        return kept, ""
    try:
        return store.add(picture, as_mask=as_mask), ""
    except SettingsError as error:
        return kept, str(error)


def preview(store: ImageStore, name: str, shows: str) -> str:
    """A stored image, small, as HTML that every gradio version shows in the same way."""
    try:
        url = thumbnail(store, name, THUMBNAIL_SIDE)
    except (OSError, SettingsError):
        return f"<em>{html.escape(name[:8])}… is not on this machine</em>"
    return f'<img src="{url}" alt="{shows}" style="max-width: 100%; display: inline-block">'


def thumbnail(store: ImageStore, name: str, side: int) -> str:
    """A stored image as data URL of a JPEG, `side` pixels at most.

    Raises:
        OSError, StoreError: it is not there, or its file is damaged.
    """
    modified = store.path(name).stat().st_mtime_ns
    return _data_url(str(store.folder), name, side, modified)


@lru_cache(maxsize=256)
def _data_url(folder: str, name: str, side: int, modified: int) -> str:
    """`modified` is part of the key, so that a file that changed is read again."""
    image = ImageStore(Path(folder)).load(name)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
