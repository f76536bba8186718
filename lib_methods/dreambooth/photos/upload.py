"""The photos that somebody drops into the tab, in a folder of the training's own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.photos.companions import companion_of
from lib_methods.dreambooth.photos.folder import Photo, find_photos
from lib_methods.files import as_file_name
from lib_methods.pictures.store import ImageStore

MOST_FILES = 500
MOST_PIXELS = 2**30  # of all photos of a REST request
NO_PHOTOS = "Drop 3 to 5 photos of the subject into the box first."


@dataclass(frozen=True)
class Dropped:
    """The pictures of one subject as they came in: files of the page, or encoded pictures of a REST request."""

    photos: Sequence[Any]
    class_photos: Sequence[Any] = ()
    class_noun: str = ""
    identifier: str = ""


def take_in_all(subjects: Sequence[Dropped], folder: Path) -> None:
    """Copies every subject's photos, and own images of its class, to where `places_of` says. Raises as `take_in`."""
    try:
        for subject, (photos, class_folder) in zip(subjects, places_of(subjects, folder)):
            _take(subject.photos, photos)
            if class_folder is not None:
                _take(subject.class_photos, class_folder)
    except ValueError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def places_of(subjects: Sequence[Dropped], folder: Path) -> list[tuple[Path, Path | None]]:
    """The folders of each subject's photos and class images; those inside `folder` are hidden, so no photos to it."""
    places: list[tuple[Path, Path | None]] = []
    for number, subject in enumerate(subjects):
        photos = folder / f".{number + 1}" if number else folder
        places.append((photos, photos / ".class" if subject.class_photos else None))
    return places


def _take(pictures: Any, folder: Path) -> None:
    if isinstance(pictures, (list, tuple)) and all(isinstance(picture, Path) for picture in pictures):
        take_in(pictures, folder)
    else:
        take_in_encoded(pictures, folder)


def take_in(files: Iterable[Path], folder: Path) -> tuple[list[Photo], list[str]]:
    """Copies photos, with their captions and masks, into `folder`, which is emptied first.

    Returns the photos and a sentence for each file that cannot be used. Raises DreamBoothError, and nothing is left
    behind: no photo among them, too many files, or the disk is full.
    """
    files = list(files)
    if not files:
        raise DreamBoothError(NO_PHOTOS)
    if len(files) > MOST_FILES:
        raise DreamBoothError(f"{len(files)} files are too many: at most {MOST_FILES} are accepted. 3 to 5 are enough.")
    with _emptied(folder, "The photos cannot be copied: the disk is full, or the photos no longer exist."):
        for file in files:
            shutil.copyfile(file, folder / _free(folder, _plain(file.name)))
        return find_photos(folder)


def take_in_encoded(pictures: Any, folder: Path) -> tuple[list[Photo], list[str]]:
    """As `take_in`, for the pictures of a REST request: base64 texts, or objects of "image" and perhaps "caption".

    Raises DreamBoothError or SettingsError.
    """
    if not isinstance(pictures, list) or not pictures:
        raise SettingsError('"photos" must be a list of images as base64 text.')
    if len(pictures) > MOST_FILES:
        raise SettingsError(f"There are too many photos: at most {MOST_FILES}.")
    store = ImageStore(folder).for_request(MOST_PIXELS)
    with _emptied(folder, "The photos cannot be stored: the disk is full or not writable."):
        for entry in pictures:
            whole = entry if isinstance(entry, dict) else {"image": entry}
            name = store.add(whole.get("image", ""))
            caption = whole.get("caption")
            if caption:
                (folder / f"{name}.txt").write_text(str(caption), encoding="utf-8")
        return find_photos(folder)


@contextlib.contextmanager
def _emptied(folder: Path, sentence: str) -> Iterator[None]:
    """An empty folder, of which nothing is left behind when the block fails. OSError becomes the sentence."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise DreamBoothError(sentence) from None
    except ValueError:  # DreamBoothError and SettingsError are such
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _plain(name: str) -> str:
    """A file's name that every system takes; what belongs together by its stem still does."""
    stem, _ = companion_of(name)
    return as_file_name(stem, name[len(stem) :], "photo")


def _free(folder: Path, name: str) -> str:
    """The name, or with a number in front where a file of that name is there: two folders may have an IMG_1.jpg."""
    number, free = 1, name
    while (folder / free).exists():
        number += 1
        free = f"{number}-{name}"
    return free
