"""A folder of photos: everything that is a picture is taken, and everything else is named and left out."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lib_methods.dreambooth.photos.folder import find_photos
from lib_methods.dreambooth.photos.image import open_photo, prepared, read_photo
from lib_methods.errors import UserError
from tests.dreambooth.models import difference, picture, put


def one(folder: Path) -> Image.Image:
    (photo,), notes = find_photos(folder)
    assert notes == []
    image = read_photo(photo)
    assert image.mode == "RGB" and image.size == (photo.width, photo.height)
    return image


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg", "a.webp", "a.bmp", "a.tif", "a.ppm", "a.tga", "a.jfif"])
def test_common_files_are_read(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, format="JPEG" if name.endswith("jfif") else None)
    assert difference(one(tmp_path), picture()) < 8


def test_a_picture_without_an_ending_or_with_a_wrong_one_is_read(tmp_path: Path) -> None:
    put(tmp_path, "photo", format="PNG")
    put(tmp_path, "other.jpg", format="PNG")
    photos, notes = find_photos(tmp_path)
    assert [photo.path.name for photo in photos] == ["other.jpg", "photo"] and notes == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_upright(tmp_path: Path, orientation: int) -> None:
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = image.transpose(back[orientation]) if orientation > 1 else image
    lying.save(tmp_path / "a.png", exif=exif)
    assert difference(one(tmp_path), image) == 0


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / "a.png")
    assert one(tmp_path).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("mode", ["P", "L", "LA", "1", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        grey = np.asarray(picture().convert("L"), dtype=np.uint16) * 257
        Image.fromarray(grey).save(tmp_path / "a.png")
        expected = picture().convert("L").convert("RGB")
        assert difference(one(tmp_path), expected) < 1.5
    else:
        image = picture().convert(mode)
        image.save(tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"), quality=95)
        assert difference(one(tmp_path), image.convert("RGB")) < 4


def test_a_palette_with_a_see_through_colour_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (32, 32), 3)
    image.putpalette([9, 9, 9] * 256)
    image.save(tmp_path / "a.png", transparency=3)
    assert one(tmp_path).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_an_animation_the_first_picture_counts(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "green")]
    more: dict[str, Any] = {} if name.endswith("tif") else {"duration": 50}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **more)
    assert difference(one(tmp_path), frames[0]) < 4


def test_stray_files_are_named_and_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-1.4 nothing to see")
    (tmp_path / "alone.txt").write_text("a caption of nothing")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "._a.png").write_bytes(b"x")
    (tmp_path / "inside").mkdir()
    photos, notes = find_photos(tmp_path)
    assert [photo.path.name for photo in photos] == ["a.png"]
    assert len(notes) == 3
    assert any("notes.pdf" in note for note in notes) and any("alone.txt" in note for note in notes)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"GIF89a"])
def test_a_broken_photo_is_named_without_its_folder(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "good.png")
    (tmp_path / "bad.jpg").write_bytes(content)
    photos, notes = find_photos(tmp_path)
    assert [photo.path.name for photo in photos] == ["good.png"]
    assert len(notes) == 1 and '"bad.jpg"' in notes[0] and str(tmp_path) not in notes[0]


@pytest.mark.parametrize(
    ("data", "kind"), [(b"<html>no entry</html>", "an HTML file"), (b"version https://git-lfs.x", "a Git LFS pointer")]
)
def test_a_photo_that_is_something_else_is_called_so(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(UserError, match=f'"a.jpg": This is {kind}'):
        find_photos(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif"])
def test_a_photo_that_is_cut_short_is_found_before_the_training(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    noise.save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="None of the photos can be read"):
        find_photos(tmp_path)


@given(cut=st.integers(0, 400), junk=st.binary(max_size=64), place=st.integers(0, 400))
def test_no_damage_gets_past_as_anything_but_a_warning(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes, place: int
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    put(folder, "good.png", 24, 24)
    data = put(folder, "bad.jpg", 24, 24).read_bytes()
    data = data[: len(data) - cut] if cut < len(data) else b""
    (folder / "bad.jpg").write_bytes(data[:place] + junk + data[place + len(junk) :])
    photos, notes = find_photos(folder)
    assert len(photos) + len(notes) == 2
    for photo in photos:
        assert read_photo(photo).size == (photo.width, photo.height)


def test_no_photos_and_no_folder_are_different_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no photos"):
        find_photos(tmp_path)
    with pytest.raises(UserError, match="does not exist") as caught:
        find_photos(tmp_path / "secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError):
        find_photos(put(tmp_path, "a.png"))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be as large, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(30_000, 30_000), (9_000, 9_000), (60_000, 10)])
def test_decompression_bombs_are_refused_unread(tmp_path: Path, size: tuple[int, int]) -> None:
    put(tmp_path, "good.png")
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    photos, notes = find_photos(tmp_path)
    assert len(photos) == 1
    assert '"bomb.png"' in notes[0] and "too many pixels" in notes[0]


def test_a_huge_jpeg_of_a_camera_comes_at_a_fraction(tmp_path: Path) -> None:
    Image.new("RGB", (9216, 6144), "teal").save(tmp_path / "a.jpg")
    (photo,), notes = find_photos(tmp_path)
    assert (photo.width, photo.height) == (9216, 6144) and notes == []
    assert read_photo(photo).size == (4608, 3072)


def test_a_photo_of_the_largest_cameras_is_taken_in_any_format(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(9504, 6336))
    with prepared(tmp_path / "a.png") as opened:
        assert opened.size == (9504, 6336)


def test_tiny_pictures_are_left_out_with_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "icon.png", 15, 40)
    photos, notes = find_photos(tmp_path)
    assert len(photos) == 1 and "16 pixels" in notes[0] and "icon.png" in notes[0]


def test_only_tiny_pictures_are_an_error_of_their_own(tmp_path: Path) -> None:
    put(tmp_path, "icon.png", 15, 40)
    with pytest.raises(UserError, match="too small"):
        find_photos(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@given(exif=st.binary(max_size=120))
def test_metadata_of_any_kind_is_no_error(tmp_path_factory: pytest.TempPathFactory, exif: bytes) -> None:
    folder = tmp_path_factory.mktemp("exif")
    put(folder, "good.png", 24, 24)
    put(folder, "odd.jpg", 24, 24, exif=b"Exif\0\0" + exif)
    put(folder, "tiff.jpg", 24, 24, exif=b"Exif\0\0MM\0*\0\0\0\x08" + exif)
    photos, notes = find_photos(folder)
    assert len(photos) + len(notes) == 3
    assert {read_photo(photo).size for photo in photos} == {(24, 24)}


@given(data=st.binary(max_size=600))
def test_junk_is_never_taken_for_a_photo(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("junk")
    put(folder, "good.png", 24, 24)
    for name in ("a.jpg", "b", "c.doc"):
        (folder / name).write_bytes(data)
    photos, notes = find_photos(folder)
    assert len(photos) == 1
    for name in ("a.jpg", "b", "c.doc"):
        assert any(f'"{name}"' in note for note in notes)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_and_those_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.png").symlink_to(put(tmp_path / "real", "x.png"))
    (tmp_path / "linked" / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "linked" / "c").symlink_to(tmp_path / "linked", target_is_directory=True)
    photos, notes = find_photos(tmp_path / "linked")
    assert [photo.path.name for photo in photos] == ["a.png"]
    assert len(notes) == 2 and "b.png" in notes[0] and '"c"' in notes[1]


FOREIGN = [("a.HEIC", "pillow-heif"), ("a.avif", "AVIF"), ("a.jxl", "JPEG XL"), ("a.nef", "Raw"), ("a.psd", "PNG")]


@pytest.mark.parametrize(("name", "said"), FOREIGN)
def test_a_folder_of_files_that_pillow_does_not_read_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    plain = {ending: form for ending, form in Image.registered_extensions().items() if form not in ("HEIF", "AVIF")}
    monkeypatch.setattr(Image, "registered_extensions", lambda: plain)
    (tmp_path / name).write_bytes(b"nothing that can be read")
    with pytest.raises(UserError, match=said) as caught:
        find_photos(tmp_path)
    assert name in str(caught.value)
    put(tmp_path, "b.png")
    photos, notes = find_photos(tmp_path)
    assert len(photos) == 1 and len(notes) == 1 and name in notes[0] and said in notes[0]


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    put(tmp_path, "a.heic", quality=95)
    assert difference(one(tmp_path), picture()) < 6


def test_a_raw_file_is_not_trained_on_as_the_thumbnail_in_it(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.dng")
    with pytest.raises(UserError, match="Raw camera files"):
        find_photos(tmp_path)


def test_a_folder_of_folders_says_which_to_choose(tmp_path: Path) -> None:
    (tmp_path / "rex").mkdir()
    put(tmp_path / "rex", "a.png")
    with pytest.raises(UserError, match='inside it: "rex"'):
        find_photos(tmp_path)
    (tmp_path / "project" / "img" / "10_ohwx dog").mkdir(parents=True)
    with pytest.raises(UserError, match='inside it: "img"'):
        find_photos(tmp_path / "project")


def test_useless_masks_are_warned_of_and_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    put(tmp_path, "b.jpg")
    Image.new("L", (32, 24)).save(tmp_path / "a.mask.png")
    (tmp_path / "b.mask.png").write_bytes(b"junk")
    photos, notes = find_photos(tmp_path)
    assert [photo.mask_path for photo in photos] == [None, None]
    assert len(notes) == 2 and "all black" in notes[0] and "b.mask.png" in notes[1]


def test_the_order_is_that_of_the_names_whatever_the_disk_says(tmp_path: Path) -> None:
    for name in ("c.png", "A.png", "b.png"):
        put(tmp_path, name)
    assert [photo.path.name for photo in find_photos(tmp_path)[0]] == ["A.png", "b.png", "c.png"]


def test_a_photo_that_vanishes_or_breaks_later_is_a_clear_error(tmp_path: Path) -> None:
    photo = open_photo(put(tmp_path, "a.png"))
    photo.path.write_bytes(b"junk")
    with pytest.raises(UserError, match='"a.png"'):
        read_photo(photo)
    photo.path.unlink()
    with pytest.raises(UserError, match='"a.png"') as caught:
        read_photo(photo)
    assert str(tmp_path) not in str(caught.value)
