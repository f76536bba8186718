"""Which files are given out, and which files an event of the page may name."""

from __future__ import annotations

import asyncio
import base64
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from gradio.context import LocalContext
from gradio.exceptions import InvalidPathError
from gradio.routes import App
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.files import is_file_inside
from lib_methods.webui.door import NOT_UPLOADED
from tests.api.conftest import Server

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
