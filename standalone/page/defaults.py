"""Initial values of the page's controls: the loaded checkpoint's own sizes and settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lib_methods.files import read_json

NATIVE_SIZE = {"sd1": 512, "sd2": 768, "sdxl": 1024}


@dataclass(frozen=True)
class Defaults:
    """First values of the controls. A checkpoint may bring its own in NAME.defaults.json or defaults.json beside it."""

    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.0
    sampler_name: str = "Euler a"
    scheduler: str = "Automatic"
    prompt: str = ""
    negative_prompt: str = ""
    hint: str = ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    kinds = {field.name: type(field.default) for field in fields(Defaults)}
    good: dict[str, Any] = {}
    for name, value in found.items():
        kind = kinds.get(name)
        if kind is float and isinstance(value, (int, float)):
            good[name] = float(value)
        elif kind is not None and isinstance(value, kind):
            good[name] = value
    return good


def native_size(model: Any) -> int:
    """The width and height that the model's family was trained for."""
    family = "sdxl" if getattr(model, "is_sdxl", False) else "sd2" if getattr(model, "is_sd2", False) else "sd1"
    size = NATIVE_SIZE[family]
    return 512 if family == "sd2" and getattr(model, "parameterization", "eps") == "eps" else size


def for_checkpoint(model: Any) -> Defaults:
    """The defaults for a loaded model, from the file beside its checkpoint, else by its family."""
    size = native_size(model)
    values: dict[str, Any] = {"width": size, "height": size}
    info = getattr(model, "sd_checkpoint_info", None)
    if info is not None:
        path = Path(info.filename)
        beside = path.parent / f"{path.stem}.defaults.json"
        values |= _read(beside) or _read(path.parent / "defaults.json")
    return Defaults(**values)
