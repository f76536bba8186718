"""The REST routes: what they answer, and to whom."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib_methods.dreambooth.tab.handlers import PREFIX, TabHandlers, add_routes
from lib_methods.webui.door import Door, parse_accounts
from tests.dreambooth.models import picture
from tests.dreambooth.tab.test_tab import handlers  # noqa: F401 - a fixture
from tests.webui.client import encode_image


@pytest.fixture
def client(handlers: TabHandlers) -> TestClient:  # noqa: F811
    app = FastAPI()
    add_routes(app, handlers)
    return TestClient(app)


def photos() -> list[Any]:
    return [encode_image(picture(64, 48, 1)), {"image": encode_image(picture(64, 48, 2)), "caption": "a dog outside"}]


def test_from_start_to_use(client: TestClient, handlers: TabHandlers, tmp_path: Path) -> None:  # noqa: F811
    assert client.get(f"{PREFIX}/status").json()["training"] is None
    assert client.post(f"{PREFIX}/use").status_code == 422
    answer = client.post(f"{PREFIX}/start", json={"photos": photos(), "class_noun": "dog", "name": "rex", "steps": 40})
    assert (answer.status_code, answer.json()) == (200, {"name": "rex"})
    assert handlers.trainings.wait(300)
    status = client.get(f"{PREFIX}/status").json()
    assert status["training"]["status"] == "done"
    assert (status["running"], status["step"], len(status["losses"])) == (False, 40, 40)
    assert status["samples"] == [{"step": 20, "files": ["20.png"]}, {"step": 40, "files": ["40.png"]}]
    assert str(tmp_path) not in str(status)
    assert client.post(f"{PREFIX}/use").json() == {"prompt": "a ohwx dog <lora:rex:1>", "checkpoint": ""}


def test_concepts_and_own_class_images_come_as_pictures_and_never_as_places(
    client: TestClient,
    handlers: TabHandlers,  # noqa: F811
    tmp_path: Path,
) -> None:
    mug = {"photos": photos()[:1], "class_noun": "mug", "identifier": "olis", "class_photos": photos()[:1]}
    wanted = {"photos": photos(), "class_noun": "dog", "name": "rex", "class_photos": photos()[:1], "concepts": [mug]}
    plan = client.post(f"{PREFIX}/plan", json=wanted).json()
    assert plan["class_images"] == 0 and any("mug: 1 photo. Captions: none" in note for note in plan["notes"])
    assert client.post(f"{PREFIX}/start", json=wanted).status_code == 200
    assert handlers.trainings.wait(300)
    kept = sorted(
        str(f.parent.relative_to(tmp_path / "data" / "photos")) for f in tmp_path.rglob("photos/rex/**/*.png")
    )
    assert kept == ["rex", "rex", "rex/.2", "rex/.2/.class", "rex/.class"]
    for wrong in (
        {"concepts": [{"photos": str(tmp_path), "class_noun": "mug"}]},
        {"concepts": [{"photos": [str(tmp_path / "base.safetensors")], "class_noun": "mug"}]},
        {"concepts": [{"photos": photos(), "class_noun": "mug", "class_folder": str(tmp_path)}]},
        {"concepts": [{**mug, "identifier": "a"}, {**mug, "identifier": "A"}]},
        {"concepts": "mug"},
        {"concepts": [mug] * 11},
        {"class_photos": str(tmp_path)},
        {"continue_from": str(tmp_path / "base.safetensors")},
    ):
        answer = client.post(f"{PREFIX}/start", json={**wanted, "name": "max", **wrong})
        assert answer.status_code == 422 and str(tmp_path) not in answer.json()["detail"], wrong
    assert not (tmp_path / "data" / "photos" / "max").exists()


def test_cancel_and_resume(client: TestClient, handlers: TabHandlers) -> None:  # noqa: F811
    assert client.post(f"{PREFIX}/cancel").status_code == 422
    assert client.post(f"{PREFIX}/start", json={"photos": photos(), "class_noun": "slow thing"}).status_code == 200
    assert client.post(f"{PREFIX}/start", json={"photos": photos(), "class_noun": "dog"}).status_code == 422
    assert client.post(f"{PREFIX}/cancel").json() == {}
    assert handlers.trainings.wait(300)
    assert client.post(f"{PREFIX}/resume").json() == {}
    time.sleep(0.1)
    assert client.get(f"{PREFIX}/status").json()["running"]
    assert client.post(f"{PREFIX}/cancel").status_code == 200
    assert handlers.trainings.wait(300)


def test_a_plan_is_made_and_nothing_begun(client: TestClient, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    body = {"class_noun": "dog", "steps": 40, "kind": "full", "class_images": 7}
    answer = client.post(f"{PREFIX}/plan", json={**body, "photos": photos()})
    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["steps"], plan["prior"], plan["class_images"], plan["estimated"]) == (40, "images", 7, True)
    assert plan["bytes"] > 0 and plan["result_bytes"] > 0 and plan["seconds"] > 0 and plan["notes"]
    assert str(tmp_path) not in answer.text
    told, *notes = plan["notes"]
    assert told.startswith("2 photos. Captions: 1 of 2 (")
    assert client.post(f"{PREFIX}/plan", json={**body, "photos": 2}).json() == {**plan, "notes": notes}
    assert client.post(f"{PREFIX}/plan", json={"class_noun": "dog", "photos": 4}).json()["steps"] == 1000
    assert client.get(f"{PREFIX}/status").json()["training"] is None
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"photos": 0}, "number of photos"),
        ({"photos": 100000}, "number of photos"),
        ({"photos": True}, "list of images"),
        ({"photos": None}, "photos"),
        ({"class_noun": ""}, "what the subject is"),
        ({"base": "no such model"}, "no longer exists"),
        ({"memory": 0.01}, "are not enough"),
        ({"stepz": 1}, "stepz"),
        ({"name": "../x"}, "name"),
    ],
)
def test_a_plan_that_cannot_be_made_is_a_sentence(client: TestClient, fields: dict[str, Any], said: str) -> None:
    answer = client.post(f"{PREFIX}/plan", json={"class_noun": "dog", "photos": 4, **fields})
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"photos": "x", "class_noun": "dog"},
        {"photos": ["/etc/passwd"], "class_noun": "dog"},
        {"class_noun": "dog"},
        {"photos": [1], "class_noun": "dog"},
        {"photos": None},
        {"photos": ["x"], "class_noun": {"a": 1}},
        {"photos": ["x"], "class_noun": "dog", "out": "/tmp", "stepz": 1},
        [1],
    ],
)
def test_bad_requests_get_a_sentence(client: TestClient, handlers: TabHandlers, body: Any) -> None:  # noqa: F811
    for route in ("start", "plan"):
        answer = client.post(f"{PREFIX}/{route}", json=body)
        assert answer.status_code == 422
        assert answer.json()["detail"].endswith((".", "?"))
    assert not handlers.trainings.is_running


def test_places_are_not_taken_from_a_request(client: TestClient, handlers: TabHandlers, tmp_path: Path) -> None:  # noqa: F811
    body = {"photos": photos(), "class_noun": "dog", "out": str(tmp_path / "elsewhere"), "steps": 5}
    assert client.post(f"{PREFIX}/start", json=body).status_code == 200
    assert handlers.trainings.wait(300)
    assert not (tmp_path / "elsewhere").exists()


def test_no_json(client: TestClient) -> None:
    for route in ("start", "plan"):
        assert client.post(f"{PREFIX}/{route}", content=b"{").status_code == 422


def test_who_has_no_password_is_not_answered(handlers: TabHandlers) -> None:  # noqa: F811
    app = FastAPI()
    add_routes(app, handlers, Door(parse_accounts("ann:secret, bob:other")))
    client = TestClient(app)
    for header in ("", "Basic", "Basic !!!", "Bearer x", "Basic " + base64.b64encode(b"ann:wrong").decode()):
        for method, route in (
            ("GET", "status"),
            ("POST", "start"),
            ("POST", "plan"),
            ("POST", "cancel"),
            ("POST", "use"),
        ):
            answer = client.request(method, f"{PREFIX}/{route}", headers={"Authorization": header}, json={})
            assert answer.status_code == 401, (header, route)
    good = "Basic " + base64.b64encode(b"bob:other").decode()
    assert client.get(f"{PREFIX}/status", headers={"Authorization": good}).status_code == 200
