"""Fixtures: the WebUI with the pack, and the same without it, each started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .checkpoint import CheckpointUnusable
from .jobs import Runs
from .server import PACK_NAME, REPO, Installation, WebUI, WebUIUnavailable, serving, webui_root

PROBE = Path(__file__).resolve().parent / "probe"


@pytest.fixture(scope="session")
def webui_checkout() -> Path:
    """The real WebUI's source; no server."""
    try:
        return webui_root()
    except WebUIUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def installation(webui_checkout: Path) -> Installation:
    """What is needed to start the WebUI."""
    try:
        return Installation.from_environment()
    except WebUIUnavailable as reason:
        pytest.skip(str(reason))


def _serve(installation: Installation, data: Path, extensions: dict[str, Path]) -> Iterator[WebUI]:
    try:
        with serving(installation, data, extensions) as server:
            yield server
    except CheckpointUnusable as reason:
        pytest.fail(str(reason))


@pytest.fixture(scope="session")
def with_pack(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """A WebUI with this repository linked into its extensions."""
    yield from _serve(installation, tmp_path_factory.mktemp("webui-pack"), {PACK_NAME: REPO})


@pytest.fixture(scope="session")
def without_pack(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    """The same WebUI without the pack. It has the probe of `test_lifecycle.py`, which only writes down its calls."""
    yield from _serve(installation, tmp_path_factory.mktemp("webui-plain"), {"lifecycle-probe": PROBE})


@pytest.fixture(scope="session")
def runs() -> Runs:
    """First answers to requests, shared by all tests of the session."""
    return Runs()
