"""A training's results go to where the host looks for them, and overwrite nothing there."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.files import write_whole
from lib_methods.jobs.files import JobFiles, load_record

_VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


def write_sidecar(
    result: Path,
    *,
    family: str,
    activation: str,
    description: str = "",
    weight: float = 0.0,
    notes: str = "",
    preview: Image.Image | None = None,
) -> list[Path]:
    """Writes the card of `result`; the files written.

    activation: what brings the subject into a prompt. weight: of the LoRA, 0 for the WebUI's own default. What a card
    of this name says besides (a negative text, a note where `notes` is empty) stays. Raises DreamBoothError when the
    disk is full; what was there before is then still there.
    """
    card = {
        **_card(result.with_suffix(".json")),
        "description": description,
        "sd version": _VERSIONS.get(family, "Unknown"),
        "activation text": activation,
        "preferred weight": weight,
    }
    if notes or "notes" not in card:
        card["notes"] = notes
    written = [write_whole(result.with_suffix(".json"), json.dumps(card, indent=4, ensure_ascii=False).encode("utf-8"))]
    if preview is not None:
        data = io.BytesIO()
        preview.convert("RGB").save(data, "PNG")
        written.append(write_whole(result.with_suffix(".preview.png"), data.getvalue()))
    return written


def _card(path: Path) -> dict[str, Any]:
    """The card that is there, empty when there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


SIDECARS = (".json", ".preview.png", ".png", ".yaml")


def deliver_to(folder_of: Callable[[str], Path]) -> Callable[[JobFiles, Mapping[str, Any], Sequence[str]], list[str]]:
    """What `Jobs` wants. folder_of: the host's folder for "LoRA" or "full"."""

    def deliver(files: JobFiles, settings: Mapping[str, Any], names: Sequence[str]) -> list[str]:
        return move_results(files, settings, names, folder_of(settings["kind"]))

    return deliver


def move_results(files: JobFiles, settings: Mapping[str, Any], names: Sequence[str], folder: Path) -> list[str]:
    """Moves the model, and what is called like it, into `folder`; returns the new names, the model's first.

    A checkpoint gets its base's `.yaml`, if there is one and the trainer made none: the WebUI tells by it what a model
    is. Raises DreamBoothError.
    """
    model = next((files.out / Path(name).name for name in names if name.endswith(".safetensors")), None)
    if model is None or not model.is_file():
        raise DreamBoothError("Training ended without a result. Its console file says why.")
    stem = model.name.removesuffix(".safetensors")
    before = load_record(files)
    own = before.result if before is not None else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = _free(folder, stem, own.removesuffix(".safetensors"))
        moved = []
        for ending in (".safetensors", *SIDECARS):
            source = files.out / f"{stem}{ending}"
            if source.is_file():
                _move(source, folder / f"{target}{ending}")
                moved.append(f"{target}{ending}")
        beside = Path(settings["base"]).with_suffix(".yaml")
        if settings["kind"] == "full" and f"{target}.yaml" not in moved and beside.is_file():
            shutil.copyfile(beside, folder / f"{target}.yaml")
            moved.append(f"{target}.yaml")
    except OSError as error:
        full = getattr(error, "errno", None) == 28
        reason = "the disk is full" if full else "its folder cannot be written"
        raise DreamBoothError(f"The result could not be moved to the WebUI's models: {reason}.") from None
    return moved


def _free(folder: Path, stem: str, own: str) -> str:
    """The stem, or with a number behind it where another model is called so. own: one that may be written over."""
    number, free = 1, stem
    while free != own and any((folder / f"{free}{ending}").exists() for ending in (".safetensors", ".ckpt", ".pt")):
        number += 1
        free = f"{stem}-{number}"
    return free


def _move(source: Path, target: Path) -> None:
    """Renames; onto another disk it is copied under another name first, so that nobody sees half of it."""
    try:
        os.replace(source, target)
    except OSError:
        part = target.with_name(target.name + ".part")
        try:
            shutil.copyfile(source, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        source.unlink()
