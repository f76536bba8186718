"""Infotext in Exif: read whatever script it begins with and whatever program wrote it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from standalone.host import images
from standalone.infotext import user_comment

SCRIPTS = {
    "Latin": "a cat",
    "accents": "élan, Käse",
    "Cyrillic": "Привет, кот",
    "Greek": "γάτα",
    "Hebrew": "חתול",
    "Arabic": "قطة",
    "Hindi": "बिल्ली",
    "Thai": "แมว",
    "Chinese": "猫在东京",
    "Japanese": "ねこ 東京",
    "Korean": "고양이",
    "emoji": "🧀🐈‍⬛",
    "symbols": "★ ❤ …",
}
PARAMS = "\nNegative prompt: 悪い\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"
ENCODINGS = {
    "the WebUI's": lambda text: b"UNICODE\0" + text.encode("utf-16-be"),
    "low byte first": lambda text: b"UNICODE\0" + text.encode("utf-16-le"),
    "marked, high byte first": lambda text: b"UNICODE\0\xfe\xff" + text.encode("utf-16-be"),
    "marked, low byte first": lambda text: b"UNICODE\0\xff\xfe" + text.encode("utf-16-le"),
    "UTF-8 as UNICODE": lambda text: b"UNICODE\0" + text.encode(),
    "marked UTF-8 as UNICODE": lambda text: b"UNICODE\0\xef\xbb\xbf" + text.encode(),
    "UTF-8 as ASCII": lambda text: b"ASCII\0\0\0" + text.encode(),
    "UTF-8 of no name": lambda text: b"\0" * 8 + text.encode(),
    "bare UTF-8": lambda text: text.encode(),
    "with zeros at the end": lambda text: b"UNICODE\0" + text.encode("utf-16-le") + b"\0\0",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("big_endian", [True, False])
def test_every_script_in_every_encoding(script: str, encoding: str, big_endian: bool) -> None:
    text = SCRIPTS[script] + PARAMS
    assert user_comment.decode(ENCODINGS[encoding](text), big_endian) == text


@pytest.mark.parametrize("big_endian", [True, False])
def test_the_parameters_behind_a_long_prompt_tell_the_order(big_endian: bool) -> None:
    text = "猫" * 20_000 + PARAMS
    assert user_comment.decode(b"UNICODE\0" + text.encode("utf-16-be"), big_endian) == text


@pytest.mark.parametrize("text", ["a cat", "кот", "café", "Ã©", "🧀\nSteps: 20"])
def test_texts_of_a_png_come_back_whatever_program_wrote_them(text: str) -> None:
    written = Image.open(io.BytesIO(images.png(Image.new("L", (1, 1)), {"parameters": text})))
    assert user_comment.png_text(written.info["parameters"]) == text
    if text != "Ã©":  # which nobody can tell apart from é
        assert user_comment.png_text(text.encode().decode("latin-1")) == text


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("big_endian", [True, False])
def test_a_word_alone_goes_by_the_order_of_its_block(script: str, big_endian: bool) -> None:
    data = SCRIPTS[script].encode("utf-16-be" if big_endian else "utf-16-le")
    assert user_comment.decode(b"UNICODE\0" + data, big_endian) == SCRIPTS[script]


@given(
    st.text(max_size=80).filter(lambda text: "\0" not in text and text[:1] != "\ufeff"),
    st.sampled_from(sorted(ENCODINGS)),
)
def test_any_prompt_in_any_encoding(prompt: str, encoding: str) -> None:
    text = prompt + PARAMS
    assert user_comment.decode(ENCODINGS[encoding](text), True) == text
    assert user_comment.decode(ENCODINGS[encoding](text), False) == text


@given(st.one_of(st.binary(max_size=64), st.binary(max_size=60).map(lambda data: b"UNICODE\0" + data), st.none()))
def test_any_bytes_can_be_read(raw: bytes | None) -> None:
    user_comment.decode(raw, True)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "tiff", *(["avif"] if features.check("avif") else [])])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_files_of_either_order(tmp_path: Path, suffix: str, endian: str) -> None:
    """Files that this host wrote before named the other order than they had."""
    exif = Image.Exif()
    exif.endian = endian
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + ("東京" + PARAMS).encode("utf-16-be")
    target = tmp_path / f"old.{suffix}"
    Image.new("RGB", (16, 8)).save(target, exif=exif.tobytes())
    with Image.open(target) as image:
        assert user_comment.comment_of(image) == "東京" + PARAMS


def test_damaged_exif_has_no_comment() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8)).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40)
    assert user_comment.comment_of(Image.open(buffer)) is None
