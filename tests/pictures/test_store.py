"""The image store keeps its promises: content names the image, nothing leaves the folder, bad files give
sentences."""

from __future__ import annotations

import base64
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.pictures.store import MAX_SIDE, ImageStore, StoreError, image_id, is_image_id
from tests.shared.pictures import as_file, data_url, noisy, stored

PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows\\win.ini",
    "C:\\x.png",
    "a" * 64 + "/../x",
    "A" * 64,
    "a" * 15,
    "a" * 64 + "\n",
    "",
    "con",
    "\x00" * 64,
    "file:///etc/passwd",
]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def test_a_picture_comes_back_pixel_for_pixel_from_every_form_it_may_be_sent_in(store: ImageStore) -> None:
    image = noisy()
    raw = as_file(image)
    text = base64.b64encode(raw).decode()
    names = {
        store.add(form)
        for form in (image, raw, text, text.rstrip("="), "\n".join([text[:40], text[40:]]), data_url(image))
    }
    assert len(names) == 1
    name = names.pop()
    assert is_image_id(name)
    assert name == image_id(image)
    assert np.array_equal(np.asarray(store.load(name)), np.asarray(image))


def test_the_same_pixels_in_another_shape_are_another_picture(store: ImageStore) -> None:
    wide = noisy(width=24, height=16)
    tall = Image.frombytes("RGB", (16, 24), wide.tobytes())
    assert store.add(wide) != store.add(tall)


def test_the_folder_appears_with_the_first_picture_and_holds_only_finished_files(store: ImageStore) -> None:
    assert stored(store) == ()
    assert not store.folder.exists()
    name = store.add(noisy())
    assert [path.name for path in store.folder.iterdir()] == [f"{name}.png"]


def test_list_exists_and_delete_agree(store: ImageStore) -> None:
    names = [store.add(noisy(seed)) for seed in range(3)]
    (store.folder / "notes.txt").write_text("not a picture")
    assert set(stored(store)) == set(names)
    store.path(names[0]).unlink()
    assert not store.exists(names[0])
    assert set(stored(store)) == set(names[1:])
    with pytest.raises(StoreError, match="not on this machine"):
        store.load(names[0])


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_never_an_id(store: ImageStore, name: str) -> None:
    for method in (store.load, store.exists, store.path):
        with pytest.raises(StoreError, match="hash"):
            method(name)


@given(name=st.text(max_size=80))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_reaches_a_file_outside_the_folder(store: ImageStore, name: str) -> None:
    try:
        assert store.exists(name) is False
    except StoreError:
        assert not is_image_id(name)


@given(data=st.binary(max_size=400))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rubbish_gives_a_sentence_and_leaves_no_file(store: ImageStore, data: bytes) -> None:
    with pytest.raises(StoreError, match=r"\.$"):
        store.add(data)
    assert stored(store) == ()


@given(cut=st.integers(0, 10_000), flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=8))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_files_are_read_or_refused_with_a_sentence(
    store: ImageStore, file_format: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(as_file(noisy(width=40, height=30), file_format))
    for position, value in flips:
        data[position % len(data)] ^= value
    try:
        name = store.add(bytes(data[: len(data) - cut % len(data)]))
    except StoreError:
        return
    assert store.load(name).mode == "RGB"


def _png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("width", "height"), [(MAX_SIDE + 1, 8), (8, MAX_SIDE + 1), (8000, 8000), (2**31 - 1, 2**31 - 1)]
)
def test_decompression_bombs_are_refused_before_they_are_decoded(store: ImageStore, width: int, height: int) -> None:
    with pytest.raises(StoreError):
        store.add(_png_that_claims(width, height))


def test_programs_in_disguise_are_not_decoded(store: ImageStore) -> None:
    with pytest.raises(StoreError, match="an EPS file"):
        store.add(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    with pytest.raises(StoreError, match="data URL"):
        store.add("data:text/html;base64,PGI+")


def test_exif_orientation_is_applied(store: ImageStore) -> None:
    image = noisy(width=24, height=16)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned = store.load(store.add(as_file(image, "PNG", exif=exif)))
    assert turned.size == (16, 24)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_transparent_parts_become_white(store: ImageStore) -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2] = (10, 20, 30, 255)
    loaded = np.asarray(store.load(store.add(as_file(Image.fromarray(pixels, "RGBA")))))
    assert (loaded[:2] == (10, 20, 30)).all()
    assert (loaded[2:] == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_becomes_eight_bit_rgb(store: ImageStore, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
    else:
        image = noisy(width=8, height=8).convert(mode)
    loaded = np.asarray(store.load(store.add(image)))
    assert loaded.shape == (8, 8, 3)
    assert loaded.dtype == np.uint8
    if mode == "I;16":
        assert loaded[0, 0, 0] == 0
        assert loaded[-1, -1, 0] == 255
        assert 100 < loaded[4, 0, 0] < 155


def test_a_file_whose_pixels_changed_is_reported_not_used(store: ImageStore) -> None:
    name = store.add(noisy(1))
    (store.folder / f"{name}.png").write_bytes(as_file(noisy(2)))
    with pytest.raises(StoreError, match="damaged"):
        store.load(name)
    (store.folder / f"{name}.png").write_bytes(b"")
    with pytest.raises(StoreError, match="damaged"):
        store.load(name)


def test_a_folder_that_cannot_be_made_gives_a_sentence_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        ImageStore(tmp_path / "file" / "images").add(noisy())
    assert str(tmp_path) not in str(caught.value)


def test_many_threads_may_add_and_load_the_same_pictures(store: ImageStore) -> None:
    images = [noisy(seed, 64, 64) for seed in range(4)]

    def work(_: int) -> bool:
        return all(store.load(store.add(image)).tobytes() == image.tobytes() for image in images * 3)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert len(list(store.folder.iterdir())) == len(images)


def test_one_request_brings_no_more_pixels_than_allowed_in_all(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = store.for_request(most=3 * 24 * 16)
    names = [limited.add(noisy(seed)) for seed in range(3)]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *args: pytest.fail("decoded"))
    with pytest.raises(StoreError, match="too many pixels in total"):
        limited.add(as_file(noisy(4)))
    monkeypatch.undo()
    assert set(stored(store)) == set(names)
    assert store.for_request(most=24 * 16).add(noisy(4)), "the next request has its own share"


def test_likes_and_dislikes_of_one_request_share_its_pixels(store: ImageStore) -> None:
    from lib_methods.fabric.settings import CONTROLS as FABRIC
    from lib_methods.image_cfg.settings import CONTROLS as INSTRUCT

    large = base64.b64encode(as_file(Image.new("1", (6000, 6000)))).decode()
    with pytest.raises(StoreError, match="too many pixels in total"):
        FABRIC.request([{"likes": [large] * 2, "dislikes": [large] * 2}], store)
    with pytest.raises(StoreError, match="too many pixels in total"):
        INSTRUCT.request([{"image": [large] * 3, "mask": large}], store)
    kept = stored(store)[0]
    assert FABRIC.request([{"likes": [kept]}], store) is not None, "what is stored already does not count"


def test_the_beginning_of_an_id_names_the_picture(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    name = store.add(Image.new("RGB", (4, 4), "red"))
    short = store.shorten(name)
    assert short == name[:16]
    assert (store.find(short), store.exists(short), store.path(short)) == (name, True, store.path(name))
    assert store.load(short).getpixel((0, 0)) == (255, 0, 0)
    assert store.find("0" * 16) == "0" * 16
    assert not store.exists("0" * 16)


def test_a_beginning_of_several_ids_is_refused_and_never_written(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    name = store.add(Image.new("RGB", (4, 4), "red"))
    twin = name[:20] + ("0" if name[20] != "0" else "1") + name[21:]
    store.path(name).with_stem(twin).write_bytes(b"another")
    with pytest.raises(StoreError, match="2 images on this machine have a hash that begins with"):
        store.exists(name[:16])
    assert store.shorten(name) == name[:21]
    assert store.find(name[:21]) == name
