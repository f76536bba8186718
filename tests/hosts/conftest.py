"""A small UNet for the adapters."""

from __future__ import annotations

import pytest

from tests.fabric.small_model import small_unet


@pytest.fixture
def unet(monkeypatch: pytest.MonkeyPatch):
    made = small_unet()
    monkeypatch.setattr("tests.hosts.doubles.call_unet", made)
    return made
