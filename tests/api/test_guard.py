"""Which requests get an answer: by login, name, origin, headers and size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_methods.webui.door import is_loopback_name
from tests.api.conftest import SMALL, Server


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/proxy=https://x.hf.space/",
        "/monitoring",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
    ],
)
def test_doors_that_nobody_needs_are_closed(server: Server, path: str):
    assert server.get(path).status_code in (403, 404)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "192.168.1.7:7860",
        "[::2]:7860",
        "2130706433.evil",
    ],
)
def test_another_name_than_this_machines_is_refused(server: Server, host: str):
    """DNS rebinding: the browser calls 127.0.0.1 by the attacker's name."""
    answer = server.get("/sdapi/v1/options", headers={"host": host})
    assert answer.status_code == 403
    assert "This server answers only on this machine" in answer.json()["detail"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7860", "127.0.0.1:7860", "127.0.0.9", "[::1]:7860", "LOCALHOST:1"]
)
def test_this_machines_names_are_answered(server: Server, host: str):
    assert server.get("/sdapi/v1/samplers", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "http://localhost:7860",
        "file://",
        "junk",
        "http://[",
        "http://[::1",
        "http://127.0.0.1:99999999",
    ],
)
def test_another_websites_requests_are_refused(server: Server, origin: str):
    answer = server.client.post("/sdapi/v1/txt2img", json=SMALL, headers={"origin": origin})
    assert answer.status_code == 403
    # a browser sends this without asking first
    untyped = server.client.post("/sdapi/v1/options", content=b'{"jpeg_quality": 5}', headers={"origin": origin})
    assert untyped.status_code == 403
    assert server.client.post("/gradio_api/upload", headers={"origin": origin}).status_code == 403


def test_the_pages_own_requests_are_answered(server: Server):
    answer = server.client.post("/sdapi/v1/interrupt", headers={"origin": "http://127.0.0.1:7860"})
    assert answer.status_code == 200


def test_json_without_a_content_type_is_read_as_json(server: Server):
    """What `requests.post(url, data=json.dumps(...))` sends."""
    answer = server.client.post("/sdapi/v1/txt2img", content=json.dumps({**SMALL, "seed": 5}).encode())
    assert answer.status_code == 200
    assert answer.json()["parameters"]["seed"] == 5
    own = {"origin": "http://127.0.0.1:7860"}
    assert server.client.post("/sdapi/v1/options", content=b"{}", headers=own).status_code == 200
    assert server.client.post("/sdapi/v1/interrupt", content=b"").status_code == 200
    refused = server.client.post(
        "/sdapi/v1/options", content=b'{"jpeg_quality": 5}', headers={"content-type": "text/plain"}
    )
    assert refused.status_code == 422
    assert "sent as application/json" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("bytes=0-10", 206),
        ("bytes=-5", 206),
        ("bytes=99999999-", 416),
        *[(text, 200) for text in ("bytes=5-1", "bytes=a-b", "bytes=-", "junk", "bytes=0-1,2-3", "bytes=\xb2-", "")],
        ("bytes=0-" + "9" * 40, 200),
        ("bytes=" + "0-1," * 2000, 200),
    ],
)
def test_a_range_that_is_malformed_gives_the_whole_file(server: Server, wanted: str, status: int):
    path = Path(server.host.output_dir) / "range.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0123456789" * 10)
    answer = server.get(f"/gradio_api/file={path}", headers={"range": wanted.encode("latin-1")})
    assert answer.status_code == status
    if status == 200:
        assert answer.content == path.read_bytes()


@pytest.mark.parametrize("header", ["host", "content-length", "referer", "cookie", "content-type", "accept-encoding"])
@pytest.mark.parametrize("value", [b"[", b"\xb2", b"\xff\xfe", b"-1", b"multipart/form-data", b"http://[", b"0" * 4000])
def test_no_header_breaks_the_server(server: Server, header: str, value: bytes):
    for method, path in (("GET", "/sdapi/v1/samplers"), ("POST", "/sdapi/v1/options"), ("POST", "/gradio_api/upload")):
        answer = server.client.request(
            method, path, headers={header: value}, content=b"{}" if method == "POST" else None
        )
        assert answer.status_code < 500, (method, path, answer.text)


def test_another_websites_pictures_and_scripts_are_refused(server: Server):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert server.get("/sdapi/v1/progress", headers=headers).status_code == 403
    assert server.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code == 200


def test_a_request_that_is_too_large_is_refused(server: Server):
    answer = server.post("/sdapi/v1/png-info", image="A" * (5 * 2**20))
    assert answer.status_code == 413
    assert "larger than 4 MiB" in answer.json()["detail"]


def test_a_request_that_does_not_say_how_large_it_is_is_cut_off(server: Server):
    def pieces():
        yield b'{"image": "'
        for _ in range(80):
            yield b"A" * 2**16
        yield b'"}'

    answer = server.client.post("/sdapi/v1/png-info", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_the_page_may_load_nothing_from_elsewhere(server: Server):
    answer = server.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy.replace("https:", "http") or "://" not in policy


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("localhost", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("a.localhost", True),
        ("localhost.com", False),
        ("0.0.0.0", False),
        ("", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_names(name: str, here: bool):
    assert is_loopback_name(name) is here


@pytest.fixture(scope="module")
def with_logins(server: Server) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of an application with the options of `build_app`; each has its own cookies."""
    from modules import shared
    from standalone.page.server import build_app

    before, built = dict(vars(shared.cmd_opts)), {}

    def client(**options: Any) -> TestClient:
        key = tuple(sorted(options.items()))
        if key not in built:
            built[key] = build_app(server.host, **options)
        return TestClient(built[key], base_url="https://127.0.0.1:7860", raise_server_exceptions=False)

    yield client
    vars(shared.cmd_opts).update(before)


BOTH = {"gradio_auth": "ann:secret", "api_auth": "bob:other"}
PAGE, API = ("/config", "/internal/options", "/gradio_api/info"), ("/sdapi/v1/options", "/sdapi/v1/progress")


def statuses(client: TestClient, paths: Sequence[str], **options: Any) -> set[int]:
    return {client.get(path, **options).status_code for path in paths}


def test_the_page_and_the_api_ask_for_their_logins(with_logins: Callable[..., TestClient]):
    client = with_logins(**BOTH)
    assert statuses(client, PAGE + API) == {401}
    assert client.get("/sdapi/v1/options").headers["www-authenticate"] == "Basic"
    assert "www-authenticate" not in client.get("/internal/options").headers  # the page has a form for it
    # before the body is read
    assert client.post("/sdapi/v1/txt2img", content=b"{").status_code == 401
    assert (
        client.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "x"}).status_code == 401
    )
    assert client.post("/internal/progress", json={"id_task": "x"}).status_code == 401
    assert statuses(client, API, auth=("bob", "other")) == {200}
    assert statuses(client, API, auth=("ann", "secret")) == {401}
    assert statuses(client, PAGE, auth=("bob", "other")) == {401}
    flags = client.get("/sdapi/v1/cmd-flags", auth=("bob", "other")).text
    assert "secret" not in flags
    assert "other" not in flags
    for name, word in (("ann", "other"), ("bob", "other"), ("ann", ""), ("", "")):
        assert client.post("/login", data={"username": name, "password": word}).status_code in (400, 422)
    foreign = {"origin": "https://evil.example"}
    assert client.post("/login", data={"username": "ann", "password": "secret"}, headers=foreign).status_code == 403
    assert client.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
    assert statuses(client, PAGE + API) == {200}
    assert statuses(with_logins(**BOTH), PAGE) == {401}


def test_the_pages_logins_guard_the_api_where_it_has_none_of_its_own(with_logins: Callable[..., TestClient]):
    client = with_logins(gradio_auth="ann:secret")
    assert statuses(client, API) == {401}
    assert statuses(client, API, auth=("ann", "secret")) == {200}


def test_with_a_login_for_the_api_alone_the_page_is_open(with_logins: Callable[..., TestClient]):
    client = with_logins(api_auth="bob:other", local_only=False, allowed_hosts=("steer.lan",))
    assert statuses(client, PAGE) == {200}
    assert statuses(client, API) == {401}
    for host, status in (("steer.lan:7860", 200), ("192.168.1.7:7860", 200), ("evil.example", 403), ("", 403)):
        assert client.get("/internal/ping", headers={"host": host}).status_code == status
