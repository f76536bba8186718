"""The history's routes: what they give, to whom, and what they refuse."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image, PngImagePlugin

from tests.api.conftest import Server

LIST = "/internal/history"
READING = ("", "/info/{}", "/thumbnail/{}", "/image/{}")
WRITING = ("/trash", "/restore", "/empty")
FOREIGN = {"origin": "https://evil.example"}


@pytest.fixture
def saved(server: Server) -> Iterator[Path]:
    """An image of 600 x 300 pixels, the only one of its name."""
    path = Path(server.host.output_dir) / "txt2img-images" / "history 猫.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", "a red 猫\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 600x300")
    Image.new("RGB", (600, 300), (200, 30, 30)).save(path, pnginfo=info)
    yield path
    path.unlink(missing_ok=True)
    server.post(f"{LIST}/empty")


def found(server: Server, **asked: Any) -> dict[str, Any]:
    answer = server.get(LIST, params={"query": "history 猫", **asked})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_an_image_is_listed_shown_thrown_away_and_brought_back(server: Server, saved: Path):
    listed = found(server)
    (item,) = listed["items"]
    assert (listed["total"], listed["unread"]) == (1, 0)
    assert {"name": "txt2img-images/history 猫.png", "prompt": "a red 猫", "tab": "txt2img"}.items() <= item.items()
    assert str(server.host.output_dir) not in str(listed)

    image = server.get(f"{LIST}/image/{item['id']}")
    assert (image.content, image.headers["content-type"]) == (saved.read_bytes(), "image/png")
    assert "sandbox" in image.headers["content-security-policy"]
    for _ in range(2):
        small = server.get(f"{LIST}/thumbnail/{item['id']}")
        assert small.headers["content-type"] == "image/webp"
        assert Image.open(io.BytesIO(small.content)).size == (320, 160)
    about = server.get(f"{LIST}/info/{item['id']}").json()
    assert about["infotext"].startswith("a red 猫\nSteps: 4")

    assert server.post(f"{LIST}/trash", ids=[item["id"]] * 2).json() == {"done": [item["id"]], "problems": []}
    assert not saved.exists()
    assert (found(server)["total"], found(server, trash=True)["total"]) == (0, 1)
    assert server.post(f"{LIST}/trash", ids=[item["id"]]).json() == {"done": [], "problems": []}
    assert server.post(f"{LIST}/restore", ids=[item["id"]]).json()["done"] == [item["id"]]
    assert saved.exists()


def test_what_a_browser_cannot_show_it_gets_as_png(server: Server, saved: Path):
    other = saved.with_suffix(".tiff")
    Image.open(saved).save(other)
    try:
        item = next(item for item in found(server)["items"] if item["name"].endswith(".tiff"))
        answer = server.get(f"{LIST}/image/{item['id']}")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (600, 300)
    finally:
        other.unlink()


def test_no_text_in_place_of_an_id_leads_to_a_file(server: Server, saved: Path, tmp_path: Path):
    secret = Path(server.host.data_dir) / "secret.png"
    secret.write_bytes(saved.read_bytes())
    texts = [
        *(str(saved), str(secret), "../secret.png", "..%2fsecret.png", "%2e%2e/secret.png", "/etc/passwd"),
        *("txt2img-images/history 猫.png", "C:\\Windows\\win.ini", "0" * 24, "A" * 5000, "\u202e", "%00", "*"),
    ]
    for text in texts:
        for route in READING[1:]:
            for given in (quote(text, safe=""), quote(text)):
                answer = server.get(LIST + route.format(given))
                assert answer.status_code in (404, 405), (route, given, answer.status_code)
                assert "PNG" not in answer.text and "root:" not in answer.text
    short = [text for text in texts if len(text) <= 64]
    for route in ("/trash", "/restore"):
        assert server.post(LIST + route, ids=short).json() == {"done": [], "problems": []}
    assert saved.exists() and secret.exists()


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"offset": -1}, "offset"),
        ({"offset": "x"}, "offset"),
        ({"offset": 10**30}, "offset"),
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"limit": "1e3"}, "limit"),
        ({"query": "x" * 501}, "query"),
        ({"trash": "perhaps"}, "trash"),
    ],
)
def test_a_bad_request_costs_a_sentence(server: Server, asked: dict[str, Any], word: str):
    answer = server.get(LIST, params=asked)
    assert answer.status_code == 422
    assert word in answer.json()["detail"]


def test_an_offset_behind_the_end_gives_an_empty_list(server: Server, saved: Path):
    assert found(server, offset=10**9)["items"] == []


def test_a_query_of_any_text_is_answered(server: Server, saved: Path):
    for query in ("\0", "\ufffd", "' OR 1=1;--", "%%%", "\\", '"', "a" * 500, "猫 " * 150):
        assert server.get(LIST, params={"query": query}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"ids": []}', b'{"ids": "x"}', b'{"ids": [1]}', b'{"ids": [null]}', b'{"id": ["x"]}']
    + [
        b'{"ids": ["' + b"x" * 65 + b'"]}',
        b'{"ids": [' + b",".join([b'"x"'] * 501) + b"]}",
        b'{"ids": [{"path": "/"}]}',
    ],
)
def test_a_body_that_is_no_list_of_ids_is_refused(server: Server, body: bytes):
    for route in ("/trash", "/restore"):
        answer = server.client.post(LIST + route, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert answer.json()["detail"].endswith(".")


def test_another_website_can_neither_look_nor_delete(server: Server, saved: Path):
    ident = found(server)["items"][0]["id"]
    picture = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    for route in READING:
        assert server.get(LIST + route.format(ident), headers=picture).status_code == 403
        assert server.get(LIST + route.format(ident), headers={"host": "evil.example"}).status_code == 403
    for route in WRITING:
        assert server.client.post(LIST + route, json={"ids": [ident]}, headers=FOREIGN).status_code == 403
        body = {"content": b'{"ids": ["%s"]}' % ident.encode(), "headers": {"content-type": "text/plain"}}
        assert server.client.post(LIST + route, **body).status_code == 422
        assert server.get(LIST + route).status_code in (404, 405)
    assert saved.exists()


def test_the_login_of_the_page_guards_the_history(server: Server, saved: Path):
    from fastapi.testclient import TestClient

    from modules import shared
    from standalone.page.server import build_app

    before = dict(vars(shared.cmd_opts))
    try:
        app = build_app(server.host, gradio_auth="ann:secret", api_auth="bob:other")
        client = TestClient(app, base_url="https://127.0.0.1:7860", raise_server_exceptions=False)
        ident = found(server)["items"][0]["id"]
        reading, writing = [LIST + route.format(ident) for route in READING], [LIST + route for route in WRITING]
        assert {client.get(path).status_code for path in reading} == {401}
        assert {client.get(path, auth=("bob", "other")).status_code for path in reading} == {401}
        assert {client.post(path, json={"ids": [ident]}).status_code for path in writing} == {401}
        assert saved.exists()
        client.post("/login", data={"username": "ann", "password": "secret"})
        assert {client.get(path).status_code for path in reading} == {200}
    finally:
        vars(shared.cmd_opts).clear()
        vars(shared.cmd_opts).update(before)


def test_a_file_that_cannot_be_read_costs_a_sentence(server: Server, saved: Path):
    saved.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (item,) = found(server)["items"]
    answer = server.get(f"{LIST}/thumbnail/{item['id']}")
    assert answer.status_code == 422
    assert "cannot be read" in answer.json()["detail"]
    assert server.get(f"{LIST}/info/{item['id']}").json()["infotext"] == ""


def test_a_file_that_was_deleted_by_hand_costs_a_sentence(server: Server, saved: Path):
    (item,) = found(server)["items"]
    os.unlink(saved)
    for route in READING[1:]:
        answer = server.get(LIST + route.format(item["id"]))
        assert answer.status_code == 404
        assert answer.json()["detail"] == "This image is no longer there."
