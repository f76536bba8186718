"""Names the format of files that are not decoded here, by their first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_LOOKED_AT = 4096  # bytes
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_IMAGES = {
    b"8BPS": "a PSD",
    b"gimp xcf": "an XCF (GIMP)",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
    b"v/1\x01": "an OpenEXR",
    b"#?RADIANCE": "an HDR",
    b"DDS ": "a DDS",
    b"\x00\x00\x01\x00": "an icon",
    b"icns": "an icon",
    b"%PDF": "a PDF",
    b"%!PS": "an EPS",
    b"\xc5\xd0\xd3\xc6": "an EPS",
}
_OTHERS = {
    b"PK\x03\x04": "a ZIP",
    b"version https://git-lfs": "a Git LFS pointer",
    b"Rar!": "a RAR",
    b"7z\xbc\xaf": "a 7z",
    b"\x1aE\xdf\xa3": "a video",
}


def told(file: Path | BinaryIO) -> str:
    """A sentence that names the kind of a file and says what to do; "" where its first bytes say nothing."""
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened:
                head = opened.read(_LOOKED_AT)
        else:
            file.seek(0)
            head = file.read(_LOOKED_AT)
    except (OSError, ValueError):
        return ""
    if kind := _image(head):
        return f"This is {kind} file. Save it as PNG or JPEG."
    if kind := _other(head):
        return f"This is {kind} file, not an image. Choose a PNG or JPEG file."
    return ""


def _image(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "a HEIC" if head[8:12] in _HEIC else "a camera's raw" if head[8:12] == b"crx " else ""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text:
        return "an SVG"
    return next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), "")


def _other(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "" if head[8:12] in (b"avif", b"avis") else "a video"
    if head.startswith(b"RIFF"):
        return {b"AVI ": "a video", b"WAVE": "a sound"}.get(head[8:12], "")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML"
    return next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), "")
