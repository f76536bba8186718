"""What holds for every test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no failure: neither the time of one example nor that of making them
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def nobody_has_stopped() -> Iterator[None]:
    """A job that one test interrupted, or left half-way, is no interrupted job of the next."""
    yield
    state = getattr(sys.modules.get("modules.shared"), "state", None)
    if state is not None:
        state.interrupted = state.skipped = False
