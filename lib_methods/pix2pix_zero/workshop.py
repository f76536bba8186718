"""What can be done with the library of directions: build, combine, import, delete. Sentences in, sentences out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lib_methods.checks import SettingsError, check_choice
from lib_methods.pix2pix_zero.direction_files import load_direction, load_original, read_record
from lib_methods.pix2pix_zero.directions import Direction, DirectionError, Embedded, Origin
from lib_methods.pix2pix_zero.library import SEPARATORS, DirectionLibrary, clean_name, new_name
from lib_methods.pix2pix_zero.prompts import combined
from lib_methods.pix2pix_zero.sentences import KINDS, MAX_FILE_BYTES, OBJECT, PLACEHOLDER, parse_sentences
from lib_methods.pix2pix_zero.text_model import sentences_from_model
from lib_methods.pix2pix_zero.words import clean_word

Progress = Callable[[int, int], bool]
Sentences = tuple[Sequence[str], Sequence[str]]

WRITTEN = 100
"""Sentences about each word that a text model is asked for."""
BUILT_IN = "built-in"


class TextEncoder(Protocol):
    """The loaded model's, see `lib_methods.hosts.a1111.text`."""

    @property
    def clip_skip(self) -> int: ...
    @property
    def checkpoint(self) -> str: ...
    def embed(self, texts: Sequence[str]) -> Tensor | Embedded: ...


WithEncoder = Callable[[Callable[[TextEncoder], Direction]], Direction]


class Workshop:
    """The library, and what new directions are made with. Every method raises `SettingsError` with a sentence.

    encoder: gives a piece of work the loaded model's text encoder. text_models: a folder with a folder for each local
    language model; nothing outside of it is read.
    """

    def __init__(
        self, library: DirectionLibrary, encoder: WithEncoder, text_models: str | os.PathLike[str] | None = None
    ) -> None:
        self.library, self.encoder = library, encoder
        self._text_models = None if text_models is None else Path(text_models)

    def names(self) -> list[str]:
        """All directions, damaged ones, too."""
        return [entry.name for entry in self.library.list()]

    def text_models(self) -> list[str]:
        """The language models that may write sentences, by the names of their folders."""
        try:
            folders = sorted(Path(self._text_models or "").iterdir()) if self._text_models else []
        except OSError:
            return []
        return [folder.name for folder in folders if (folder / "config.json").is_file()]

    def build(
        self,
        name: object,
        source: str,
        target: str,
        kind: str = OBJECT,
        texts: tuple[str, str] = ("", ""),
        text_model: str = BUILT_IN,
        progress: Progress | None = None,
    ) -> str:
        """Make a direction from sentences about two words and keep it under `name`; returns the name.

        texts: the user's sentences about source and target, one a line. One text whose lines have "{word}" serves for
        both. Where they are empty, `text_model` writes them, or the built-in ones are taken.
        """
        clean = new_name(name)
        check_choice("What the words are", kind, KINDS)
        sentences = self._sentences(source, target, texts, text_model, progress)

        def make(encoder: TextEncoder) -> Direction:
            return self.library.build(
                clean,
                source,
                target,
                encoder.embed,
                kind=kind,
                sentences=sentences,
                clip_skip=encoder.clip_skip,
                model=encoder.checkpoint,
                progress=progress,
            )

        self.encoder(make)
        return clean

    def combine(self, name: object, recipe: object) -> str:
        """Keep the weighted sum "cat to dog: 1, day to night: -0.5" under `name`; returns the name. A single one with a
        weight scales it, a negative weight reverses it."""
        clean = new_name(name)
        if not isinstance(recipe, str) or not recipe.strip():
            raise DirectionError('Say which directions, such as "cat to dog: 1, day to night: -0.5".')
        if "|" in recipe:
            raise DirectionError("Combine one line of directions at a time, without bars.")
        return self.library.save(clean, combined(recipe, self.library))

    def bring_in(
        self, name: object, files: Sequence[str | os.PathLike[str]], words: tuple[str, str] | None = None
    ) -> str:
        """Keep what is in one `.safetensors` file of a direction, or in the two `.pt` files of the original project
        about source and target, under `name`; returns the name.

        Without a name, the file's own is taken. words: source and target of two `.pt` files; the files' names else.
        """
        if len(files) == 1 and _suffix(files[0]) == ".pt":
            raise DirectionError("The original's directions are pairs: add the .pt files of the source and the target.")
        if len(files) == 2 and all(_suffix(file) == ".pt" for file in files):
            direction = load_original(*files)
            if words is not None:
                direction = replace(direction, origin=Origin(clean_word(words[0]), clean_word(words[1])))
            own = f"{direction.origin.source} to {direction.origin.target}"
        elif len(files) == 1 and _suffix(files[0]) == ".safetensors":
            direction, own = load_direction(files[0]), read_record(files[0])[0] or Path(files[0]).stem
        else:
            raise DirectionError(
                "Add one .safetensors file of a direction, or two .pt files: the source's, the target's."
            )
        given = name if isinstance(name, str) and name.strip() else SEPARATORS.sub(" ", own)[:80]
        return self.library.save(new_name(given), direction)

    def delete(self, name: str) -> str:
        """Remove a direction; returns its name."""
        clean = clean_name(name)
        if not self.library.delete(clean):
            raise DirectionError(f'There is no direction "{clean}".')
        return clean

    def records(self) -> list[dict[str, Any]]:
        """All directions with what they were made from, as JSON."""
        return [
            {
                "name": entry.name,
                "damaged": entry.origin is None,
                "text_width": entry.text_width,
                **({} if entry.origin is None else vars(entry.origin)),
            }
            for entry in self.library.list()
        ]

    def record(self, name: str) -> str:
        """What a direction was made from, in a line; empty where there is none of that name."""
        for entry in self.library.list():
            if entry.name == name:
                return "Its file is damaged." if entry.origin is None else _told(entry.origin, entry.text_width or 0)
        return ""

    def _sentences(
        self, source: str, target: str, texts: tuple[str, str], text_model: str, progress: Progress | None
    ) -> Sentences | None:
        before, after = texts
        if len(before) + len(after) > MAX_FILE_BYTES:
            raise SettingsError("The sentences are too long: at most 1 MiB.")
        if before.strip() or after.strip():
            before, after = before if before.strip() else after, after if after.strip() else before
            if before == after and PLACEHOLDER not in before:
                raise SettingsError(
                    f"Write sentences about both words, or sentences with {PLACEHOLDER} in place of the word."
                )
            return parse_sentences(before, source), parse_sentences(after, target)
        if text_model in ("", BUILT_IN):
            return None
        if self._text_models is None or text_model not in self.text_models():
            raise SettingsError("There is no such text model. It must be a folder among the WebUI's text models.")
        folder = self._text_models / text_model
        return (
            sentences_from_model(folder, source, WRITTEN, progress=progress),
            sentences_from_model(folder, target, WRITTEN, progress=progress),
        )


def _told(origin: Origin, width: int) -> str:
    made = f"{origin.source} to {origin.target}, {origin.source_count} and {origin.target_count} sentences"
    return f"{made}, text width {width}, clip skip {origin.clip_skip}" + (f", {origin.model}" if origin.model else "")


def _suffix(file: str | os.PathLike[str]) -> str:
    return Path(file).suffix.casefold()
