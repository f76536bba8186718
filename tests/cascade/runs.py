"""Small jobs with the tiny cascade, and how their images are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_methods.cascade.run import CascadeResult, run_cascade
from lib_methods.cascade.settings import CascadeRequest, CascadeSettings

CPU = torch.device("cpu")
Folders = tuple[Path, Path, Path]
FEW: dict[str, Any] = {"steps": 3, "stage2_steps": 3, "stage3_steps": 3}


def request(folders: Any, out: Path, **changes: Any) -> CascadeRequest:
    files = {name: changes.pop(name) for name in ("name", "image", "mask", "resume_from") if name in changes}
    settings = CascadeSettings(**{"prompt": "a photo of a cat", "seed": 5, "count": 2, **FEW, **changes})
    return CascadeRequest(tuple(folders), out, settings=settings, embeddings=out.parent / "texts", **files)


def run(asked: CascadeRequest, **options: Any) -> CascadeResult:
    return run_cascade(asked, say=lambda text: None, device=CPU, **options)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def assert_same(one: Path, other: Path) -> None:
    """The same image but for sums of another order, in another batch."""
    apart = abs(pixels(one) - pixels(other))
    assert apart.mean() < 0.5 and apart.max() <= 10
