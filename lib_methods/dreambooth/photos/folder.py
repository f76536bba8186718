"""A folder of photos, with optional captions and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lib_methods.dreambooth.photos.companions import (
    CAPTION_ENDINGS,
    MASK_FOLDERS,
    MAX_CAPTION_BYTES,
    Companions,
    caption_text,
    companion_of,
    kohya_folder,
    listed,
    sort_files,
)
from lib_methods.dreambooth.photos.image import FOREIGN, Photo, decode, decode_mask, endings, prepared, upright_size
from lib_methods.errors import UserError
from lib_methods.pictures import kinds
from lib_methods.pictures.convert import to_rgba

_SMALLEST_SIDE = 16
MOST_HELD = 2**28  # bytes of decoded images that wait for the training
_OF_TRAINERS = ("metadata.jsonl", "meta_cap.json", "meta_clean.json", "meta_lat.json", "metadata.json", "metadata.csv")
_OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "zbthumbnail.info", "icon\r")
_OF_SYSTEMS_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information")
_MASK_SEEN = 8  # of 255: what JPEG artefacts and soft edges leave of black
_EXTREME, _MOSTLY = 32, 0.9  # how near to black or white, and how much of it, makes an image a mask


def find_photos(folder: Path, *, hold: bool = False) -> tuple[list[Photo], list[str]]:
    """The images of a folder in the order of their names, and a warning for what is left out.

    Every image is decoded, so that a broken one is found before the training. hold: and kept, up to a limit, so that
    `read_photo` need not decode it again. For the names of captions and masks see `companions.sort_files`. Raises
    `UserError` where no image can be used.
    """
    notes: list[str] = []
    files, folders = _entries(Path(folder), notes)
    inside = [file for mask in folders if mask.name.lower() in MASK_FOLDERS for file in _inside(mask)[0]]
    others = [f for f in folders if f.name.lower() not in MASK_FOLDERS and kohya_folder(f.name) is None]
    if others:
        notes.append(f"Folders inside the photos' folder are not searched: {listed(f.name for f in others)}.")
    sorted_files = sort_files(files, inside)
    photos: list[Photo] = []
    left, room = _Left(), MOST_HELD if hold else 0
    for file in sorted_files.photos:
        try:
            image, size = decode(file), upright_size(file)
        except UserError as error:
            left.unreadable(file, error)
            continue
        if min(image.size) < _SMALLEST_SIDE:
            left.small.append(file)
        elif file.stem.lower().endswith(("mask", "masks")) and _is_mask(image):
            left.masks.append(file)
        else:
            caption = sorted_files.captions.get(file)
            text = None if caption is None else _caption(caption, notes)
            mask = _usable_mask(sorted_files.masks.get(file), notes)
            photos.append(Photo(file, text, mask, *size, None if text is None else caption))
            room -= 3 * image.width * image.height
            if room >= 0:
                photos[-1].hold(image)
    if not photos:
        raise UserError(left.nothing(folders))
    notes += left.notes(sorted_files)
    notes += _same_names(photos)
    return photos, notes


class _Left:
    """The files that are no photos, for one sentence about all of a kind."""

    def __init__(self) -> None:
        self.foreign: dict[str, list[Path]] = {}
        self.junk: list[Path] = []
        self.masks: list[Path] = []
        self.lists: list[Path] = []
        self.broken: dict[str, list[Path]] = {}
        self.small: list[Path] = []

    def unreadable(self, file: Path, error: UserError) -> None:
        reason = FOREIGN.get(file.suffix.lower())
        if file.suffix.lower() in endings():
            kind = kinds.told(file) or str(error).removeprefix(f'"{file.name}" ')
            self.broken.setdefault(kind, []).append(file)
        elif file.name.lower() in _OF_TRAINERS or file.suffix.lower() == ".jsonl":
            self.lists.append(file)
        elif reason is not None:
            self.foreign.setdefault(reason, []).append(file)
        else:
            self.junk.append(file)

    def notes(self, found: Companions) -> list[str]:
        groups = [
            (self.junk, "Not images, left out: {}."),
            (found.conditions, "Neither photos nor the mask of one, left out: {}."),
            (self.masks, "Masks without a photo of that name, left out: {}."),
            (found.spare, "Further masks of photos that have one already, left out: {}."),
            (self.small, f"Smaller than {_SMALLEST_SIDE} pixels, left out: {{}}."),
            ([f for f in found.alone if f.suffix.lower() != ".json"], "Captions without a photo: {}."),
            (
                [*self.lists, *(f for f in found.alone if f.name.lower() in _OF_TRAINERS)],
                "Captions in {} are not read. Save each one beside its photo, as NAME.txt.",
            ),
        ]
        foreign = [f"Left out: {listed(f.name for f in files)}. {reason}" for reason, files in self.foreign.items()]
        foreign += [f"Left out: {listed(f.name for f in files)}: {kind}" for kind, files in self.broken.items()]
        return foreign + [text.format(listed(file.name for file in files)) for files, text in groups if files]

    def nothing(self, folders: Sequence[Path]) -> str:
        """Why there is no photo."""
        if self.foreign:
            names = listed(file.name for files in self.foreign.values() for file in files)
            return f"None of the photos can be read: {names}. {' '.join(self.foreign)}"
        if self.broken:
            told = "; ".join(f"{listed(f.name for f in files)}: {kind}" for kind, files in self.broken.items())
            return f"None of the photos can be read. {told} Save them as JPEG or PNG again."
        if self.small:
            return "All images in the folder are far too small. Take larger ones, best as large as the model's."
        if self.masks:
            return "There are only masks in the folder, and no photos. Put the photos beside them."
        inner = []  # folders that could be given instead
        for folder in folders:
            files, deeper = _inside(folder)
            if any(f.suffix.lower() in endings() for f in files) or any(kohya_folder(f.name) for f in deeper):
                inner.append(folder)
        if inner:
            return (
                f"There are no photos in the folder itself. Choose a folder inside it: {listed(f.name for f in inner)}."
            )
        return "There are no photos in the folder. Put 3 to 5 images of the subject there, as JPEG or PNG."


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """As `_entries`, of a folder in the folder, which may be unreadable."""
    try:
        return _entries(folder, [])
    except UserError:
        return [], []


def _entries(folder: Path, notes: list[str]) -> tuple[list[Path], list[Path]]:
    """Files and folders, without those that systems keep for themselves; a word about links that lead nowhere."""
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: (entry.name.casefold(), entry.name))
    except NotADirectoryError:
        raise UserError("The photos must be given as a folder, not as a file.") from None
    except OSError:
        raise UserError("The photos' folder does not exist or cannot be read.") from None
    files, folders = [], []
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
            continue
        try:
            if entry.is_dir():
                folders += [entry] if entry.name.lower() not in _OF_SYSTEMS_FOLDERS else []
            elif entry.is_file():
                files.append(entry)
            else:
                notes.append(f'"{entry.name}" is left out: it is a link to a file that does not exist, or not a file.')
        except OSError:
            notes.append(f'"{entry.name}" cannot be read and is left out.')
    return files, folders


def _caption(path: Path, notes: list[str]) -> str | None:
    try:
        if path.stat().st_size > MAX_CAPTION_BYTES:
            notes.append(f'"{path.name}" is too long for a caption and is left out.')
            return None
        text = caption_text(path.read_bytes(), json_file=path.suffix.lower() == CAPTION_ENDINGS[2])
    except OSError:
        notes.append(f'"{path.name}" cannot be read and is left out.')
        return None
    if text is None:
        notes.append(f'"{path.name}" is not a caption that can be read, and is left out. Save it as plain UTF-8 text.')
    return text or None


def _usable_mask(path: Path | None, notes: list[str]) -> Path | None:
    if path is None:
        return None
    try:
        brightest = max(decode_mask(path).tobytes(), default=0)
    except UserError as error:
        notes.append(f"{error} The photo is used without its mask.")
        return None
    if companion_of(path.name)[1] not in ("mask", "masklabel", ""):  # "" is a file in a folder of masks
        with prepared(path) as opened:
            image = to_rgba(opened)
        if image.mode == "RGB" and not _is_grey(image):  # a cut-out has transparency, which is its mask
            notes.append(f'"{path.name}" has colours, so it is not used as a mask. Rename it if it is a photo.')
            return None
    if brightest < _MASK_SEEN:
        notes.append(f'The mask "{path.name}" is all black. The photo is used without it.')
        return None
    return path


def _is_mask(image: Image.Image) -> bool:
    """Whether an image can hardly be a photo: no colours, and nearly all of it black or white."""
    grey = _sample(image).mean(-1)
    extreme = ((grey < _EXTREME) | (grey > 255 - _EXTREME)).mean()
    return bool(_is_grey(image) and extreme >= _MOSTLY)


def _is_grey(image: Image.Image) -> bool:
    return bool(np.ptp(_sample(image), axis=-1).max() <= _MASK_SEEN * 2)


def _sample(image: Image.Image) -> np.ndarray[Any, Any]:
    """(height, width, 3) at most 256 pixels wide and high."""
    small = image.copy()
    small.thumbnail((256, 256), Image.Resampling.NEAREST)
    return np.asarray(small.convert("RGB")).astype(np.int16)


def _same_names(photos: Sequence[Photo]) -> list[str]:
    """A word about photos that share a caption or a mask, as they have the same name but for the ending."""
    shared: dict[Path, list[Photo]] = {}
    for photo in photos:
        for companion in (photo.caption_path, photo.mask_path):
            if companion is not None:
                shared.setdefault(companion, []).append(photo)
    return [
        f'"{companion.name}" is used for {listed(photo.path.name for photo in owners)}, which have the same name.'
        for companion, owners in shared.items()
        if len(owners) > 1
    ]
