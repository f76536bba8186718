"""The standalone host with tiny models of every family, and with the pack and an attentive model for edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lib_methods.pix2pix_zero import apply
from tests.pix2pix_zero.jobs import left, speak_up
from tests.shared.jobs import REPO
from tests.standalone.conftest import Running, _settings_stay, checkpoints, start_host

__all__ = ["_settings_stay", "checkpoints", "start_host"]


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    """The pack's host with a model whose attention is uneven."""
    host = start_host(checkpoints("sd1", levels=1), extension_dirs=[REPO])
    speak_up()
    return host


@pytest.fixture
def clean(host: Running) -> Iterator[None]:
    """A separate cache for a test, and nothing on the model after it."""
    apply.CACHE.clear()
    yield
    assert left() == []
