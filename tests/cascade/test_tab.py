"""The tab's handlers and the REST routes: from a prompt to upscaled images, found again by a new page; bad input is a
sentence."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from lib_methods.cascade.candidate import Candidate, read_candidate
from lib_methods.cascade.settings import CONTROLS, CascadeSettings
from lib_methods.cascade.tab.handlers import PREFIX, TabHandlers, add_routes
from lib_methods.cascade.tab.page import NAMES, build_tab
from lib_methods.errors import UserError
from lib_methods.jobs.files import CASCADE
from lib_methods.jobs.job import Jobs
from lib_methods.webui.door import Door, parse_accounts
from standalone import ROOT
from tests.dreambooth.tab.test_tab import Room
from tests.webui.client import encode_image

FAKE = ROOT / "tests" / "cascade" / "fake_cascade.py"
LATER = {"stage2_prompt": "an oil painting of {subject}", "last_stage": 2}


@pytest.fixture
def handlers(folders: tuple[Path, Path, Path], tmp_path: Path) -> TabHandlers:
    """Jobs whose process makes grey images."""
    jobs = Jobs(tmp_path / "cascade", Room(), lambda files, settings, names: list(names), CASCADE, worker=FAKE)
    return TabHandlers(jobs, lambda: [folders[0].parent])


@pytest.fixture
def client(handlers: TabHandlers) -> TestClient:
    app = FastAPI()
    add_routes(app, handlers)
    return TestClient(app)


def values(**changed: Any) -> list[Any]:
    """The controls as they are on a new page, with some changed."""
    return [{**CONTROLS.defaults, **changed}[name] for name in NAMES]


def ticks(sheet: str) -> list[str]:
    return [html.unescape(name) for name in re.findall(r'steer-cascade-tick" value="([^"]+)"', sheet)]


def generate(handlers: TabHandlers, image: Any = None, mask: Any = None, **changed: Any) -> list[Any]:
    """Presses Generate and waits; what a new page shows then."""
    line = handlers.generate(
        handlers.stages(), "", image, mask, *values(**{"prompt": "a red cat", "count": 3, **changed})
    )
    assert "alert" not in line[0], line[0]
    assert handlers.jobs.wait(300)
    return handlers.look("")


def test_candidates_are_ticked_and_upscaled_and_a_new_page_shows_both(handlers: TabHandlers) -> None:
    panel, sheet, *_ = generate(handlers)
    assert "is done" in panel
    names = ticks(sheet)
    assert names == [f"a-red-cat/00{number}-stage1.png" for number in range(3)]
    chosen = [names[0], names[2]]
    line = handlers.upscale("\n".join(chosen), handlers.stages(), "", *values(prompt="something else by now", **LATER))
    assert "alert" not in line[0], line[0]
    assert handlers.jobs.wait(300)
    panel, sheet, *_ = handlers.look("")
    upscaled = ["a-red-cat-up/000-stage2.png", "a-red-cat-up/001-stage2.png"]
    assert ticks(sheet) == [*upscaled, *names], "the candidates stay to choose from"
    settings = read_candidate(handlers.image_file(upscaled[1])).settings
    assert settings.stage(2).prompt == "an oil painting of a red cat", "its own prompt, and the new style"
    _, parcel = handlers.send(upscaled[0])
    sent = json.loads(parcel)
    assert sent["prompt"] == "a red cat"
    image = Image.open(io.BytesIO(base64.b64decode(sent["images"][0].partition(",")[2])))
    assert image.info["parameters"].startswith("a red cat")


def test_the_look_says_nothing_new_where_nothing_is(handlers: TabHandlers) -> None:
    *_, seen = handlers.look("")
    assert handlers.look(seen)[-1] != seen, "an update without a value"
    *_, seen = generate(handlers)
    assert "value" not in handlers.look(seen)[0]


def test_the_order_in_which_folders_are_chosen_is_all_one(handlers: TabHandlers) -> None:
    found, cascade = handlers._folders(handlers.stages()[::-1])
    assert [folder.name for folder in found] == ["IF-I", "IF-II", "x4-upscaler"]
    assert [stage.number for stage in cascade.stages] == [1, 2, 3]


def test_where_none_is_chosen_those_of_the_first_place_are_meant(handlers: TabHandlers, tmp_path: Path) -> None:
    (own,) = handlers.places()
    (tmp_path / "pack" / "other" / "unet").mkdir(parents=True)
    (tmp_path / "pack" / "other" / "unet" / "config.json").write_text("{}")
    handlers.places = lambda: [tmp_path / "none", own, tmp_path / "pack"]
    assert [folder.name for folder in handlers._folders([])[0]] == handlers.usual() == ["IF-I", "IF-II", "x4-upscaler"]
    assert handlers.stages() == [*handlers.usual(), "other"]
    assert handlers.refreshed([])["value"] == handlers.usual()
    handlers.places = lambda: [own]
    assert handlers.refreshed(["IF-I"])["value"] == ["IF-I"]
    generate(handlers)
    handlers.places = lambda: []
    with pytest.raises(UserError, match="no stages of a cascade yet"):
        handlers.begin({"prompt": "a", "stages": []})
    handlers.begin({"resume_from": ["a-red-cat/000-stage1.png"]})  # the candidates' own
    assert handlers.jobs.wait(300)


def test_a_path_is_taken_only_where_paths_may_be_named(handlers: TabHandlers) -> None:
    (place,) = handlers.places()
    with pytest.raises(UserError, match="in models/cascade"):
        handlers._folders([str(place / "IF-II")])
    handlers.paths = True
    assert handlers._folders([str(place / "IF-II")])[0] == [place / "IF-II"]


def test_paths_in_their_own_box_replace_the_list(handlers: TabHandlers) -> None:
    (place,) = handlers.places()
    handlers.paths, typed = True, f' "{place / "IF-I"}"\n\n{place / "IF-II"}\n'
    handlers.generate(["gone"], typed, None, None, *values(prompt="a red cat"))
    assert handlers.jobs.wait(300)
    request = json.loads(handlers.jobs.files("a-red-cat").settings.read_text("utf-8"))
    assert request["folders"] == [str(place / "IF-I"), str(place / "IF-II")]


def test_a_result_of_dreambooth_is_chosen_with_its_prompt(handlers: TabHandlers) -> None:
    stages, paths, prompt, line = handlers.take(json.dumps({"prompt": "a ohwx dog", "cascade": "IF-I"}))
    assert (stages["value"], paths, prompt) == (["IF-I"], "", "a ohwx dog") and "IF-I is chosen" in line


def test_an_image_and_its_mask_go_along(handlers: TabHandlers) -> None:
    generate(handlers, Image.new("RGB", (40, 24), "red"), Image.new("L", (40, 24), 255))
    request = json.loads(handlers.jobs.files("a-red-cat").settings.read_text("utf-8"))
    assert Image.open(request["image"]).size == Image.open(request["mask"]).size == (40, 24)
    handlers.upscale("a-red-cat/000-stage1.png", handlers.stages(), "", *values(**LATER))
    assert handlers.jobs.wait(300)
    later = json.loads(handlers.jobs.files("a-red-cat-up").settings.read_text("utf-8"))
    assert [later[key] for key in ("image", "mask")] == [request[key] for key in ("image", "mask")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": " "}, "Write a prompt first"),
        ({"stages": ["/etc"]}, 'no folder "/etc" in models/cascade'),
        ({"stages": "IF-I"}, "must be a list"),
        ({"guidance": 500}, "Guidance scale must be"),
        ({"width": 20}, "multiple of 8"),
        ({"promptt": "a"}, "promptt"),
        ({"out": "/tmp"}, "out"),
        ({"image": "/etc/passwd"}, "image"),
        ({"image": 5}, "base64"),
        ({"resume_from": "a"}, "must be a list"),
        ({"resume_from": ["../../etc/passwd"]}, "names such as"),
        ({"resume_from": ["gone/000-stage1.png"]}, "no longer there"),
    ],
)
def test_bad_requests_get_a_sentence(client: TestClient, handlers: TabHandlers, fields: Any, said: str) -> None:
    answer = client.post(f"{PREFIX}/start", json={"prompt": "a", "stages": handlers.stages(), **fields})
    assert answer.status_code == 422
    assert said in answer.json()["detail"] and answer.json()["detail"].endswith((".", "?"))
    assert client.get(f"{PREFIX}/status").json()["job"] is None


def test_programs_start_look_and_fetch(client: TestClient, handlers: TabHandlers, tmp_path: Path) -> None:
    assert client.get(f"{PREFIX}/images").json() == {"images": []}
    body = {"prompt": "a dog", "stages": client.get(f"{PREFIX}/stages").json()["stages"], "count": 2, "last_stage": 1}
    body |= {"image": encode_image(Image.new("RGB", (8, 8)))}
    assert client.post(f"{PREFIX}/start", json=body).json() == {"name": "a-dog"}
    assert handlers.jobs.wait(300)
    status = client.get(f"{PREFIX}/status").json()
    assert (status["job"]["status"], status["running"], status["stage"]) == ("done", False, 1)
    found = client.get(f"{PREFIX}/images", params={"run": "a-dog"}).json()["images"]
    assert [image["stage"] for image in found] == [1, 1] and found[0]["info"].startswith("a dog\n")
    answer = client.get(f"{PREFIX}/image", params={"name": found[1]["name"]}).json()
    assert base64.b64decode(answer["image"]).startswith(b"\x89PNG")
    assert str(tmp_path) not in f"{status}{found}"
    assert client.get(f"{PREFIX}/images", params={"run": "none"}).status_code == 422
    assert client.get(f"{PREFIX}/image", params={"name": "a-dog/../../x"}).status_code == 422


def test_cancel_and_resume(client: TestClient, handlers: TabHandlers) -> None:
    assert client.post(f"{PREFIX}/cancel").status_code == 422
    body = {"prompt": "slow", "stages": handlers.stages(), "last_stage": 1}
    client.post(f"{PREFIX}/start", json=body)
    again = client.post(f"{PREFIX}/start", json=body)
    assert again.status_code == 422 and "already running" in again.json()["detail"]
    assert client.post(f"{PREFIX}/cancel").status_code == 200
    assert handlers.jobs.wait(300)
    assert client.get(f"{PREFIX}/status").json()["job"]["status"] == "cancelled"
    assert client.post(f"{PREFIX}/resume").json() == {}
    assert handlers.jobs.wait(300)
    assert client.get(f"{PREFIX}/status").json()["job"]["status"] == "done"


def test_the_routes_ask_for_the_hosts_login(handlers: TabHandlers) -> None:
    app = FastAPI()
    add_routes(app, handlers, Door(parse_accounts("ann:secret")))
    client = TestClient(app)
    assert client.get(f"{PREFIX}/status").status_code == 401
    assert client.get(f"{PREFIX}/status", auth=("ann", "secret")).status_code == 200
    foreign = {"origin": "https://elsewhere.example"}
    assert client.post(f"{PREFIX}/cancel", headers=foreign, auth=("ann", "secret")).status_code == 403


def test_images_of_different_stages_are_not_upscaled_together(handlers: TabHandlers) -> None:
    folder = handlers.jobs.files("mixed").folder
    folder.mkdir(parents=True)
    for stage in (1, 2):
        made = Candidate(Image.new("RGB", (8, 8)), stage, CascadeSettings(prompt="a", seed=1))
        made.save(folder / f"000-stage{stage}.png")
    with pytest.raises(UserError, match="different stages"):
        handlers.begin({"stages": handlers.stages(), "resume_from": [f"mixed/000-stage{n}.png" for n in (1, 2)]})


def test_the_tab_is_built(handlers: TabHandlers) -> None:
    import gradio as gr

    assert build_tab(handlers, gr.Button).blocks
