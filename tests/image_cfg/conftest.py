"""The standalone host with the pack's scripts and a tiny model that sees an image (8 input channels)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.shared.jobs import REPO, loaded
from tests.standalone.conftest import Running, checkpoints, start_host

__all__ = ["checkpoints", "start_host"]


@pytest.fixture
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    """A host with a tiny InstructPix2Pix model that has loaded the pack; started again where a test took another."""
    return start_host(checkpoints("sd1", in_channels=8), extension_dirs=[REPO])


@pytest.fixture
def script(host: Running) -> ModuleType:
    """scripts/image_cfg.py as the host has loaded it."""
    return loaded("image_cfg.py")
