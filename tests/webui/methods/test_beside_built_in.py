"""Our methods beside what the forks have built in, in the same job."""

from __future__ import annotations

from typing import Any

import pytest

from tests.webui.client import JSON
from tests.webui.jobs import BASE, CASES, Runs, feedback, with_fabric
from tests.webui.methods.test_guidance import TITLE, on
from tests.webui.server import REPO, WebUI

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_error_is_logged"),
    pytest.mark.skipif(not (REPO / "scripts" / "fabric.py").is_file(), reason="scripts/fabric.py is not there"),
]
CASE: JSON = {**BASE, "cfg_scale": 9}
TILES = {"Tile Width": 64, "Tile Height": 64, "Tile Overlap": 16}


def built_in(server: WebUI, start: str, payload: JSON, **fields: Any) -> JSON:
    """`payload` with the host's own script switched on, whose title starts with `start`; fields: by their labels."""
    every = server.client.get("/sdapi/v1/script-info")
    tab = [s for s in every if s["is_img2img"] == ("init_images" in payload)]
    found = next((s for s in tab if s["name"].replace(" ", "").startswith(start)), None)
    if found is None:
        pytest.skip("this WebUI has no such script")
    values = [fields.get(argument["label"], argument["value"]) for argument in found["args"]]
    scripts = {**payload.get("alwayson_scripts", {}), found["name"]: {"args": [True, *values[1:]]}}
    return {**payload, "alwayson_scripts": scripts}


@pytest.mark.parametrize(
    ("script", "case"),
    [
        ("multidiffusion", CASE),
        ("multidiffusion", CASES["img2img"]),
        *((name, CASE) for name in ("selfattention", "perturbedattention", "freeu", "dynamicthres")),
    ],
)
def test_fabric_acts_beside(with_pack: WebUI, runs: Runs, script: str, case: JSON) -> None:
    plain = built_in(with_pack, script, case, **TILES)
    asked = with_fabric(case, likes=feedback("red"), dislikes=feedback("blue"))
    made = runs.first(with_pack, built_in(with_pack, script, asked, **TILES))
    assert "FABRIC likes: " in made.infotexts[0]
    assert made.pixels != runs.first(with_pack, plain).pixels


def test_fabric_that_no_layer_can_read_is_not_listed(with_pack: WebUI, runs: Runs) -> None:
    """StyleAlign does the attention of every layer by itself."""
    plain = built_in(with_pack, "stylealign", CASE)
    made = runs.first(with_pack, built_in(with_pack, "stylealign", with_fabric(CASE, likes=feedback("red"))))
    assert "FABRIC error: None of the " in made.infotexts[0]
    assert "FABRIC likes" not in made.infotexts[0]
    assert made.pixels == runs.first(with_pack, plain).pixels


def test_of_two_boxes_for_thresholding_ours_steps_back(with_pack: WebUI, runs: Runs) -> None:
    theirs = runs.first(with_pack, built_in(with_pack, "dynamicthres", CASE))
    both = runs.first(with_pack, built_in(with_pack, "dynamicthres", on(CASE)))
    assert f"{TITLE} error: " in both.infotexts[0]
    assert f"{TITLE} skimming scale" not in both.infotexts[0]
    assert both.pixels == theirs.pixels
