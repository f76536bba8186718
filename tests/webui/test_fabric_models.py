"""FABRIC with models of other families in the real WebUI.

SD_WEBUI_MORE_CKPTS names small checkpoints of SD2, SDXL, inpainting or InstructPix2Pix models for AUTOMATIC1111's
WebUI, each with its `.yaml` beside it, separated as in PATH. The forks run those that `models` makes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .client import ApiError
from .jobs import CASES, Runs, generate
from .models import made
from .server import PACK_NAME, REPO, Installation, WebUI, serving
from .test_fabric import liked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"),
]
MORE: list[Path | str] = [Path(path) for path in os.environ.get("SD_WEBUI_MORE_CKPTS", "").split(os.pathsep) if path]
CHOSEN = ("txt2img, Euler a", "txt2img, DDIM", "batch of two", "Hires.fix", "img2img", "inpainting")


@pytest.fixture(scope="module", params=[*MORE, "sd1-inpainting"], ids=lambda given: getattr(given, "stem", given))
def model(
    request: pytest.FixtureRequest, installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebUI]:
    """A WebUI with the pack and another checkpoint."""
    is_made = isinstance(request.param, str)
    if is_made != installation.host.guesses:
        pytest.skip(f"{installation.host.title} is tested with other checkpoints: see SD_WEBUI_MORE_CKPTS")
    other = dataclasses.replace(installation, checkpoint=made(request.param) if is_made else request.param)
    with serving(other, tmp_path_factory.mktemp("webui-model"), {PACK_NAME: REPO}) as server:
        yield server


@pytest.mark.parametrize("case", [CASES[name] for name in CHOSEN], ids=CHOSEN)
def test_feedback_acts_and_repeats(model: WebUI, runs: Runs, case: dict[str, object]) -> None:
    try:
        off = runs.first(model, case)
    except ApiError as error:
        pytest.skip(f"the WebUI itself cannot do this with this model: {error}")
    before = len(model.log())
    on = runs.first(model, liked(case))
    assert model.errors(before) == []
    assert all("FABRIC likes" in text for text in on.infotexts)
    assert all(one != other for one, other in zip(off.pixels, on.pixels))
    assert generate(model, liked(case)).pixels == on.pixels
    assert generate(model, case).pixels == off.pixels
