"""The WebUI starts with the pack in its extensions, and knows it."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.webui.server import PACK_NAME, REPO, Installation, WebUI

SMALL = {"prompt": "a red circle", "seed": 1, "steps": 2, "width": 128, "height": 128, "sampler_name": "Euler a"}
needs_fabric = pytest.mark.skipif(
    not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"
)


def test_host_starts_without_an_error(with_pack: WebUI) -> None:
    assert with_pack.errors() == []
    assert [path.name for path in (with_pack.data / "extensions").iterdir()] == [PACK_NAME]


@needs_fabric
@pytest.mark.parametrize("is_img2img", [False, True])
def test_fabric_is_listed_as_always_on(with_pack: WebUI, is_img2img: bool) -> None:
    found = [
        s
        for s in with_pack.client.get("/sdapi/v1/script-info")
        if s["name"] == "steer fabric" and s["is_img2img"] == is_img2img
    ]
    assert len(found) == 1
    assert found[0]["is_alwayson"]
    assert found[0]["args"], "the API shows no argument"


def test_host_generates_with_the_pack_loaded(with_pack: WebUI) -> None:
    result = with_pack.client.generate(SMALL)
    assert [image.size for image in result.images] == [(128, 128)]
    assert len(set(result.pixels[0])) > 1, "one flat colour: the model is broken"
    assert with_pack.errors() == []


def test_page_is_served_with_the_pack(with_pack: WebUI) -> None:
    """The page's configuration is built from every script's controls: a broken one leaves no page."""
    labels = str(with_pack.client.get("/config"))
    assert "txt2img" in labels
    if (REPO / "scripts" / "fabric.py").is_file():
        assert "FABRIC" in labels


def test_the_installer_changes_no_package_of_the_host(installation: Installation) -> None:
    """Runs install.py as the WebUI does at start, and compares the installed packages."""
    installer = REPO / "install.py"
    if not installer.is_file():
        pytest.skip("the pack has no install.py")
    env = {**os.environ, "PYTHONPATH": str(installation.root)}
    listing = [str(installation.python), "-m", "pip", "freeze", "--all"]
    before = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    command = [str(installation.python), str(installer)]
    done = subprocess.run(
        command, cwd=installation.root, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert subprocess.run(listing, capture_output=True, text=True, check=True).stdout == before
