"""Who must log in, for the page and for the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_methods.webui.door import is_loopback_name
from tests.api.conftest import Server


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
