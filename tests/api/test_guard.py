"""Who gets an answer, and which files are given out."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from gradio.context import LocalContext
from gradio.exceptions import InvalidPathError
from gradio.routes import App
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_methods.files import is_file_inside
from lib_methods.webui.door import NOT_UPLOADED, is_loopback_name

from .conftest import SMALL, Server

ROUTES = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/")


@pytest.fixture
def secret(server: Server) -> Path:
    """A file that lies right beside the served folders."""
    path = Path(server.host.data_dir) / "secret.txt"
    path.write_text("TOP SECRET", encoding="utf-8")
    return path


def hostile(server: Server, secret: Path) -> list[str]:
    outputs = Path(server.host.output_dir)
    return [
        str(secret),
        "/etc/passwd",
        "etc/passwd",
        "../secret.txt",
        f"{outputs}/../secret.txt",
        f"{outputs}/x/../../secret.txt",
        f"{outputs}/..%2fsecret.txt",
        f"{outputs}%2f..%2fsecret.txt",
        f"{outputs}/%2e%2e/secret.txt",
        f"{outputs}/%252e%252e/secret.txt",
        f"{outputs}/..\\secret.txt",
        "C:\\Windows\\win.ini",
        "C:/Windows/win.ini",
        "\\\\server\\share\\x",
        "//server/share/x",
        f"{outputs}/\0{secret}",
        f"{outputs}",
        f"{outputs}/",
        "config.json",
        str(Path(server.host.data_dir) / "config.json"),
        str(Path(__file__)),
        "run.py",
        "requirements.txt",
        "http://127.0.0.1:1/",
        "https://example.com/",
        f"file://{secret}",
        "~",
        "",
    ]


def test_no_file_outside_of_the_folders_is_given_out(server: Server, secret: Path):
    server.host.save_settings()
    from urllib.parse import quote

    for route in ROUTES:
        for path in hostile(server, secret):
            for text in {path, quote(path, safe="/"), quote(path, safe="")}:
                if "\0" in text:
                    continue  # no HTTP client sends this unquoted
                answer = server.client.get(route + text)
                assert answer.status_code in (403, 404), (route, text, answer.status_code)
                assert "SECRET" not in answer.text
                assert "root:" not in answer.text


def test_images_of_the_output_folder_are_given_out(server: Server):
    server.txt2img(save_images=True)
    path = next(Path(server.host.output_dir).rglob("*.png"))
    answer = server.get("/gradio_api/file=" + str(path))
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_a_link_that_leads_out_is_not_followed(server: Server, secret: Path):
    link = Path(server.host.output_dir) / "innocent.png"
    link.symlink_to(secret)
    folder = Path(server.host.output_dir) / "folder"
    folder.symlink_to(secret.parent, target_is_directory=True)
    try:
        for path in (link, folder / "secret.txt"):
            answer = server.get("/gradio_api/file=" + str(path))
            assert answer.status_code == 403
            assert "SECRET" not in answer.text
    finally:
        link.unlink()
        folder.unlink()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "a", "in", "out", "secret", "", "%2e%2e", "..."]), max_size=8))
def test_only_files_inside_are_inside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]):
    root = tmp_path_factory.getbasetemp() / "served" / "in"
    root.mkdir(parents=True, exist_ok=True)
    (root / "a").write_text("fine", encoding="utf-8")
    (root.parent / "secret").write_text("no", encoding="utf-8")
    text = "/".join([str(root), *parts])
    assert is_file_inside(text, [root]) == (Path(text) == root / "a" and ".." not in parts)


META = {"meta": {"_type": "gradio.FileData"}}
OTHERS = [{"url": "http://169.254.169.254/latest"}, {"url": "//evil.example/x"}, {"url": "file:///etc/passwd"}]


def foreign_files(server: Server, secret: Path) -> list[Any]:
    """Values that name a file which nobody uploaded, as boxes for a file, several, a gallery and an editor send it."""
    paths = [path for path in hostile(server, secret) if path] + ["file:///etc/passwd", "http://169.254.169.254/"]
    link = Path(server.host.data_dir) / "tmp" / "gradio" / "link.txt"
    if sys.platform != "win32":
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(secret)
        paths.append(str(link))
    files: list[Any] = [{"path": path, **META} for path in paths] + [{"path": "/etc/passwd"}]
    files += [{**META, **other} for other in OTHERS]
    shapes = [
        lambda file: file,
        lambda file: [file],
        lambda file: [{"image": file, "caption": None}],
        lambda file: {"background": file, "layers": [], "composite": None},
    ]
    return [shapes[number % len(shapes)](file) for number, file in enumerate(files * len(shapes))]


def test_no_event_of_the_page_reads_a_file_that_was_not_uploaded(server: Server, secret: Path):
    """A component's value may name an uploaded file, and no other."""
    values = itertools.cycle(foreign_files(server, secret))
    addresses = ("queue/join", "run/predict", "api/predict", "call/predict")
    events = server.get("/config").json()["dependencies"]
    assert len(events) > 20
    for (number, event), address in zip(enumerate(events * 2), itertools.cycle(addresses)):
        body = {"data": [next(values) for _ in event["inputs"] or [0]], "fn_index": event["id"], "session_hash": "x"}
        answer = server.client.post(f"/gradio_api/{address}", json=body)
        assert answer.status_code == 422, (number, address, body)
        assert answer.json()["detail"] == NOT_UPLOADED
    inside = {"data": [], "event_data": {"value": {"path": str(secret)}}, "fn_index": 0, "session_hash": "x"}
    assert server.client.post("/gradio_api/queue/join", json=inside).status_code == 422


def test_gradio_checks_the_files_of_an_event_too(server: Server, secret: Path):
    """Behind the guard: an application that does not count as started would read any file."""
    inner = next(route.app for route in server.client.app.routes if isinstance(getattr(route, "app", None), App))
    config = server.get("/config").json()
    boxes = {box["id"] for box in config["components"] if box["type"] in ("file", "image", "gallery", "imageeditor")}
    events = [event for event in config["dependencies"] if boxes & set(event["inputs"])]
    assert events
    blocks = inner.get_blocks()
    token = LocalContext.blocks.set(blocks)
    try:
        for event in events:
            values = [{"path": str(secret), **META} if box in boxes else None for box in event["inputs"]]
            with pytest.raises(InvalidPathError):
                asyncio.run(blocks.preprocess_data(blocks.fns[event["id"]], values, None))
    finally:
        LocalContext.blocks.reset(token)


def test_an_uploaded_file_is_taken(server: Server, picture: str):
    files = {"files": ("a.png", base64.b64decode(picture), "image/png")}
    path = server.client.post("/gradio_api/upload", files=files).json()[0]
    events = server.get("/config").json()
    image = next(box["id"] for box in events["components"] if box["props"].get("elem_id") == "pnginfo_image")
    event = next(event["id"] for event in events["dependencies"] if event["inputs"] == [image])
    value = {"path": path, "url": f"http://127.0.0.1:7860/gradio_api/file={path}", "orig_name": "a.png", **META}
    answer = server.client.post(
        "/gradio_api/run/predict", json={"data": [value], "fn_index": event, "session_hash": "x"}
    )
    assert answer.status_code == 200, answer.text
    assert "no infotext" in answer.json()["data"][0]


ACTIVE = {
    "a.html": b"<script>alert(1)</script>",
    "a.xhtml": b'<html xmlns="http://www.w3.org/1999/xhtml"><script>alert(1)</script></html>',
    "a.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "a.xml": b"<a/>",
    "a.js": b"alert(1)",
    "a.pdf": b"%PDF-1.4",
    "a.mht": b"MIME-Version: 1.0",
    "noending": b"<html><script>alert(1)</script>",
    "a.png.html": b"<script>alert(1)</script>",
}


@pytest.mark.parametrize("name", [*ACTIVE, "a.png", "a.JPG", "a.webp", "a.gif", "a.avif"])
def test_an_uploaded_file_runs_nothing_in_the_page(server: Server, name: str):
    files = {"files": (name, ACTIVE.get(name, b"<script>alert(1)</script>"), "text/html")}
    path = server.client.post("/gradio_api/upload", files=files).json()[0]
    for route in ("/gradio_api/file=", "/gradio_api/file/"):
        answer = server.get(route + path)
        if answer.status_code != 200:
            assert route.endswith("/")
            continue
        assert answer.headers.get_list("content-security-policy") == ["default-src 'none'; sandbox"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        kind = answer.headers["content-type"]
        if name in ACTIVE:
            assert kind == "application/octet-stream"
            assert answer.headers["content-disposition"].startswith("attachment")
        else:
            assert kind.startswith("image/")
            assert "svg" not in kind
            assert not answer.headers.get("content-disposition", "").startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/proxy=https://x.hf.space/",
        "/monitoring",
        "/gradio_api/dev/reload",
        "/docs",
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
