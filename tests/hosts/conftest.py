"""A small UNet for the adapters, and the standalone host without the pack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fabric.small_model import small_unet
from tests.standalone.conftest import Running, _settings_stay, checkpoints, start_host

__all__ = ["_settings_stay", "checkpoints", "start_host"]


@pytest.fixture
def unet(monkeypatch: pytest.MonkeyPatch):
    made = small_unet()
    monkeypatch.setattr("tests.hosts.doubles.call_unet", made)
    return made


@pytest.fixture
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    """A host with a tiny SD1 model and no scripts."""
    return start_host(checkpoints("sd1", levels=1), extension_dirs=[])
