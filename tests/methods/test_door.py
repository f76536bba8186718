"""Whom the pack's routes answer, in every host, and which files its boxes take."""

from __future__ import annotations

import argparse
import asyncio
import base64
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.dreambooth.tab import handlers as dreambooth
from lib_methods.pix2pix_zero import workshop as pix2pix_zero
from lib_methods.webui import door as rules
from lib_methods.webui.api_guard import _all_routes, guard_script
from lib_methods.webui.door import Door, is_account, page_accounts, parse_accounts
from lib_methods.webui.image_box import uploads_only

ROOT = Path(__file__).resolve().parents[2]
LOGIN = "Basic " + base64.b64encode("ann:sécret".encode()).decode()


class Nothing:
    """Whatever is asked of it: a request that reaches it has passed the door."""

    def __getattr__(self, name: str) -> Nothing:
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Nothing:
        raise Passed


class Passed(Exception):
    """A request came through."""


def pack(door: Door) -> tuple[TestClient, list[tuple[str, str]]]:
    """The pack's routes in an application, with their methods and paths."""
    app = FastAPI(strict_content_type=False)  # as the FastAPI of the WebUI
    dreambooth.add_routes(app, Nothing(), door)  # type: ignore[arg-type]
    pix2pix_zero.add_routes(app, Nothing(), door)  # type: ignore[arg-type]

    @app.exception_handler(Passed)
    async def passed(request: Any, error: Exception) -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse({}, 299)

    own = [route for route in _all_routes(app.routes) if isinstance(route, APIRoute)]
    found = [(method, route.path) for route in own for method in route.methods or ()]
    assert {path for _, path in found} == {f"/dreambooth/v1/{name}" for name in NAMES} | {"/pix2pix-zero/directions"}
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False), found


NAMES = ("start", "plan", "status", "cancel", "resume", "use")
BODY = b'{"name": "x", "source": "a", "target": "b"}'


def ask(client: TestClient, method: str, path: str, **headers: str) -> int:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    path += "?name=x" if method == "DELETE" else ""
    return client.request(method, path, content=None if method == "GET" else BODY, headers=given).status_code


def test_no_route_of_the_pack_is_registered_beside_the_door():
    """Every file that adds routes does so with the guarded router."""
    files = [*(ROOT / "lib_methods").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    adding = [file for file in files if any(word in file.read_text("utf-8") for word in (".add_api_route(", "@app."))]
    assert {file.name for file in adding} == {"routes.py", "workshop.py"}
    for file in adding:
        assert file.read_text("utf-8").count("add_api_route(") == file.read_text("utf-8").count("router.add_api_route(")


def test_every_box_of_the_pack_takes_uploaded_files_only():
    files = [*(ROOT / "lib_methods").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    raw = re.compile(r"gr\.(File|Image|Gallery|ImageEditor|ImageMask|UploadButton|Video|Audio|Model3D|FileExplorer)\(")
    assert [file.name for file in files if raw.search(file.read_text("utf-8"))] == ["image_box.py"]


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({"content_type": "application/json"}, True),  # a program
        ({}, True),  # requests.post(url, data=json.dumps(...))
        ({"content_type": "application/json", "origin": "http://127.0.0.1:7860"}, True),
        ({"content_type": "application/json", "sec_fetch_site": "same-origin"}, True),
        ({"content_type": "application/json; charset=utf-8", "host": "localhost:7860"}, True),
        ({"content_type": "application/json", "host": "[::1]:7860"}, True),
        ({"content_type": "application/json", "origin": "https://evil.example"}, False),
        ({"origin": "https://evil.example"}, False),  # a Blob without a type: sent without asking
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "content_type": "text/plain"}, False),
        ({"content_type": "text/plain", "origin": "https://evil.example"}, False),
        ({"content_type": "application/json", "origin": "null"}, False),
        ({"content_type": "application/json", "origin": "http://127.0.0.1:3000"}, False),
        ({"content_type": "application/json", "origin": "http://["}, False),
        ({"content_type": "application/json", "host": "evil.example"}, False),
        (
            {"content_type": "application/json", "host": "127.0.0.1.evil.example", "origin": "http://evil.example"},
            False,
        ),
        ({"host": "192.168.1.7:7860"}, False),
    ],
)
def test_every_route_answers_this_machines_programs_and_pages_only(headers: dict[str, str], answered: bool):
    client, found = pack(Door.of_host(argparse.Namespace()))
    for method, path in found:
        status = ask(client, method, path, **headers)
        assert (status != 403) is answered, (method, path, status)
        assert answered is (status == 299), (method, path, status)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"])
def test_what_a_form_can_send_changes_nothing(kind: str):
    client, found = pack(Door.of_host(argparse.Namespace()))
    for method, path in found:
        assert ask(client, method, path, content_type=kind) == (299 if method == "GET" else 422), (method, path)


HOSTS: dict[str, dict[str, Any]] = {
    "the WebUI's API": {"api_auth": "bob:x,ann:sécret"},
    "the page of the WebUI": {"gradio_auth": "ann:sécret"},
    "a file of accounts": {"gradio_auth_path": "accounts.txt"},
}


@pytest.mark.parametrize("host", HOSTS)
def test_every_route_asks_for_the_hosts_login_before_it_reads_a_body(host: str, tmp_path: Path):
    options = argparse.Namespace(**HOSTS[host])
    if host == "a file of accounts":
        options.gradio_auth_path = tmp_path / "accounts.txt"
        options.gradio_auth_path.write_text("bob:x, carl:y\n\nann:sécret\n", encoding="utf-8")
    client, found = pack(Door.of_host(options))
    latin = "Basic " + base64.b64encode("ann:sécret".encode("latin-1")).decode()
    wrong = [base64.b64encode(text.encode()).decode() for text in ("ann:", "ann:secret", "ann", ":", "bob:sécret")]
    for method, path in found:
        for login in ("", "Basic", "Basic !!!", f"Bearer {LOGIN[6:]}", *(f"Basic {text}" for text in wrong)):
            answer = client.request(method, path, content=b"{", headers={"authorization": login})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Basic"), (method, path, login)
        for login in (LOGIN, latin):
            assert ask(client, method, path, authorization=login, content_type="application/json") == 299


def test_websites_that_the_host_lets_in_are_answered():
    for options in ({"cors_allow_origins": "https://a.example,https://b.example"}, {"cors_allow_origins_regex": ".*"}):
        client, found = pack(Door.of_host(argparse.Namespace(**options)))
        headers = {"origin": "https://b.example", "sec_fetch_site": "cross-site", "content_type": "application/json"}
        assert {ask(client, method, path, **headers) for method, path in found} == {299}


@pytest.mark.parametrize(
    ("hosts", "local_only", "answered", "refused"),
    [
        ((), False, ["evil.example", "192.168.1.7", "steer.lan", "[fe80::1]", ""], []),
        (
            ("steer.lan",),
            False,
            ["STEER.lan:7860", "steer.lan.", "192.168.1.7", "localhost"],
            ["evil.example", "", "["],
        ),
        (("steer.lan",), True, ["steer.lan", "127.0.0.1"], ["192.168.1.7", "x.steer.lan", "steer.lan.evil.example"]),
    ],
)
def test_host_names(hosts: tuple[str, ...], local_only: bool, answered: list[str], refused: list[str]):
    door = Door(hosts=hosts, local_only=local_only)
    for name in answered:
        assert door.refusal("GET", {"host": name}) is None, name
    for name in refused:
        assert door.refusal("GET", {"host": name}) is not None, name


def test_an_untyped_request_of_another_website_does_not_reach_a_methods_check():
    app = FastAPI(strict_content_type=False)
    seen: list[Any] = []

    @app.post("/sdapi/v1/txt2img")
    def generate(body: dict[str, Any]) -> int:
        return 1

    guard_script(app, "Mine", seen.append)
    client = TestClient(app)
    body = b'{"alwayson_scripts": {"Mine": {"args": [1]}}}'

    def post(**headers: str) -> int:
        return client.post("/sdapi/v1/txt2img", content=body, headers=headers).status_code

    assert post(origin="https://evil.example") == 403
    assert post(**{"origin": "https://evil.example", "content-type": ""}) == 403
    assert post(**{"sec-fetch-site": "cross-site"}) == 403
    assert post(**{"content-type": "text/plain"}) == 422
    assert seen == []
    assert post() == 200
    assert seen == [[1]]


@pytest.mark.parametrize("text", ["ann", "ann:", ":secret", "ann:hidden,bob", "ann:hidden,,:x"])
def test_accounts_that_cannot_be_read_are_refused_without_repeating_them(text: str):
    with pytest.raises(ValueError, match="name:password") as error:
        Door.of_host(argparse.Namespace(api_auth=text))
    assert "ann" not in str(error.value)
    assert "hidden" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be read"):
        page_accounts(argparse.Namespace(gradio_auth_path="/no/such/file"))


TEXT = st.text(st.characters(exclude_characters=":,"), min_size=1).map(str.strip).filter(bool)


@given(TEXT, TEXT, TEXT)
def test_only_the_very_same_name_and_password_are_an_account(name: str, password: str, other: str):
    accounts = ((name, password),)
    assert is_account(accounts, name, password)
    assert is_account(accounts, name, other) is (other == password)
    assert is_account(accounts, other, password) is (other == name)
    assert parse_accounts(f"{name}:{password}, bob:a:b") == ((name, password), ("bob", "a:b"))


def test_a_box_takes_uploaded_files_only(tmp_path: Path):
    """As gradio 3 hands them over, which copies any file of the machine, and as later ones do."""
    cache = tmp_path / "gradio"
    (cache / "a").mkdir(parents=True)
    good, secret = cache / "a" / "good.txt", tmp_path / "secret.txt"
    good.write_text("fine", encoding="utf-8")
    secret.write_text("secret", encoding="utf-8")
    bad = [str(secret), "good.txt", f"{cache}/../secret.txt", "//server/x", "http://169.254.169.254/", "file:///x", ""]

    async def move(path: str) -> str:
        return path

    def new_box(**names: Any) -> Any:
        return uploads_only(SimpleNamespace(preprocess=lambda payload: payload, **names))

    three, later = (
        new_box(DEFAULT_TEMP_DIR=str(cache)),
        new_box(GRADIO_CACHE=str(cache), async_move_resource_to_block_cache=move),
    )

    def of_three(path: str) -> Any:
        return {"name": path, "data": None, "is_file": True}

    for box, kind in ((three, of_three), (later, lambda path: SimpleNamespace(path=path))):
        assert box.preprocess(None) is None
        assert box.preprocess(kind(str(good))) == kind(str(good))
        for path in bad:
            for value in (kind(path), [kind(str(good)), kind(path)], SimpleNamespace(root=[kind(path)])):
                with pytest.raises(gr.Error, match="was not uploaded here"):
                    box.preprocess(value)
    assert three.preprocess({"name": "a.txt", "data": "data:text/plain;base64,YQ=="})["name"] == "a.txt"
    assert asyncio.run(later.async_move_resource_to_block_cache(str(good))) == str(good)
    for address in ("http://169.254.169.254/", "HTTPS://evil.example/x", "ftp://x/y"):
        with pytest.raises(gr.Error, match="was not uploaded here"):
            later.async_move_resource_to_block_cache(address)
    assert rules.NOT_UPLOADED.startswith("This file")
