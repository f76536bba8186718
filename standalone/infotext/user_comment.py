"""Texts of image files, in every encoding that occurs: PNG's, and Exif's user comment of JPEG, WebP and AVIF.

Eight bytes of a user comment name its encoding, but "UNICODE" says neither which one nor the order of its bytes, and
programs differ: the WebUI writes UTF-16 with the high byte first, Windows programs with the low byte first, some UTF-8.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from PIL import Image

USER_COMMENT, EXIF_IFD = 0x9286, 0x8769
_UNICODE = b"UNICODE\0"
_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
_LOOKED_AT = 8192  # bytes at each end; the parameters are at the last one
_STRANGE = ("Cc", "Cn", "Co", "Cs")


def exif_of(infotext: str) -> bytes:
    """An Exif block with `infotext` as its user comment, as the WebUI writes it."""
    exif = Image.Exif()
    exif.endian = ">"  # the comment's own order of bytes: what goes by the block's reads it, too
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = _UNICODE + infotext.encode("utf-16-be")
    return exif.tobytes()


def comment_of(image: Image.Image) -> str | None:
    """The user comment of an image, None without one or with damaged Exif data."""
    try:
        exif = image.getexif()
        raw = exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
    except Exception:  # Pillow has no common base class for what broken Exif brings up
        return None
    return decode(raw, big_endian=exif.endian == ">")


def png_text(text: str) -> str:
    """A PNG's text; some programs write UTF-8 where the format wants Latin-1."""
    if type(text) is str and not text.isascii():  # not of an iTXt chunk, whose text Pillow marks with its own type
        try:
            text = text.encode("latin-1").decode("utf-8")
        except ValueError:
            pass
    return text.rstrip("\0")


def decode(raw: Any, big_endian: bool) -> str | None:
    """The text of a user comment in any of the encodings that occur; None where it is empty.

    big_endian: the order of bytes in the Exif block, which decides where the text itself does not.
    """
    if isinstance(raw, bytes):
        mark, body = raw[:8].rstrip(b"\0 ").upper(), raw[8:]
        if mark == b"UNICODE":
            text = _unicode(body, big_endian)
        elif mark == b"JIS":
            text = body.decode("iso2022_jp" if b"\x1b" in body else "shift_jis", errors="replace")
        else:
            text = _plain(body if mark in (b"ASCII", b"") else raw, big_endian)
    else:
        text = raw if isinstance(raw, str) else ""
    text = text.strip("\0")
    return text if text.strip() else None


def _plain(data: bytes, big_endian: bool) -> str:
    """UTF-8, or Latin-1 where it cannot be that; UTF-16 where there are zeros."""
    if data.startswith(tuple(_BOMS)) or b"\0" in data.strip(b"\0"):
        return _unicode(data, big_endian)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unicode(data: bytes, big_endian: bool) -> str:
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data[len(bom) :].decode(encoding, errors="ignore")
    orders = ("utf-16-be", "utf-16-le") if big_endian else ("utf-16-le", "utf-16-be")
    # on a tie the block's own order, and UTF-16 before UTF-8
    best = max((*orders, "utf-8"), key=lambda encoding: _plausible(data, encoding))
    return data.decode(best, errors="ignore")


def _plausible(data: bytes, encoding: str) -> float:
    """How much `data` looks like text in this encoding: the share of ASCII in it less that of what no text has.

    Every infotext has ASCII, and read in a wrong order none is left of it.
    """
    if len(data) > 2 * _LOOKED_AT:
        data = data[:_LOOKED_AT] + data[(len(data) - _LOOKED_AT) & ~1 :]
    text = data.decode(encoding, errors="replace").rstrip("\0")
    if not text:
        return 0.0
    usual = sum(" " <= char <= "~" or char in "\t\r\n" for char in text)
    strange = sum(char == "\ufffd" or unicodedata.category(char) in _STRANGE for char in text) - sum(
        char in "\t\r\n" for char in text
    )
    if encoding == "utf-8":
        if "\0" in text:
            return -1.0
        if not strange and len(text) - usual >= 3:  # letters of more than one byte, all well formed
            usual += 1
        elif " " not in text and "\n" not in text:  # two letters of Chinese may be four of ASCII
            usual = 0
    return (usual - strange) / len(text)
