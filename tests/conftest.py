"""What holds for every test."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no failure: neither the time of one example nor that of making them; each run draws others
settings.register_profile("any machine", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# the libraries hold a million objects: looking through them as often as Python does takes a tenth of the tests' time
gc.set_threshold(20_000, 20, 20)

SERVED = ("tests/page/", "tests/api/")  # each has one server for all its files
# what takes longest comes first, so that no process works alone at the end
FIRST = (
    "tests/page/",
    "tests/standalone/jobs/test_pretended_device.py",
    "tests/dreambooth/training/",
    "tests/pix2pix_zero/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("browser"):  # a second try for what a busy machine held up; the summary counts it
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=lambda item: next((i for i, part in enumerate(FIRST) if item.nodeid.startswith(part)), len(FIRST)))


def pytest_collection_finish() -> None:
    gc.freeze()  # what the libraries hold stays; looking through it again would cost a third of a second each time


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A process runs a whole file at a time; of rooms with a server, all files."""
    from xdist.scheduler import LoadFileScheduling

    class Rooms(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((room for room in SERVED if nodeid.startswith(room)), nodeid.split("::", 1)[0])

    return Rooms(config, log)


@pytest.fixture(autouse=True)
def nobody_has_stopped() -> Iterator[None]:
    """A job that one test interrupted, or left half-way, is no interrupted job of the next."""
    yield
    state = getattr(sys.modules.get("modules.shared"), "state", None)
    if state is not None:
        state.interrupted = state.skipped = False
