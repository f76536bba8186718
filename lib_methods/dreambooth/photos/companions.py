"""A photo's mask and caption files, and what folders are named for."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

CAPTION_ENDINGS = (".txt", ".caption", ".json")
"""The first one that is there is taken."""
MASK_FOLDERS = ("mask", "masks", "masklabel", "masklabels")
_COMPANION = re.compile(
    r"(?P<stem>.+?)(?:[-_. ]+(?P<kind>masks?|masklabel|condlabel|alpha|matte|seg|segmentation)|\s*\((?P<other>mask)\))",
    re.IGNORECASE,
)
_KOHYA = re.compile(r"(?P<repeats>[0-9]{1,4})_(?P<words>\S.*)")


@dataclass(frozen=True)
class Companions:
    """photos: files that may be photos. masks, captions: by photo. alone: captions without a photo. conditions: images
    for another kind of training, and masks without a photo that can be nothing else. spare: further masks of a photo.
    """

    photos: tuple[Path, ...]
    masks: dict[Path, Path]
    captions: dict[Path, Path]
    alone: tuple[Path, ...]
    conditions: tuple[Path, ...]
    spare: tuple[Path, ...]


def sort_files(files: Sequence[Path], in_mask_folders: Sequence[Path] = ()) -> Companions:
    """What each file of a folder is. in_mask_folders: files of its folders called "mask" or so.

    `NAME.mask.png`, `NAME-mask.jpg`, `NAME_mask.webp`, `NAME-masklabel.png` and `mask/NAME.png` are masks of
    `NAME.jpg`, in any case, and so are `NAME_alpha.png`, `NAME_matte.png` and `NAME_seg.png`. `NAME-condlabel.png` is
    never a photo. A `gas-mask.png` is one where there is no `gas`.
    """
    images = [file for file in files if file.suffix.lower() not in CAPTION_ENDINGS]
    by_key: dict[str, list[Path]] = {}
    for file in images:
        for key in _keys(file.name):
            by_key.setdefault(key, []).append(file)
    masks: dict[Path, Path] = {}
    conditions: list[Path] = []
    spare: list[Path] = []
    used: set[Path] = set()
    for mask in images:
        stem, kind = companion_of(mask.name)
        if not kind:
            continue
        owners = [file for file in by_key.get(_key(stem), []) if file != mask]
        if kind == "condlabel" or (kind == "masklabel" and not owners):
            conditions.append(mask)
        elif owners:
            _give(masks, owners, mask, spare)
        else:
            continue
        used.add(mask)
    for mask in in_mask_folders:
        stem, kind = companion_of(mask.name)
        owners = by_key.get(_key(PurePath(mask.name).stem), []) or (by_key.get(_key(stem), []) if kind else [])
        owners = [file for file in owners if file not in used]
        if owners:
            _give(masks, owners, mask, spare)
        else:
            conditions.append(mask)
    photos = tuple(file for file in images if file not in used)
    masks = {photo: mask for photo, mask in masks.items() if photo in photos}
    captions, alone = _captions([file for file in files if file not in images], photos)
    return Companions(photos, masks, captions, tuple(alone), tuple(conditions), tuple(spare))


def companion_of(name: str) -> tuple[str, str]:
    """The stem of the photo that a file of this name is a mask of, and "mask", "masklabel", "condlabel" or the ending
    that may mean a mask, as "alpha"; the kind is "" for other files."""
    found = _COMPANION.fullmatch(PurePath(name).stem)
    if found is None:
        return PurePath(name).stem, ""
    kind = (found["kind"] or found["other"]).lower()
    return found["stem"], "mask" if kind == "masks" else kind


def kohya_folder(name: str) -> tuple[int, str] | None:
    """Repeats and words of a folder named as kohya's trainers want it, `10_ohwx dog`; None for another."""
    found = _KOHYA.fullmatch(name.strip())
    return (max(1, int(found["repeats"])), found["words"].strip()) if found else None


def class_of_folders(photos: Path) -> str:
    """The class that kohya's folder names tell, of `photos` itself or of the first one in it; "" where none does."""
    try:
        inside = sorted(entry.name for entry in photos.iterdir() if entry.is_dir())
    except OSError:
        return ""
    for name in (photos.name, *inside):
        named = kohya_folder(name)
        if named is not None and len(named[1].split()) > 1:
            return subject_of(named[1], "")[1]
    return ""


def subject_of(words: str, class_noun: str) -> tuple[str, str]:
    """Identifier and class noun of the words of kohya's folder name. class_noun: the one that the user gave, "" for
    none."""
    words = " ".join(words.replace("_", " ").split())
    noun = " ".join(class_noun.split())
    if noun and words.casefold() == noun.casefold():
        return "", noun
    if noun and words.casefold().endswith(f" {noun.casefold()}"):
        return words[: -len(noun) - 1], noun
    identifier, _, rest = words.partition(" ")
    return identifier, rest or noun


def without_companions(files: Sequence[Path]) -> list[Path]:
    """Those of the files that are meant as photos: neither captions nor masks."""
    return list(sort_files(files).photos)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    given = list(names)
    more = f" and {len(given) - most} more" if len(given) > most else ""
    return ", ".join(f'"{name}"' for name in given[:most]) + more


def _give(masks: dict[Path, Path], owners: Sequence[Path], mask: Path, spare: list[Path]) -> None:
    if all(owner in masks for owner in owners):
        spare.append(mask)
    for owner in owners:
        masks.setdefault(owner, mask)


def _captions(texts: Sequence[Path], photos: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """The caption file of each photo, and those that belong to none."""
    by_key: dict[str, dict[str, Path]] = {}
    for text in texts:
        by_key.setdefault(_key(text.stem), {}).setdefault(text.suffix.lower(), text)
    captions: dict[Path, Path] = {}
    served: set[Path] = set()
    for photo in photos:
        for key in _keys(photo.name):
            there = by_key.get(key, {})
            served.update(there.values())
            for ending in CAPTION_ENDINGS:
                if ending in there:
                    captions.setdefault(photo, there[ending])
    return captions, [text for text in texts if text not in served]


def _keys(name: str) -> Iterator[str]:
    """What a companion's stem may be: the photo's stem, and its whole name as in `dog.jpg.txt`."""
    yield _key(PurePath(name).stem)
    yield _key(name)


def _key(stem: str) -> str:
    # macOS decomposes accents, and Windows ignores case
    return unicodedata.normalize("NFC", stem).casefold().strip()


MAX_CAPTION_BYTES = 64 * 1024
_MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_FOREIGN = 0.4  # of the letters: Western languages have fewer with accents, other encodings nearly all
_JSON_KEYS = ("caption", "text", "prompt", "description", "tags")


def caption_text(data: bytes, *, json_file: bool = False) -> str | None:
    """The text of a caption file in UTF-8, UTF-16 or UTF-32 with or without a mark in front, or in Windows-1252: one
    line, no control characters, may be empty. json_file: an object with a caption, prompt or tags, or a list of tags.
    None where it cannot be read."""
    text = _decoded(data)
    if not json_file:
        return None if text is None else _one_line(text)
    try:
        content = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        content = next((content[key] for key in _JSON_KEYS if content.get(key)), "")
    if isinstance(content, list):
        content = ", ".join(tag for tag in content if isinstance(tag, str))
    return _one_line(content) if isinstance(content, str) else None


def _decoded(data: bytes) -> str | None:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if data and len(data) % 2 == 0 and data[first::2].count(0) > len(data) // 4:  # mostly Latin letters
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    letters = [letter for letter in text if not letter.isspace()]
    foreign = sum(not letter.isascii() for letter in letters)
    return None if foreign > _FOREIGN * len(letters) else text


def _one_line(text: str) -> str:
    plain = "".join(" " if unicodedata.category(letter) in _UNSEEN else letter for letter in text)
    return " ".join(plain.split())
