"""Whatever kind of image comes in, its pixels are those that a viewer shows; thumbnails of stored images."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from lib_methods.pictures import convert
from lib_methods.pictures.convert import ImageError, open_image, to_mask, to_rgb, to_rgba
from lib_methods.pictures.store import ImageStore, StoreError, thumbnail
from tests.shared.pictures import as_file, noisy

RAMP = np.linspace(0, 255, 64).round().reshape(8, 8)
"""Grey from black to white, the reference of every kind of grey."""


def ramp(scale: float, kind: Any) -> Image.Image:
    return Image.fromarray((RAMP * scale).astype(kind))


def png(depth: int, colour_type: int, rows: Sequence[bytes], width: int, transparent: bytes = b"") -> bytes:
    """A PNG file of any bit depth, by hand: Pillow writes few of them."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    colour = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + colour + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_holes() -> Image.Image:
    """Float values with NaN and infinities, black and white."""
    values = (RAMP / 255).astype(np.float32)
    values[0, 0], values[-1, -1] = np.nan, np.inf
    return Image.fromarray(values)


GREYS = {
    "L": as_file(ramp(1, np.uint8)),
    "16-bit PNG": as_file(ramp(257, np.uint16)),
    "16-bit TIFF": as_file(ramp(257, np.uint16), "TIFF"),
    "16-bit big-endian TIFF": as_file(ramp(257, ">u2"), "TIFF"),
    "32-bit TIFF of 8 bits": as_file(ramp(1, np.int32), "TIFF"),
    "32-bit TIFF of 16 bits": as_file(ramp(257, np.int32), "TIFF"),
    "32-bit TIFF": as_file(ramp((2**31 - 1) / 255, np.int32), "TIFF"),
    "float TIFF to 1": as_file(ramp(1 / 255, np.float32), "TIFF"),
    "float TIFF to 255": as_file(ramp(1, np.float32), "TIFF"),
    "float TIFF to 65535": as_file(ramp(257, np.float32), "TIFF"),
    "float TIFF with NaN and inf": as_file(with_holes(), "TIFF"),
    "LA": as_file(ramp(1, np.uint8).convert("LA")),
    "16-bit LA": png(16, 4, [b"".join(struct.pack(">2H", int(v) * 257, 65535) for v in row) for row in RAMP], 8),
    "CMYK": as_file(Image.merge("CMYK", [Image.new("L", (8, 8))] * 3 + [ImageOps.invert(ramp(1, np.uint8))]), "TIFF"),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_of_every_depth_is_the_same_grey(kind: str) -> None:
    opened = open_image(GREYS[kind])
    found = np.asarray(to_rgb(opened)).astype(int)
    assert found.shape == (8, 8, 3)
    assert np.abs(found - RAMP[..., None]).max() <= 1
    assert np.abs(np.asarray(to_mask(opened)).astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I",
        "I;16",
        "I;16B",
        "F",
    ],
)
def test_no_mode_of_pillow_is_refused(mode: str) -> None:
    for size in ((1, 1), (7, 3)):
        image = Image.new(mode, size)
        assert (to_rgb(image).mode, to_rgb(image).size) == ("RGB", size)
        assert (to_mask(image).mode, to_mask(image).size) == ("L", size)


def test_dark_sixteen_bits_stay_dark() -> None:
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert to_rgb(dark).getpixel((0, 0)) == (1, 1, 1)


CLEAR, SOLID = (0, 0), (1, 0)
HOLES: dict[str, bytes] = {
    "grey": png(8, 0, [bytes([7, 200])], 2, struct.pack(">H", 7)),
    "grey of 1 bit": png(1, 0, [bytes([0b10000000])], 2, struct.pack(">H", 1)),
    "grey of 2 bits": png(2, 0, [bytes([0b01100000])], 2, struct.pack(">H", 1)),
    "grey of 4 bits": png(4, 0, [bytes([0x12])], 2, struct.pack(">H", 1)),
    "grey of 16 bits": png(16, 0, [struct.pack(">2H", 500, 50000)], 2, struct.pack(">H", 500)),
    "RGB": png(8, 2, [bytes([1, 2, 3, 200, 2, 3])], 2, struct.pack(">3H", 1, 2, 3)),
    "RGB of 16 bits": png(16, 2, [struct.pack(">6H", 500, 0, 0, 50000, 0, 0)], 2, struct.pack(">3H", 500, 0, 0)),
    "grey and alpha": png(8, 4, [bytes([7, 0, 200, 255])], 2),
    "grey and alpha of 16 bits": png(16, 4, [struct.pack(">4H", 7, 0, 50000, 65535)], 2),
    "RGBA": png(8, 6, [bytes([1, 2, 3, 0, 200, 2, 3, 255])], 2),
    "RGBA of 16 bits": png(16, 6, [struct.pack(">8H", 1, 2, 3, 0, 50000, 2, 3, 65535)], 2),
    "palette": as_file(Image.frombytes("P", (2, 1), b"\0\1"), transparency=b"\0\xff"),
    "GIF": as_file(Image.frombytes("P", (2, 1), b"\0\1"), "GIF", transparency=0),
    "WebP": as_file(Image.frombytes("RGBA", (2, 1), bytes([1, 2, 3, 0, 200, 2, 3, 255])), "WEBP", lossless=True),
    "premultiplied TIFF": as_file(
        Image.frombytes("RGBA", (2, 1), bytes([0, 0, 0, 0, 200, 2, 3, 255])), "TIFF", tiffinfo={338: 1}
    ),
}


@pytest.mark.parametrize("kind", HOLES)
def test_what_is_transparent_is_transparent_in_images_and_masks(kind: str) -> None:
    opened = open_image(HOLES[kind])
    found = to_rgba(opened)
    assert found.mode == "RGBA"
    assert found.getpixel(CLEAR)[3] == 0  # type: ignore[index]
    assert found.getpixel(SOLID)[3] == 255  # type: ignore[index]
    assert to_rgb(opened).getpixel(CLEAR) == (255, 255, 255)
    assert to_rgb(opened, (10, 20, 30)).getpixel(CLEAR) == (10, 20, 30)
    assert to_rgb(opened).getpixel(SOLID) == to_rgb(opened, (10, 20, 30)).getpixel(SOLID)
    mask = to_mask(opened)
    assert (mask.getpixel(CLEAR), mask.getpixel(SOLID)) == (0, 255)


def test_an_opaque_alpha_channel_says_nothing_about_a_mask() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (255, 255, 255, 255))
    assert [to_mask(image).getpixel((x, 0)) for x in (0, 1)] == [0, 255]
    assert to_rgba(image).mode == "RGB"


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_masks_stand_upright(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_file(noisy(width=24, height=16).convert("L"), file_format, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert to_rgb(open_image(data)).tobytes() == shown.convert("RGB").tobytes()
    assert to_mask(open_image(data)).tobytes() == shown.convert("L").tobytes()
    again = to_rgba(open_image(data), with_texts=True)
    assert to_rgb(again).tobytes() == shown.convert("RGB").tobytes(), "nothing is turned twice"


def test_colours_of_a_wide_profile_become_srgb() -> None:
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))  # of another colour space: to be left aside
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = noisy()
    for profile in (linear.tobytes(), srgb.tobytes(), b"rubbish"):
        assert to_rgb(open_image(as_file(image, icc_profile=profile))).tobytes() == image.tobytes()
    changed = to_rgb(open_image(as_file(Image.new("RGB", (4, 4), (200, 40, 40)), icc_profile=_swapped())))
    assert changed.getpixel((0, 0)) == (40, 200, 40)
    mask = open_image(as_file(Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=_swapped()))
    assert to_mask(mask).getpixel((0, 0)) == 76, "a mask's numbers are not colours"


def _swapped() -> bytes:
    """sRGB's profile with the tags of its red and green primaries exchanged, under another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = data.replace(b"rXYZ", b"_XYZ").replace(b"gXYZ", b"rXYZ").replace(b"_XYZ", b"gXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00")]
    data = as_file(
        frames[0],
        file_format,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if file_format == "WEBP" else {}),
    )
    assert to_rgb(open_image(data)).getpixel((3, 3)) == (255, 0, 0)


def test_phone_photos_of_two_frames_are_read() -> None:
    data = as_file(Image.new("RGB", (8, 8), "#808080"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert to_rgb(open_image(data)).getpixel((3, 3)) == (128, 128, 128)


def test_texts_stay_where_a_reader_asks_for_them() -> None:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat")
    opened = open_image(as_file(noisy(), pnginfo=info))
    assert to_rgba(opened, with_texts=True).info == {"parameters": "a cat"}
    assert to_rgba(opened).info == {}


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", as_file(noisy())[:200], as_file(noisy(width=64, height=64), "JPEG")[:300]]
)
def test_what_is_cut_short_gives_a_sentence(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"\.$"):
        to_rgb(open_image(data))
    with pytest.raises(ImageError, match=r"\.$"):
        to_mask(open_image(data))


def test_no_pixel_is_decoded_before_the_size_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*args: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    for width, height in ((convert.MAX_SIDE + 1, 1), (8193, 8193), (0, 5), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(ImageError):
            open_image(png(8, 2, [b""], width) if height == 1 else claims(width, height))
    eight = [open_image(claims(8000, 8000)) for _ in range(8)]
    with pytest.raises(ImageError, match="512 megapixels"):
        convert.check_total(eight)
    convert.check_total(eight[:2])


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"\0\0\0\x18ftypmif1", "a HEIC"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "an SVG"),
        (b"\xef\xbb\xbf  <SVG width='4'>", "an SVG"),
        (b"8BPS\0\1", "a PSD"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
        (b"%PDF-1.7", "a PDF"),
        (b"<!DOCTYPE html><html>", "an HTML"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, head: bytes, kind: str) -> None:
    data = head + b"\0" * 40
    file = tmp_path / "photo.png"
    file.write_bytes(data)
    for source in (data, file, base64.b64encode(data).decode()):
        with pytest.raises(ImageError) as caught:
            open_image(source)
        wanted = (f"This is {kind} file. Save it", f"This is {kind} file, not an image. Choose")
        assert str(caught.value).startswith(wanted[kind in ("a video", "an HTML")])


@pytest.mark.parametrize("head", [b"just text", b"\x89PNG\r\n\x1a\n", b"<?xml ?><a>", b"\0\0\0\x18ftypavif"])
def test_a_damaged_file_is_called_by_no_name(head: bytes) -> None:
    with pytest.raises(ImageError, match="not one of PNG"):
        open_image(head + b"\0" * 40)


def claims(width: int, height: int) -> bytes:
    """A PNG file whose header names a size that its data does not have."""
    data = bytearray(png(16, 0, [b"\0"], 1))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize("form", ["plain", "url safe", "no padding", "lines", "in a URL", "data URL", "wrong type"])
def test_every_form_of_base64_is_read(form: str) -> None:
    data = as_file(noisy(), "PNG")
    text = base64.b64encode(data).decode()
    url = "data:image/png;base64,"
    forms = {
        "plain": text,
        "url safe": base64.urlsafe_b64encode(data).decode(),
        "no padding": text.rstrip("="),
        "lines": "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        "in a URL": url + quote(text),
        "data URL": url + text,
        "wrong type": "data:image/jpeg;base64," + text,
    }
    assert {"+", "/"} <= set(text)
    assert open_image(forms[form]).tobytes() == noisy().tobytes()


def shown(url: str) -> Image.Image:
    head, _, body = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


@pytest.mark.parametrize(("side", "size"), [(50, (50, 25)), (20, (20, 10)), (500, (100, 50))])
def test_the_longer_side_is_at_most_what_was_asked_for(tmp_path: Path, side: int, size: tuple[int, int]) -> None:
    store = ImageStore(tmp_path)
    small = shown(thumbnail(store, store.add(Image.new("RGB", (100, 50), "#c04020")), side))
    assert small.size == size
    assert np.abs(np.asarray(small, int) - (0xC0, 0x40, 0x20)).max() < 5


def test_a_file_that_changed_or_went_is_not_shown_as_it_was(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    name = store.add(Image.new("RGB", (8, 8), "red"))
    thumbnail(store, name, 8)
    store.path(name).write_bytes(b"damaged")
    with pytest.raises(StoreError, match="damaged"):
        thumbnail(store, name, 8)
    store.path(name).unlink()
    with pytest.raises(OSError):
        thumbnail(store, name, 8)


def test_a_path_names_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    with pytest.raises(StoreError, match="not by a file name or path"):
        thumbnail(ImageStore(tmp_path / "images"), "../secret", 8)
