"""What the WebUI shows beside a model: a card's text in NAME.json and its picture in NAME.preview.png."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from .whole_file import write_whole

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
