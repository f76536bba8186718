"""The LoRAs that prompts can name, as the WebUI's built-in extension lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter

from standalone.host import lora

from .errors import SafeJSONResponse

router = APIRouter(default_response_class=SafeJSONResponse)


@router.get("/sdapi/v1/loras")
def loras() -> list[dict[str, Any]]:
    """All LoRAs. `path` is within models/Lora: where that is on the server is nobody's business."""
    folder = lora.folder()
    return [
        {
            "name": lora.name,
            "alias": lora.alias,
            "path": Path(lora.filename).relative_to(folder.folder).as_posix(),
            "metadata": lora.metadata,
        }
        for lora in folder.all()
    ]


@router.post("/sdapi/v1/refresh-loras")
def refresh_loras() -> None:
    """Looks through the folder again."""
    lora.folder().refresh()
