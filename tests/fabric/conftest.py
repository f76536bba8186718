"""The standalone host with the pack's scripts and tiny models of every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.shared.jobs import REPO, loaded
from tests.standalone.conftest import Running, checkpoints, start_host

__all__ = ["checkpoints", "start_host"]


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    """A host with a tiny SD1 model that has loaded the pack."""
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


@pytest.fixture
def script(host: Running) -> ModuleType:
    """scripts/fabric.py as the host has loaded it."""
    return loaded("fabric.py")
