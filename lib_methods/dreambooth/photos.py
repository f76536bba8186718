"""The subject's photos: a folder with pictures, and beside each perhaps a caption and a mask."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from lib_methods.dreambooth.captions import MAX_CAPTION_BYTES, read_caption
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.pictures.mask import of_the_tab
from lib_methods.pictures.store import DECODE_ERRORS, MAX_PIXELS, MAX_SIDE, StoreError, to_rgb

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "HEIF")
"""What is decoded where Pillow can: plain raster formats, and none that starts another program or reads other files."""
_MASK_ENDINGS = (".mask", "-mask")
_LARGEST_JPEG = 178_000_000  # pixels; a JPEG is decoded at a half, a quarter or an eighth of its size
_SMALLEST_SIDE = 16
_LARGEST_FILE = 256 * 2**20
_TGA_ENDINGS = (".tga", ".icb", ".vda", ".vst")  # TGA has no mark of its own: any junk may pass for one
_OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini")
_ORIENTATION = 0x0112  # EXIF's tag; from 5 on the picture lies on its side
_MASK_SEEN = 8  # of 255: what JPEG artefacts and soft edges leave of black


@dataclass(frozen=True)
class Photo:
    """A picture of the subject.

    caption: the text of the `.txt` file beside it, None where there is none. mask_path: the picture that is white where
    the subject is. width, height: in pixels, as the picture stands upright.
    """

    path: Path
    caption: str | None
    mask_path: Path | None
    width: int
    height: int


def find_photos(folder: Path) -> tuple[list[Photo], list[str]]:
    """The pictures of a folder in the order of their names, and a warning for each file that is left out.

    Every picture is decoded once, so that a broken one is found before the training. NAME.txt is the caption of
    NAME.jpg, NAME.mask.png or NAME-mask.png its mask. Raises `DreamBoothError` where no picture can be used.
    """
    notes: list[str] = []
    files = _files(Path(folder), notes)
    masks = _masks(files)
    photos, broken, small, used = [], 0, 0, set(masks.values())
    for file in files:
        if file in used or file.suffix.lower() == ".txt":
            continue
        try:
            image, size = _decode(file), _upright_size(file)
        except DreamBoothError as error:
            known = file.suffix.lower() in _endings() or file.suffix.lower() in (".heic", ".heif", ".avif")
            broken += known
            notes.append(f"{error} It is left out." if known else f'"{file.name}" is no picture and is left out.')
            continue
        if min(image.size) < _SMALLEST_SIDE:
            notes.append(f'"{file.name}" is too small ({image.width}x{image.height}) and is left out.')
            small += 1
            continue
        photos.append(Photo(file, _caption(file, files, notes), _usable_mask(masks.get(file), notes), *size))
    if not photos:
        raise DreamBoothError(_nothing(broken, small))
    stems = {photo.path.stem.casefold() for photo in photos}
    for file in files:
        if file.suffix.lower() == ".txt" and file.stem.casefold() not in stems:
            notes.append(f'"{file.name}" belongs to no picture and is left out.')
    return photos, notes


def without_companions(files: Sequence[Path]) -> list[Path]:
    """Those of the files that are meant as photos: neither captions nor masks of others. Told by their names alone."""
    masks = set(_masks(list(files)).values())
    return [file for file in files if file.suffix.lower() != ".txt" and file not in masks]


def open_photo(path: Path) -> Photo:
    """A picture without caption and mask; its pixels are not read yet. Raises `DreamBoothError` where it is none."""
    with _prepared(path):
        pass
    return Photo(path, None, None, *_upright_size(path))


def read_photo(photo: Photo) -> Image.Image:
    """The picture as RGB: upright, transparent parts white, 8 bits a channel, an animation's first frame.

    JPEGs of more than 40 megapixels come at a fraction of their size. Raises `DreamBoothError` where it can no longer
    be read.
    """
    return _decode(photo.path)


def read_mask(photo: Photo) -> Image.Image | None:
    """The photo's mask in grey, upright, in a size of its own: white is the subject. None where there is none.

    Where a mask has transparent parts, what is opaque is the subject. Raises `DreamBoothError` as `read_photo` does.
    """
    return None if photo.mask_path is None else _decode_mask(photo.mask_path)


def _files(folder: Path, notes: list[str]) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: (entry.name.casefold(), entry.name))
    except OSError:
        raise DreamBoothError("The folder of the photos is not there or cannot be read.") from None
    visible = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in _OF_SYSTEMS]
    if any(entry.is_dir() for entry in visible):
        notes.append("Folders inside the photos' folder are not looked into.")
    return [entry for entry in visible if entry.is_file()]


def _masks(files: list[Path]) -> dict[Path, Path]:
    """The mask of each picture that has one. A picture called `gas-mask.png` is one where there is no `gas` beside."""
    pictures = [file for file in files if file.suffix.lower() != ".txt"]
    found: dict[Path, Path] = {}
    for mask in pictures:
        for ending in _MASK_ENDINGS:
            if mask.suffix.lower() == ".png" and mask.stem.lower().endswith(ending):
                stem = mask.stem[: -len(ending)].casefold()
                owners = [file for file in pictures if file.stem.casefold() == stem and file != mask]
                found.update({owner: mask for owner in owners if owner not in found})
    return found


def _caption(file: Path, files: list[Path], notes: list[str]) -> str | None:
    for text in files:
        if text.suffix.lower() == ".txt" and text.stem.casefold() == file.stem.casefold():
            try:
                if text.stat().st_size > MAX_CAPTION_BYTES:
                    notes.append(f'"{text.name}" is too long for a caption and is left out.')
                    return None
                return read_caption(text.read_bytes()) or None
            except OSError:
                notes.append(f'"{text.name}" cannot be read and is left out.')
    return None


def _usable_mask(path: Path | None, notes: list[str]) -> Path | None:
    if path is None:
        return None
    try:
        brightest = max(_decode_mask(path).tobytes(), default=0)
    except DreamBoothError as error:
        notes.append(f"{error} The photo is used without its mask.")
        return None
    if brightest < _MASK_SEEN:
        notes.append(f'The mask "{path.name}" is all black. The photo is used without it.')
        return None
    return path


def _nothing(broken: int, small: int) -> str:
    if broken:
        return "None of the photos can be read. Save them as JPEG or PNG again."
    if small:
        return "All pictures in the folder are far too small. Take larger ones, best as large as the model draws."
    return "There are no photos in the folder. Put 3 to 5 pictures of the subject there, as JPEG or PNG."


def _endings() -> set[str]:
    return {ending for ending, name in Image.registered_extensions().items() if name in FORMATS} | {".jfif"}


def _open(path: Path) -> Image.Image:
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked before a pixel is read
        known = [name for name in FORMATS if name in Image.OPEN]
        if path.suffix.lower() not in _TGA_ENDINGS:
            known.remove("TGA")
        return Image.open(path, formats=known)


def _upright_size(path: Path) -> tuple[int, int]:
    try:
        with _open(path) as image:
            turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except DECODE_ERRORS:
        raise DreamBoothError(f'"{path.name}" is damaged.') from None


def _prepared(path: Path) -> Image.Image:
    """The opened file, of a size that may be decoded."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DreamBoothError(f'"{path.name}" is larger than {_LARGEST_FILE // 2**20} MiB.')
        image = _open(path)
    except Image.DecompressionBombError:
        raise DreamBoothError(f'"{path.name}" has far too many pixels. Scale it down first.') from None
    except DECODE_ERRORS:
        hint = " Save it as JPEG or PNG." if path.suffix.lower() in (".heic", ".heif", ".avif") else ""
        raise DreamBoothError(f'"{path.name}" cannot be read as a picture.{hint}') from None
    wanted = image.size
    if image.format in ("JPEG", "MPO") and image.width * image.height <= _LARGEST_JPEG:
        while wanted[0] * wanted[1] > MAX_PIXELS or max(wanted) > MAX_SIDE:
            wanted = (wanted[0] // 2, wanted[1] // 2)
        if wanted != image.size:
            image.draft(image.mode, wanted)
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        size = f"{image.width}x{image.height}"
        image.close()
        raise DreamBoothError(f'"{path.name}" has too many pixels ({size}). Scale it down first.')
    return image


def _decode(path: Path) -> Image.Image:
    with _prepared(path) as image:
        try:
            return to_rgb(image)
        except (StoreError, *DECODE_ERRORS):
            raise DreamBoothError(f'"{path.name}" is damaged or cut short.') from None


def _decode_mask(path: Path) -> Image.Image:
    with _prepared(path) as image:
        try:
            upright = ImageOps.exif_transpose(image) or image
            see_through = upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info
            return of_the_tab(upright.convert("RGBA") if see_through else to_rgb(image), False, 0)
        except (StoreError, *DECODE_ERRORS):
            raise DreamBoothError(f'The mask "{path.name}" is damaged or cut short.') from None
