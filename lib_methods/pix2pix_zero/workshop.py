"""Actions on the library of directions, from the page and over HTTP: build, combine, import, delete.

`/pix2pix-zero/directions`: GET lists them. POST keeps one under "name", made from

- words: "source", "target", and if wished "words_are", "source_sentences" and "target_sentences" (a text with one
  sentence a line, or a list) or "text_model";
- others: "directions", "cat to dog: 1, day to night: -0.5";
- files as base64: "file", a .safetensors direction; or "source_file" and "target_file", the original project's .pt,
  with the words "source" and "target" for the record.

DELETE with "?name=" removes one. What cannot be used is answered with 422 and a sentence, an unknown name with 404.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lib_methods.checks import MAX_NAME, SettingsError, check_choice, refuse_unknown
from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero import library as files
from lib_methods.pix2pix_zero.directions import Direction, DirectionError, Embedded, Origin, make_direction
from lib_methods.pix2pix_zero.kinds import guess_kind
from lib_methods.pix2pix_zero.library import (
    SEPARATORS,
    DirectionLibrary,
    combined,
    load_direction,
    load_original,
    new_name,
    read_record,
)
from lib_methods.pix2pix_zero.sentences import (
    KINDS,
    MAX_FILE_BYTES,
    PLACEHOLDER,
    built_in_sentences,
    parse_sentences,
    sentences_from_model,
)
from lib_methods.pix2pix_zero.settings import AUTO, CONTROLS
from lib_methods.pix2pix_zero.words import clean_word
from lib_methods.webui.door import Door, guarded_router

WRITTEN = 100
"""Sentences about each word that a text model has to write."""
BUILT_IN = "built-in"

PATH = "/pix2pix-zero/directions"
_WORDS = ("source", "target", "words_are", "source_sentences", "target_sentences", "text_model")
_DEFAULTS = {"source": "", "target": "", "words_are": AUTO, "text_model": BUILT_IN}
_FILES = ("file", "source_file", "target_file")
_FIELDS = ("name", "directions", *_WORDS, *_FILES)


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
        return list(self.library.names())

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
        kind: str = AUTO,
        texts: tuple[str, str] = ("", ""),
        text_model: str = BUILT_IN,
    ) -> str:
        """Make a direction from sentences about two words and keep it under `name`; returns the name.

        texts: the user's sentences about source and target, one a line. One text whose lines have "{word}" serves for
        both. Where they are empty, `text_model` writes them, or the built-in ones are taken.
        """
        clean = new_name(name)
        check_choice("What the words are", kind, (AUTO, *KINDS))
        kind = guess_kind([str(source), str(target)]) if kind == AUTO else kind
        before, after = self._sentences(source, target, kind, texts, text_model)

        def make(encoder: TextEncoder) -> Direction:
            record: dict[str, Any] = {"clip_skip": encoder.clip_skip, "model": encoder.checkpoint}
            return make_direction(source, target, before, after, encoder.embed, **record)

        return self.library.save(clean, self.encoder(make))

    def combine(self, name: object, recipe: object) -> str:
        """Keep the weighted sum "cat to dog: 1, day to night: -0.5" under `name`; returns the name. A single one with a
        weight scales it, a negative weight reverses it."""
        clean = new_name(name)
        if not isinstance(recipe, str) or not recipe.strip():
            raise DirectionError('Name the directions, such as "cat to dog: 1, day to night: -0.5".')
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
        kinds = [Path(file).suffix.casefold() for file in files]
        if kinds == [".pt"]:
            raise DirectionError("The original's directions are pairs: add the .pt files of the source and the target.")
        if kinds == [".pt", ".pt"]:
            direction = load_original(*files)
            if words is not None:
                direction = replace(direction, origin=Origin(clean_word(words[0]), clean_word(words[1])))
            own = f"{direction.origin.source} to {direction.origin.target}"
        elif kinds == [".safetensors"]:
            direction, own = load_direction(files[0]), read_record(files[0])[0] or Path(files[0]).stem
        else:
            raise DirectionError(
                "Add one .safetensors file of a direction, or two .pt files: the source's, the target's."
            )
        given = name if isinstance(name, str) and name.strip() else SEPARATORS.sub(" ", own)[:80]
        return self.library.save(new_name(given), direction)

    def delete(self, name: str) -> str:
        """Remove a direction; returns its name."""
        clean = self.library.clean_name(name)
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
        entry = next((entry for entry in self.library.list() if entry.name == name), None)
        if entry is None:
            return ""
        if (origin := entry.origin) is None:
            return "Its file is damaged."
        counts = f"{origin.source_count} and {origin.target_count} sentences"
        made = f"{origin.source} to {origin.target}, {counts}, text width {entry.text_width}"
        return f"{made}, clip skip {origin.clip_skip}" + (f", {origin.model}" if origin.model else "")

    def _sentences(
        self, source: str, target: str, kind: str, texts: tuple[str, str], text_model: str
    ) -> tuple[Sequence[str], Sequence[str]]:
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
            return built_in_sentences(source, kind), built_in_sentences(target, kind)
        if self._text_models is None or text_model not in self.text_models():
            raise SettingsError("There is no such text model. It must be a folder among the WebUI's text models.")
        folder = self._text_models / text_model
        return sentences_from_model(folder, source, WRITTEN), sentences_from_model(folder, target, WRITTEN)


def add_routes(app: Any, workshop: Workshop, door: Door | None = None) -> None:
    """Add the routes to the host's FastAPI application. door: whom they answer."""
    from fastapi import Body, HTTPException

    json_object = Body(...)
    router = guarded_router(door or Door())

    def refused(error: Exception, status: int = 422) -> HTTPException:
        return HTTPException(status, f"{CONTROLS.title}: {error}")

    def listed() -> list[dict[str, Any]]:
        return workshop.records()

    def keep(fields: dict[str, Any] = json_object) -> dict[str, Any]:
        try:
            name = _made(workshop, fields)
        except (SettingsError, Unsupported) as error:
            raise refused(error) from None
        return next((record for record in workshop.records() if record["name"] == name), {"name": name})

    def delete(name: str) -> dict[str, Any]:
        try:
            if name.strip() not in workshop.names():
                raise refused(DirectionError(f'There is no direction "{name[:MAX_NAME]}".'), 404)
            return {"name": workshop.delete(name)}
        except SettingsError as error:
            raise refused(error) from None

    for method, endpoint in (("GET", listed), ("POST", keep), ("DELETE", delete)):
        router.add_api_route(PATH, endpoint, methods=[method])
    app.include_router(router)


def _made(workshop: Workshop, fields: Mapping[str, Any]) -> str:
    """Make the direction that a request asks for; returns its name. Raises `SettingsError` with a sentence."""
    refuse_unknown(fields, _FIELDS, "A direction has")
    given = {name: value for name, value in fields.items() if value is not None}
    words = [given.get(field, default) for field, default in _DEFAULTS.items()]
    if not all(isinstance(word, str) for word in words):
        raise SettingsError(f"These fields must be text: {', '.join(_DEFAULTS)}.")
    source, target, kind, text_model = words
    name, files = given.get("name", ""), given.keys() & set(_FILES)
    if ("directions" in given and len(given) > 2) or (files and given.keys() & set(_WORDS[2:])):
        raise SettingsError('Make a direction from "source" and "target", from "directions", or from files.')
    if files:
        both = (source, target) if source or target else None
        return _from_files(workshop, name, {field: given[field] for field in files}, both)
    if "directions" in given:
        return workshop.combine(name, given["directions"])
    texts = _sentences(given.get("source_sentences", "")), _sentences(given.get("target_sentences", ""))
    return workshop.build(name, source, target, kind, texts, text_model)


def _sentences(value: Any) -> str:
    """A text or a list of texts as one text with a sentence a line."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(" ".join(line.split()) for line in value)
    if not isinstance(value, str):
        raise SettingsError("Sentences must be text, one per line, or a list of texts.")
    return value


def _from_files(workshop: Workshop, name: Any, given: Mapping[str, Any], words: tuple[str, str] | None) -> str:
    wanted: dict[str, str] = {"file": "direction.safetensors"}
    if "file" not in given:
        wanted = {"source_file": "source.pt", "target_file": "target.pt"}
    if set(given) != set(wanted):
        raise SettingsError('Send "file", a .safetensors direction; or "source_file" and "target_file", two .pt files.')
    with tempfile.TemporaryDirectory(prefix="direction-") as folder:
        paths = []
        for field, file in wanted.items():
            if not isinstance(given[field], str):
                raise SettingsError(f'"{field}" must be the file as base64.')
            if len(given[field]) > files.MAX_FILE_BYTES * 4 // 3 + 1024:
                raise SettingsError("The file is too large for a direction.")
            try:
                content = base64.b64decode(given[field].rpartition(",")[2], validate=True)
            except (ValueError, binascii.Error):
                raise SettingsError(f'"{field}" is not valid base64.') from None
            paths.append(Path(folder) / file)
            paths[-1].write_bytes(content)
        return workshop.bring_in(name, paths, words if len(paths) > 1 else None)
