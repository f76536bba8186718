"""The subjects of a run with their photos: by the settings, by kohya's folder names, or dropped into the tab."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError, refuse_unknown
from lib_methods.dreambooth.photos.companions import companion_of, kohya_folder, listed, subject_of
from lib_methods.dreambooth.photos.folder import find_photos
from lib_methods.dreambooth.photos.image import Photo, endings
from lib_methods.dreambooth.settings import Concept, TrainingSettings
from lib_methods.errors import UserError
from lib_methods.files import as_file_name
from lib_methods.pictures.store import ImageStore

_LONGEST = 40  # letters of a file's name in a sentence


@dataclass(frozen=True)
class Subject:
    """A concept and its photos. class_photos: own images of its class; empty if these are generated or not needed."""

    concept: Concept
    photos: Sequence[Photo]
    class_photos: Sequence[Photo] = ()


def find_subjects(settings: TrainingSettings) -> tuple[list[Subject], list[str]]:
    """The subjects that the settings ask for, the first one being the settings' own, and warnings.

    A folder `10_ohwx dog` inside `settings.photos` is a subject: how often each photo comes, rare word and class.
    Raises `UserError` where one has no photos, or where two have the same rare word.
    """
    notes: list[str] = []
    subjects = []
    concepts = _named_by_folders(settings)
    for concept in concepts:
        photos, said = find_photos(concept.photos, hold=True)
        notes += said
        own: list[Photo] = []
        for folder in _class_folders(concept, len(concepts) == 1, notes):
            found, said = find_photos(folder, hold=True)
            own += found
            notes += [f"Class images: {text}" for text in said]
        if len(photos) == 1:
            notes.append(
                f"There is only one photo of the {concept.class_noun}. Use 3 to 5 different ones for a better result."
            )
        subjects.append(Subject(concept, photos, own))
    check_identifiers([subject.concept for subject in subjects])
    shared = math.gcd(*(subject.concept.repeats for subject in subjects))
    return [_replaced(s, repeats=s.concept.repeats // shared) for s in subjects], notes


def check_identifiers(concepts: Sequence[Concept]) -> None:
    """Raises UserError where two subjects would be told apart by nothing."""
    given = [concept.identifier.casefold() for concept in concepts if concept.identifier]
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise UserError(f'Two subjects have the identifier "{twice[0]}". Give each one its own.')


def with_identifiers(subjects: Sequence[Subject], identifiers: Sequence[str]) -> list[Subject]:
    """The subjects with these rare words."""
    return [_replaced(subject, identifier=name) for subject, name in zip(subjects, identifiers, strict=True)]


def companions_told(subjects: Sequence[Subject], settings: TrainingSettings) -> list[str]:
    """Sentences about the captions and masks that a run uses, and its class images."""
    told = []
    for subject in subjects:
        photos, about = subject.photos, settings.about(subject.concept)
        name = f"{about.subject}: " if len(subjects) > 1 else ""
        times = f", each {subject.concept.repeats} times as often" if subject.concept.repeats > 1 else ""
        with_caption = [photo.caption_path for photo in photos if photo.caption_path is not None]
        with_mask = [photo.mask_path for photo in photos if photo.mask_path is not None]
        plain = f"a {about.subject}" if about.identifier else f"a … {about.class_noun}"  # not chosen yet
        captions = _used(with_caption, len(photos), settings.captions, f"the others are “{plain}”")
        if settings.captions and not with_caption:
            captions = f"none, each is “{plain}”."
        masks = _used(with_mask, len(photos), settings.masks, "the others count as a whole")
        told.append(f"{name}{counted(len(photos), 'photo')}{times}. Captions: {captions} Masks: {masks}")
        if subject.class_photos:
            told.append(f"{name}{counted(len(subject.class_photos), 'class image')} of your own, used as they are.")
    return told


def counted(number: int, what: str) -> str:
    """A number of things: "1 photo", "3 photos"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _used(files: Sequence[Path], photos: int, wanted: bool, others: str) -> str:
    if not wanted:
        return f"not used, though there are {len(files)}." if files else "not used."
    if not files:
        return "none."
    rest = f"; {others}" if len(files) < photos else ""
    names = (file.name if len(file.name) <= _LONGEST else f"{file.name[: _LONGEST // 2]}…" for file in files)
    return f"{len(files)} of {photos} ({listed(names, 3)}){rest}."


def _replaced(subject: Subject, **changes: object) -> Subject:
    return replace(subject, concept=replace(subject.concept, **changes))  # type: ignore[arg-type]


def _named_by_folders(settings: TrainingSettings) -> list[Concept]:
    """The settings' concepts, with those that the names of folders tell."""
    folder = Path(settings.photos)
    own, *more = settings.all_concepts
    try:
        named = _kohya_folders(folder)
        loose = any(entry.suffix.lower() in endings() and entry.is_file() for entry in folder.iterdir())
    except OSError:
        return [own, *more]  # find_photos says what is wrong
    if not named:
        found = kohya_folder(folder.name)
        identifier, noun = subject_of(found[1], own.class_noun) if found else ("", "")
        if not own.identifier and identifier and noun.casefold() == own.class_noun.casefold():
            own = replace(own, identifier=identifier)
        return [own, *more]
    concepts = [own] if loose else []
    for entry, (repeats, words) in named:
        identifier, noun = subject_of(words, own.class_noun)
        if len(named) == 1 and not loose:  # what the user says comes before what the folder is called
            identifier, noun = own.identifier or identifier, own.class_noun
        concepts.append(Concept(entry, noun, identifier, own.class_folder, repeats))
    one_class = len({concept.class_noun.casefold() for concept in concepts}) == 1
    class_folder = own.class_folder
    if class_folder is not None and not one_class and not (class_folder.is_dir() and _kohya_folders(class_folder)):
        concepts = [c if c.class_noun == own.class_noun else replace(c, class_folder=None) for c in concepts]
    return [*concepts, *more]


def _kohya_folders(folder: Path) -> list[tuple[Path, tuple[int, str]]]:
    """The folders in a folder that are named as kohya's trainers want it, with repeats and words. Raises OSError."""
    entries = sorted(folder.iterdir(), key=lambda entry: (entry.name.casefold(), entry.name))
    return [(entry, found) for entry in entries if entry.is_dir() and (found := kohya_folder(entry.name))]


def _class_folders(concept: Concept, alone: bool, notes: list[str]) -> list[Path]:
    """Where a subject's own class images lie: its folder, or those of kohya's `1_dog` in it that are of its class.

    alone: it is the only subject, so that a single folder is its own whatever it is called.
    """
    folder = concept.class_folder
    if folder is None:
        return []
    try:
        inside = _kohya_folders(folder)
    except OSError:
        raise UserError("The folder of class images does not exist or cannot be read.") from None
    if not inside:
        return [folder]
    noun = concept.class_noun.casefold()
    of_class = [entry for entry, (_, words) in inside if words.replace("_", " ").casefold() in (noun, f"a {noun}")]
    if alone and len(inside) == 1:
        of_class = [inside[0][0]]
    if not of_class:
        notes.append(f'No folder of class images is named after "{concept.class_noun}", so its images are generated.')
    return of_class


MOST_CONCEPTS = 10
MOST_FILES = 500
MOST_PIXELS = 2**30  # of all photos of a REST request
NO_PHOTOS = "Drop 3 to 5 photos of the subject into the box first."


@dataclass(frozen=True)
class Dropped:
    """The images of one subject as they came in: files of the page, or encoded images of a REST request."""

    photos: Sequence[Any]
    class_photos: Sequence[Any] = ()
    class_noun: str = ""
    identifier: str = ""


def uploaded(value: Any) -> list[Path]:
    """The files of a box for uploads: gradio 3 gives open files, later ones paths; one or several, or None."""
    items = value if isinstance(value, (list, tuple)) else [value] if value else []
    return [Path(str(getattr(item, "name", item))) for item in items]


def dropped(wanted: dict[str, Any], photos: Any) -> list[Dropped]:
    """Takes "class_photos" and "concepts" out of `wanted`: the settings' own subject first. Raises SettingsError."""
    own = Dropped(photos, wanted.pop("class_photos", None) or ())
    given = wanted.pop("concepts", None) or []
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise SettingsError('"concepts" must be a list of objects with photos and class_noun.')
    if len(given) > MOST_CONCEPTS:
        raise SettingsError(f"There are too many subjects: at most {MOST_CONCEPTS} more.")
    more = []
    for entry in given:
        refuse_unknown(entry, ["photos", "class_photos", "class_noun", "identifier"], "A concept has")
        noun, identifier = entry.get("class_noun") or "", entry.get("identifier") or ""
        if not entry.get("photos") or not isinstance(noun, str) or not noun.strip() or not isinstance(identifier, str):
            raise SettingsError("Each further subject needs photos and its class.")
        more.append(Dropped(entry["photos"], entry.get("class_photos") or (), noun.strip(), identifier.strip()))
    return [own, *more]


def take_in_all(subjects: Sequence[Dropped], folder: Path) -> None:
    """Copies every subject's photos, and own images of its class, to where `places_of` says. Raises as `take_in`."""
    try:
        for subject, places in zip(subjects, places_of(subjects, folder)):
            for images, place in zip((subject.photos, subject.class_photos), places):
                if place is None:
                    continue
                are_files = isinstance(images, (list, tuple)) and all(isinstance(file, Path) for file in images)
                (take_in if are_files else take_in_encoded)(images, place)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def places_of(subjects: Sequence[Dropped], folder: Path) -> list[tuple[Path, Path | None]]:
    """The folders of each subject's photos and class images; those inside `folder` are hidden, so no photos to it."""
    places: list[tuple[Path, Path | None]] = []
    for number, subject in enumerate(subjects):
        photos = folder / f".{number + 1}" if number else folder
        places.append((photos, photos / ".class" if subject.class_photos else None))
    return places


def take_in(files: Iterable[Path], folder: Path) -> tuple[list[Photo], list[str]]:
    """Copies photos, with their captions and masks, into `folder`, which is emptied first.

    Returns the photos and a sentence for each file that cannot be used. Raises UserError, and nothing is left
    behind: no photo among them, too many files, or the disk is full.
    """
    files = list(files)
    if not files:
        raise UserError(NO_PHOTOS)
    if len(files) > MOST_FILES:
        raise UserError(f"{len(files)} files are too many: at most {MOST_FILES} are accepted. 3 to 5 are enough.")
    with _emptied(folder, "The photos cannot be copied: the disk is full, or the photos no longer exist."):
        for file in files:
            shutil.copyfile(file, folder / _free(folder, file.name))
        return find_photos(folder)


def take_in_encoded(images: Any, folder: Path) -> tuple[list[Photo], list[str]]:
    """As `take_in`, for the images of a REST request: base64 texts, or objects of "image" and perhaps "caption".

    Raises UserError.
    """
    if not isinstance(images, list) or not images:
        raise SettingsError('"photos" must be a list of images as base64 text.')
    if len(images) > MOST_FILES:
        raise SettingsError(f"There are too many photos: at most {MOST_FILES}.")
    store = ImageStore(folder).for_request(MOST_PIXELS)
    with _emptied(folder, "The photos cannot be stored: the disk is full or not writable."):
        for entry in images:
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
        raise UserError(sentence) from None
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _free(folder: Path, name: str) -> str:
    """A name that every system takes, with a number in front where there is such a file: two folders may have an
    IMG_1.jpg. What belongs together by its stem still does."""
    stem, _ = companion_of(name)
    name = as_file_name(stem, name[len(stem) :], "photo")
    number, free = 1, name
    while (folder / free).exists():
        number += 1
        free = f"{number}-{name}"
    return free


def caption_of(photo: Photo | None, settings: TrainingSettings) -> str:
    """The text for a photo, or with None for an image of the class.

    A photo without a caption file is "a [identifier] [class noun]", as in the paper. In a caption `{subject}`
    becomes identifier and noun. One that says neither that nor the identifier gets the identifier before the noun's
    first occurrence, or else the subject at its start.
    """
    if photo is None:
        return settings.class_prompt.strip() or f"a {settings.class_noun.strip()}"
    if not settings.captions or not photo.caption:
        return f"a {settings.subject}"
    return with_subject(photo.caption, settings)


def texts_of(photo: Photo, settings: TrainingSettings) -> list[str]:
    """The texts that a photo is learned with, equally often: its caption, and with `also_plain` the text without one.

    Captions that name place and background help the subject at new places, but without the plain text it is learned
    less well alone.
    """
    plain = f"a {settings.subject}"
    return list(dict.fromkeys([caption_of(photo, settings), *([plain] if settings.also_plain else [])]))


def with_subject(text: str, settings: TrainingSettings) -> str:
    """A text that names the subject, see `caption_of`. Done twice it changes nothing more."""
    if "{subject}" in text:
        return text.replace("{subject}", settings.subject)
    if settings.identifier.strip() and _word(settings.identifier).search(text):
        return text
    noun = _word(settings.class_noun).search(text)
    if noun is None:
        return f"{settings.subject}, {text}"
    return f"{text[: noun.start()]}{settings.identifier} {noun[0]}{text[noun.end() :]}" if settings.identifier else text


def _word(text: str) -> re.Pattern[str]:
    """The word or words of a text on their own, in either case, with any space between."""
    inner = r"\s+".join(re.escape(part) for part in text.split())
    return re.compile(rf"(?<!\w){inner}(?!\w)", re.IGNORECASE)
