"""Who gets an answer, and which files are given out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from standalone.api.guard import is_loopback_name, may_serve

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
def test_may_serve_only_says_yes_inside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]):
    root = tmp_path_factory.getbasetemp() / "served" / "in"
    root.mkdir(parents=True, exist_ok=True)
    (root / "a").write_text("fine", encoding="utf-8")
    (root.parent / "secret").write_text("no", encoding="utf-8")
    text = "/".join([str(root), *parts])
    assert may_serve(text, [root]) == (Path(text) == root / "a" and ".." not in parts)


@pytest.mark.parametrize(
    "upload", [{"path": "/etc/passwd"}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
)
def test_gradios_own_calls_do_not_read_the_servers_files(server: Server, upload: dict[str, object]):
    """A component's value may name an uploaded file, and no other."""
    page = server.get("/config").json()
    for number, dependency in enumerate(page["dependencies"]):
        body = {"data": [upload] * len(dependency["inputs"]), "fn_index": number, "session_hash": "x"}
        for address in ("/gradio_api/run/predict", "/gradio_api/api/predict"):
            answer = server.client.post(address, json=body)
            assert "root:" not in answer.text
    assert server.txt2img()["images"]


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
    assert "This server answers on this machine only" in answer.json()["detail"]


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
