"""Captions, masks and other files beside the photos, and the names of uploads."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.dreambooth.photos.folder import find_photos
from lib_methods.dreambooth.photos.image import read_mask
from lib_methods.dreambooth.photos.subjects import take_in, take_in_encoded, uploaded
from lib_methods.dreambooth.settings import clean_name
from lib_methods.errors import UserError
from lib_methods.files import as_file_name, is_file_name
from tests.dreambooth.models import picture, put

MASK_NAMES = (
    *(
        "a.mask.png",
        "a-mask.png",
        "A-MASK.PNG",
        "a_mask.png",
        "a.mask.jpg",
        "a_Mask.webp",
        "a mask.png",
        "a (mask).png",
    ),
    *("a-masklabel.png", "a_masklabel.bmp", "A.MASKLABEL.PNG", "a_masks.tif", "a.jpg.mask.png", "mask/a.png"),
    *("a_alpha.png", "a-matte.png", "a_seg.png", "a_segmentation.png"),
    *("masks/A.JPG", "Mask/a.mask.png", "mask/a_mask.png"),
)


def test_captions_are_found_beside_the_photos(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "B.jpg")
    put(tmp_path, "c.png")
    (tmp_path / "a.txt").write_text("a {subject} in the snow\n", encoding="utf-8")
    (tmp_path / "b.TXT").write_bytes("ein Köter".encode("latin-1"))
    (tmp_path / "c.txt").write_text(" \n ")
    photos, notes = find_photos(tmp_path)
    assert [photo.caption for photo in photos] == ["a {subject} in the snow", "ein Köter", None]
    assert notes == []


def test_a_book_is_no_caption(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("x" * 70_000)
    (photo,), notes = find_photos(tmp_path)
    assert photo.caption is None and "a.txt" in notes[0]


@pytest.mark.parametrize("name", MASK_NAMES)
def test_masks_are_found_and_are_no_photos(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    put(tmp_path, "a.jpg")
    mask = Image.new("L", (32, 24))
    mask.paste(255, (0, 0, 16, 24))
    mask.save(tmp_path / name)
    (photo,), notes = find_photos(tmp_path)
    read = read_mask(photo)
    assert read is not None and notes == []
    assert read.mode == "L" and read.getpixel((3, 3)) == 255 and read.getpixel((30, 3)) == 0


@pytest.mark.parametrize("ending", ["alpha", "matte", "seg"])
def test_a_coloured_image_named_like_a_mask_is_said_and_not_used(tmp_path: Path, ending: str) -> None:
    put(tmp_path, "a.jpg")
    Image.new("RGB", (32, 24), "red").save(tmp_path / f"a_{ending}.png")
    (photo,), (note,) = find_photos(tmp_path)
    assert photo.mask_path is None and f"a_{ending}.png" in note and "has colours" in note


def test_lists_of_captions_and_several_broken_photos_are_named_together(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "a dog"}')
    (tmp_path / "meta_cap.json").write_text('{"a": {"caption": "a dog"}}')
    for name in ("b.png", "c.png", "d.jpg", "e.jpg"):
        (tmp_path / name).write_bytes(b"<html>" if name[0] in "de" else b"\x89PNG")
    _, notes = find_photos(tmp_path)
    assert len(notes) == 3 and "NAME.txt" in notes[2]
    assert all(name in note for note, names in zip(notes, ("bc", "de", "m")) for name in names)


@pytest.mark.parametrize("name", ["a.mask.png", "a_alpha.png"])
def test_a_cut_out_is_a_mask_by_its_transparency(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.jpg")
    mask = Image.new("RGBA", (32, 24), (0, 0, 0, 0))
    mask.paste((200, 0, 0, 255), (0, 0, 16, 24))
    mask.save(tmp_path / name)
    read = read_mask(find_photos(tmp_path)[0][0])
    assert read is not None and read.getpixel((3, 3)) == 255 and read.getpixel((30, 3)) == 0


def test_a_picture_of_a_mask_is_a_photo_where_nothing_wears_it(tmp_path: Path) -> None:
    put(tmp_path, "gas-mask.png")
    (photo,), notes = find_photos(tmp_path)
    assert photo.path.name == "gas-mask.png" and photo.mask_path is None and notes == []


@pytest.mark.parametrize(
    "name", ["a-condlabel.png", "b-condlabel.png", "b-masklabel.png", "b_mask.png", "B.MASK.JPG", "mask/b.png"]
)
def test_what_is_no_photo_and_no_mask_of_one_is_left_out_with_a_word(tmp_path: Path, name: str) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    mask = Image.new("L", (32, 24))
    mask.paste(255, (0, 0, 16, 24))
    mask.save(tmp_path / name)
    photos, notes = find_photos(tmp_path)
    assert [(photo.path.name, photo.mask_path) for photo in photos] == [("a.jpg", None)]
    assert len(notes) == 1 and Path(name).name in notes[0]


def test_a_photo_has_one_mask_and_the_others_are_no_photos(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    for name in ("a-mask.png", "a-masklabel.png"):
        Image.new("L", (32, 24), 255).save(tmp_path / name)
    (photo,), notes = find_photos(tmp_path)
    assert photo.mask_path == tmp_path / "a-mask.png"
    assert len(notes) == 1 and "a-masklabel.png" in notes[0]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.caption", b"a dog", "a dog"),
        ("a.jpg.txt", b"a dog", "a dog"),
        ("A.TXT", "\ufeffa dog".encode(), "a dog"),
        ("a.txt", "a dog".encode("utf-16-le"), "a dog"),
        ("a.txt", "a dog".encode("utf-32"), "a dog"),
        ("a.txt", "un chien, l\u2019\u00e9t\u00e9".encode("cp1252"), "un chien, l\u2019\u00e9t\u00e9"),
        ("a.json", b'{"caption": "a dog", "width": 5}', "a dog"),
        ("a.json", b'{"tags": ["dog", "snow", 5]}', "dog, snow"),
        ("a.json", b'["dog", "snow"]', "dog, snow"),
    ],
)
def test_captions_of_other_programs_are_read(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes(content)
    (photo,), notes = find_photos(tmp_path)
    assert photo.caption == told and photo.caption_path == tmp_path / name and notes == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "\u96ea\u306e\u4e2d\u306e\u72ac".encode("cp932")), ("a.json", b"{"), ("a.json", b'{"caption": 5}')],
)
def test_a_caption_that_cannot_be_read_is_left_out_with_a_word(tmp_path: Path, name: str, content: bytes) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / name).write_bytes(content)
    (photo,), notes = find_photos(tmp_path)
    assert photo.caption is None and len(notes) == 1 and name in notes[0]


def test_names_with_accents_fit_whichever_system_wrote_them(tmp_path: Path) -> None:
    put(tmp_path, unicodedata.normalize("NFD", "caf\u00e9.png"))
    (tmp_path / unicodedata.normalize("NFC", "caf\u00e9.txt")).write_text("a dog", encoding="utf-8")
    (photo,), notes = find_photos(tmp_path)
    assert photo.caption == "a dog" and notes == []


def test_two_photos_of_one_name_share_their_caption_with_a_word_about_it(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    photos, notes = find_photos(tmp_path)
    assert [photo.caption for photo in photos] == ["a dog", "a dog"]
    assert len(notes) == 1 and "a.txt" in notes[0] and "a.jpg" in notes[0] and "a.png" in notes[0]


def test_names_come_from_the_class() -> None:
    assert clean_name("", "Coffee Mug!") == "my-coffee-mug"
    assert clean_name(None, "犬") == "my-犬"
    assert clean_name("", "!!!") == "my-subject"
    assert clean_name(" rex 2 ", "dog") == "rex 2"


@given(st.text(max_size=300), st.sampled_from(["", ".png", ".a name that is no ending"]))
def test_any_name_of_an_upload_becomes_one_that_every_system_takes(stem: str, ending: str) -> None:
    plain = as_file_name(stem, ending)
    assert is_file_name(plain)
    assert as_file_name(plain) == plain or len(plain) > 100


def test_long_names_do_not_part_a_photo_from_its_caption_and_mask(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    stem = "00012-123456-" + "a very long prompt, as the WebUI names its images " * 4
    files = [put(tmp_path / "up", f"{stem}.png"), tmp_path / "up" / f"{stem}.txt"]
    files[1].write_text("a dog on grass", encoding="utf-8")
    files.append(tmp_path / "up" / f"{stem}-masklabel.png")
    picture().convert("L").save(files[2])
    (photo,), _ = take_in(files, tmp_path / "taken")
    assert photo.caption == "a dog on grass" and photo.mask_path is not None


def test_uploads_keep_captions_and_masks_and_lose_paths(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    files = [put(tmp_path / "one", "a b.png"), put(tmp_path / "two", "a b.png", seed=3)]
    (tmp_path / "one" / "a b.txt").write_text("a dog on grass", encoding="utf-8")
    picture().convert("L").save(tmp_path / "one" / "a b.mask.png")
    files += [tmp_path / "one" / "a b.txt", tmp_path / "one" / "a b.mask.png"]
    photos, notes = take_in(files, tmp_path / "taken")
    assert [(photo.path.name, photo.caption) for photo in photos] == [
        ("2-a b.png", None),
        ("a b.png", "a dog on grass"),
    ]
    assert photos[1].mask_path is not None
    assert all(str(tmp_path) not in note for note in notes)
    assert uploaded(None) == []


def test_a_failed_intake_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for files in ([tmp_path / "notes.txt"], [tmp_path / "gone.png"], []):
        with pytest.raises(UserError):
            take_in(files, tmp_path / "taken")
        assert not (tmp_path / "taken").exists()
    for wrong in ("x", [], ["/etc/passwd"], [{"caption": "no image"}], [5], [None]):
        with pytest.raises(SettingsError):
            take_in_encoded(wrong, tmp_path / "taken")
        assert not (tmp_path / "taken").exists()
