"""The subjects of a training with their photos: one, several by the settings, or several by kohya's folder names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.photos.companions import kohya_folder, listed, subject_of
from lib_methods.dreambooth.photos.folder import Photo, find_photos
from lib_methods.dreambooth.photos.image import endings
from lib_methods.dreambooth.settings import Concept, TrainingSettings

_LONGEST = 40  # letters of a file's name in a sentence


@dataclass(frozen=True)
class Subject:
    """A concept and its photos. class_photos: own images of its class; empty where these are drawn, or not needed."""

    concept: Concept
    photos: Sequence[Photo]
    class_photos: Sequence[Photo] = ()


def find_subjects(settings: TrainingSettings) -> tuple[list[Subject], list[str]]:
    """The subjects that the settings ask for, the first one being the settings' own, and warnings.

    A folder `10_ohwx dog` inside `settings.photos` is a subject: how often each photo comes, rare word and class.
    Raises `DreamBoothError` where one has no photos, or where two have the same rare word.
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
    """Raises DreamBoothError where two subjects would be told apart by nothing."""
    given = [concept.identifier.casefold() for concept in concepts if concept.identifier]
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise DreamBoothError(f'Two subjects have the identifier "{twice[0]}". Give each one its own.')


def with_identifiers(subjects: Sequence[Subject], identifiers: Sequence[str]) -> list[Subject]:
    """The subjects with these rare words."""
    return [_replaced(subject, identifier=name) for subject, name in zip(subjects, identifiers, strict=True)]


def companions_told(subjects: Sequence[Subject], settings: TrainingSettings) -> list[str]:
    """Sentences about the captions and masks that a training uses, and its class images."""
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
        entries = sorted(folder.iterdir(), key=lambda entry: (entry.name.casefold(), entry.name))
    except OSError:
        return [own, *more]  # find_photos says what is wrong
    named = [(entry, found) for entry in entries if entry.is_dir() and (found := kohya_folder(entry.name))]
    loose = any(entry.suffix.lower() in endings() and entry.is_file() for entry in entries)
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
    if own.class_folder is not None and not one_class and not _has_kohya_folders(own.class_folder):
        concepts = [c if c.class_noun == own.class_noun else replace(c, class_folder=None) for c in concepts]
    return [*concepts, *more]


def _has_kohya_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() and kohya_folder(entry.name) for entry in folder.iterdir())


def _class_folders(concept: Concept, alone: bool, notes: list[str]) -> list[Path]:
    """Where a subject's own class images lie: its folder, or those of kohya's `1_dog` in it that are of its class.

    alone: it is the only subject, so that a single folder is its own whatever it is called.
    """
    folder = concept.class_folder
    if folder is None:
        return []
    try:
        inside = [(e, found[1]) for e in sorted(folder.iterdir()) if e.is_dir() and (found := kohya_folder(e.name))]
    except OSError:
        raise DreamBoothError("The folder of class images does not exist or cannot be read.") from None
    if not inside:
        return [folder]
    noun = concept.class_noun.casefold()
    of_class = [entry for entry, words in inside if words.replace("_", " ").casefold() in (noun, f"a {noun}")]
    if alone and len(inside) == 1:
        of_class = [inside[0][0]]
    if not of_class:
        notes.append(f'No folder of class images is named after "{concept.class_noun}", so its images are generated.')
    return of_class
