"""Fixtures: each WebUI that the environment names, with the pack and without it, each started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.webui.checkpoint import CheckpointUnusable
from tests.webui.hosts import A1111, HOSTS, Host, WebUIUnavailable, chosen
from tests.webui.jobs import Runs
from tests.webui.server import PACK_NAME, REPO, Installation, WebUI, serving

PROBE = Path(__file__).resolve().parent / "probe"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what a host cannot do, before it is started."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        host = callspec and callspec.params.get("installation")
        if isinstance(host, Host) and (reason := host.why_not(f"{item.path.name}::{item.name}")):
            item.add_marker(pytest.mark.skip(f"{host.title}: {reason}"))


@pytest.fixture(scope="session")
def webui_checkout() -> Path:
    """The source of AUTOMATIC1111's WebUI; no server."""
    try:
        return A1111.root()
    except WebUIUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session", params=chosen() or (None,), ids=lambda host: getattr(host, "title", "no WebUI"))
def installation(request: pytest.FixtureRequest) -> Installation:
    """What is needed to start a WebUI."""
    if request.param is None:
        pytest.skip(f"none of {', '.join(f'SD_{host.variable}_DIR' for host in HOSTS)} names a WebUI")
    try:
        return Installation.of(request.param)
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
