"""The standalone host with the pack's scripts and a tiny model that sees a picture (8 input channels)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.standalone.conftest import Running, checkpoints, start_host

REPO = Path(__file__).resolve().parents[2]

__all__ = ["checkpoints", "start_host"]


@pytest.fixture
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    """A host with a tiny InstructPix2Pix model that has loaded the pack; started again where a test took another."""
    return start_host(checkpoints("sd1", in_channels=8), extension_dirs=[REPO])


@pytest.fixture
def script(host: Running) -> ModuleType:
    """scripts/image_cfg.py as the host has loaded it."""
    from modules import scripts

    module: Any = next(data.module for data in scripts.scripts_data if Path(data.path).name == "image_cfg.py")
    return module
