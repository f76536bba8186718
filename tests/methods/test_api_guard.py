"""Requests that a script cannot use are answered with 422 and a sentence before their job starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel

from lib_methods.fabric.settings import CONTROLS
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.api_guard import guard_method, guard_script
from tests.shared.pictures import data_url, noisy


class Payload(BaseModel):
    prompt: str = ""
    alwayson_scripts: dict[str, Any] = {}


def checker(folder: Path) -> Callable[[Any], None]:
    """What FABRIC's script checks."""

    def check(arguments: Any) -> None:
        if (settings := CONTROLS.request(arguments, ImageStore(folder))) is not None:
            settings.without_missing(ImageStore(folder), skip=False)

    return check


@pytest.fixture
def jobs() -> list[Payload]:
    return []


@pytest.fixture(params=["routes of the application", "an included router"])
def client(request: pytest.FixtureRequest, tmp_path: Path, jobs: list[Payload]) -> TestClient:
    app = FastAPI()
    router = APIRouter() if request.param == "an included router" else app

    @router.post("/sdapi/v1/txt2img")
    def generate(payload: Payload) -> int:
        jobs.append(payload)
        return len(jobs)

    router.post("/other")(generate)
    if isinstance(router, APIRouter):
        app.include_router(router)
    assert guard_script(app, "FABRIC", checker(tmp_path)) == 1
    return TestClient(app)


def ask(client: TestClient, arguments: Any, name: str = "FABRIC", path: str = "/sdapi/v1/txt2img") -> Any:
    return client.post(path, json={"prompt": "x", "alwayson_scripts": {name: {"args": arguments}}})


@pytest.mark.parametrize("arguments", [[], [False], [True], [{"likes": []}], [{"likes": [data_url(noisy())]}]])
def test_good_requests_reach_their_job_unchanged(client: TestClient, jobs: list[Payload], arguments: Any) -> None:
    assert ask(client, arguments).status_code == 200
    assert jobs[0].alwayson_scripts["FABRIC"]["args"] == arguments


@pytest.mark.parametrize("name", ["FABRIC", "fabric"])
@pytest.mark.parametrize(
    "arguments", [{}, "x", [{"x": 1}], [{"likes": ["../x"]}], [{"likes": ["0" * 64]}], [{"start": 1, "end": 0}], [1]]
)
def test_bad_requests_start_no_job(client: TestClient, jobs: list[Payload], arguments: Any, name: str) -> None:
    answer = ask(client, arguments, name)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("FABRIC: ")
    assert answer.json()["detail"].endswith((".", "?"))
    assert not jobs


def test_other_scripts_and_other_routes_are_left_alone(client: TestClient, jobs: list[Payload]) -> None:
    assert ask(client, [{"x": 1}], name="Other").status_code == 200
    assert ask(client, [{"x": 1}], path="/other").status_code == 200
    assert client.post("/sdapi/v1/txt2img", json={"alwayson_scripts": {"FABRIC": {}}}).status_code == 200
    assert len(jobs) == 3


def test_values_beside_args_are_refused_as_the_host_would_drop_them(client: TestClient, jobs: list[Payload]) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"alwayson_scripts": {"FABRIC": {"likes": []}}})
    assert answer.status_code == 422
    assert '"args"' in answer.json()["detail"]
    assert not jobs


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"alwayson_scripts": 5}', b'{"alwayson_scripts": {"FABRIC": 5}}'])
def test_bodies_that_are_no_request_are_left_to_the_route(client: TestClient, body: bytes) -> None:
    answer = client.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"})
    assert answer.status_code < 500


class Scripts:
    """The host's scripts, by title."""

    def __init__(self, *titles: str) -> None:
        self.scripts = [SimpleNamespace(title=lambda title=title: title, filename=f"{title}.py") for title in titles]


def method_client(tmp_path: Path, jobs: list[Payload], scripts: Scripts) -> TestClient:
    app = FastAPI()

    @app.post("/sdapi/v1/txt2img")
    def generate(payload: Payload) -> int:
        jobs.append(payload)
        return len(jobs)

    guard_method(app, scripts, "FABRIC", checker(tmp_path))
    return TestClient(app)


@pytest.mark.parametrize("name", ["Steer FABRIC", "steer fabric", "FABRIC", "fabric"])
def test_alone_both_names_reach_our_script(tmp_path: Path, jobs: list[Payload], name: str) -> None:
    client = method_client(tmp_path, jobs, Scripts("Other", "Steer FABRIC"))
    assert ask(client, [{"strength": 1}], name).status_code == 200
    ((found, request),) = jobs[0].alwayson_scripts.items()
    assert found.lower() == "steer fabric"
    assert request == {"args": [{"strength": 1}]}
    refused = ask(client, [{"x": 1}], name)
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("FABRIC: ")


def test_beside_the_original_extension_each_gets_its_own_requests(
    tmp_path: Path, jobs: list[Payload], caplog: pytest.LogCaptureFixture
) -> None:
    client = method_client(tmp_path, jobs, Scripts("FABRIC", "Steer FABRIC"))
    assert "FABRIC.py" in caplog.text and '"Steer FABRIC" is ours' in caplog.text
    theirs, ours = [["a.png"], [], True, 0.0], [{"strength": 1}]
    both: Any = {"FABRIC": {"args": theirs}, "Steer FABRIC": {"args": ours}}
    assert client.post("/sdapi/v1/txt2img", json={"alwayson_scripts": both}).status_code == 200
    assert jobs[0].alwayson_scripts == both
    assert ask(client, [{"x": 1}], "Steer FABRIC").status_code == 422


def test_alone_nothing_is_said_and_two_names_at_once_are_refused(
    tmp_path: Path, jobs: list[Payload], caplog: pytest.LogCaptureFixture
) -> None:
    client = method_client(tmp_path, jobs, Scripts("Steer FABRIC"))
    assert not caplog.records
    both: Any = {"FABRIC": {"args": []}, "Steer FABRIC": {"args": []}, "": {"args": []}}
    answer = client.post("/sdapi/v1/txt2img", json={"alwayson_scripts": both})
    assert answer.status_code == 422
    assert "names of the same script" in answer.json()["detail"]
