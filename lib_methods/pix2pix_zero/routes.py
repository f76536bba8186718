"""The library of directions over HTTP: `/pix2pix-zero/directions`.

GET lists them. POST keeps one under "name", made from

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
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.direction_files import MAX_FILE_BYTES
from lib_methods.pix2pix_zero.directions import DirectionError
from lib_methods.pix2pix_zero.sentences import OBJECT
from lib_methods.pix2pix_zero.settings import CONTROLS
from lib_methods.pix2pix_zero.workshop import BUILT_IN, Workshop
from lib_methods.webui.door import Door, guarded_router
from lib_methods.webui.names import MAX_NAME
from lib_methods.webui.table import refuse_unknown

PATH = "/pix2pix-zero/directions"
_WORDS = ("source", "target", "words_are", "source_sentences", "target_sentences", "text_model")
_FILES = ("file", "source_file", "target_file")
_FIELDS = ("name", "directions", *_WORDS, *_FILES)


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
            name = make(workshop, fields)
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


def make(workshop: Workshop, fields: Mapping[str, Any]) -> str:
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


_DEFAULTS = {"source": "", "target": "", "words_are": OBJECT, "text_model": BUILT_IN}


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
            paths.append(Path(folder) / file)
            paths[-1].write_bytes(_decoded(field, given[field]))
        return workshop.bring_in(name, paths, words if len(paths) > 1 else None)


def _decoded(field: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise SettingsError(f'"{field}" must be the file as base64.')
    if len(value) > MAX_FILE_BYTES * 4 // 3 + 1024:
        raise SettingsError("The file is too large for a direction.")
    try:
        return base64.b64decode(value.rpartition(",")[2], validate=True)
    except (ValueError, binascii.Error):
        raise SettingsError(f'"{field}" is not valid base64.') from None
