"""Images: grids, resizing, saving with infotext, reading it back.

Nothing that was generated is lost to a limit of its file format; what could not be written as wished is said.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor, PngImagePlugin

from lib_methods.errors import reason
from lib_methods.files import replacing
from lib_methods.pictures.convert import ImageError, open_image, to_rgb, to_rgba
from standalone.host import callbacks, errors, upscalers
from standalone.host.shared import opts
from standalone.infotext import text as infotexts
from standalone.infotext import user_comment

PNG = ".png"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_WITH_EXIF = (".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".tif", ".tiff")
_CANNOT = (ValueError, TypeError, KeyError, OverflowError, SystemError, struct.error)


@dataclass(frozen=True)
class ImageFile:
    """data: the file's bytes. extension: its ending, ".png" where the wanted format could not be used. text_is_beside:
    whether the infotext is not in it and belongs into a text file. note: a sentence about what is not as wished."""

    data: bytes
    extension: str
    text_is_beside: bool = False
    note: str = ""


def png(image: Image.Image, texts: Mapping[str, Any]) -> bytes:
    """A PNG of an image of any mode, with its texts; what no text may hold (lone surrogates) becomes "?"."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        text = writable(str(value))  # Latin-1 beyond ASCII could be UTF-8 as well
        add = info.add_text if text.isascii() else info.add_itxt
        add(key.encode("latin-1", "replace").decode("latin-1")[:79] or "?", text)
    buffer = io.BytesIO()
    (image if image.mode in _PNG_MODES else to_rgba(image)).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def writable(text: str) -> str:
    """The text with "?" in the place of what UTF-8 cannot write."""
    return text.encode("utf-8", "replace").decode("utf-8")


def encode(
    image: Image.Image, extension: str, infotext: str | None, texts: Mapping[str, Any], quality: int
) -> ImageFile:
    """The image in the format of `extension`.

    infotext: goes into the Exif comment of formats other than PNG; None where none is wanted. texts: all of a PNG's,
    the infotext among them. quality: of JPEG, WebP and AVIF, 1 to 100.
    """
    extension = extension.lower()
    if extension == PNG:
        return ImageFile(png(image, texts), PNG)
    name = Image.registered_extensions().get(extension)
    if name is None or name not in Image.SAVE:
        return ImageFile(png(image, texts), PNG, note=f'There is no image format "{extension.lstrip(".")}".')
    rgb = to_rgb(image)
    if infotext is None or extension in _WITH_EXIF:
        exif = None if infotext is None else user_comment.exif_of(writable(infotext))
        data = _saved(rgb, name, quality, exif)
        if data is not None:
            return ImageFile(data, extension)
    data = _saved(rgb, name, quality, None)
    if data is None:
        note = f"An image of {image.width}x{image.height} pixels cannot be saved as {name}."
        return ImageFile(png(image, texts), PNG, note=note)
    why = f"The infotext is too long for {name}." if extension in _WITH_EXIF else f"{name} files hold no infotext."
    return ImageFile(data, extension, text_is_beside=True, note=why)


def _saved(image: Image.Image, name: str, quality: int, exif: bytes | None) -> bytes | None:
    """The file; None where its format cannot hold the image, or not with this Exif."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name, quality=quality, **({} if exif is None else {"exif": exif}))
    except (OSError, *_CANNOT):  # in memory there is no disk to blame
        return None
    return buffer.getvalue()


LANCZOS = Image.Resampling.LANCZOS
_NO_TEXTS = (
    "exif jfif jfif_version jfif_unit jfif_density dpi icc_profile photoshop loop background timestamp duration "
    "progressive progression chromaticity"
).split()
_NUMBERED = re.compile(r"^(\d+)")


def image_grid(imgs: Sequence[Image.Image], batch_size: int = 1, rows: int | None = None) -> Image.Image:
    """All images on one sheet, about square unless the settings say otherwise."""
    if rows is None:
        rows = opts.n_rows if opts.n_rows > 0 else batch_size if opts.n_rows == 0 else round(math.sqrt(len(imgs)))
    rows = max(1, min(int(rows), len(imgs)))
    params = callbacks.ImageGridLoopParams(list(imgs), math.ceil(len(imgs) / rows), rows)
    callbacks.image_grid_callback(params)
    width, height = max(i.width for i in imgs), max(i.height for i in imgs)
    grid = Image.new("RGB", (params.cols * width, params.rows * height), "white")
    for index, image in enumerate(params.imgs):
        left = index % params.cols * width + (width - image.width) // 2
        top = index // params.cols * height + (height - image.height) // 2
        grid.paste(image, (left, top))
    return grid


def flatten(img: Image.Image, bgcolor: str) -> Image.Image:
    """`img` as RGB; what is transparent takes the colour `bgcolor`."""
    return to_rgb(img, ImageColor.getrgb(bgcolor))


def _resize(im: Image.Image, width: int, height: int, upscaler_name: str | None) -> Image.Image:
    """To exactly this size; by the upscaler where the image grows."""
    scale = max(width / im.width, height / im.height)
    upscaler = upscalers.find_upscaler(upscaler_name or "")
    if upscaler is not None and upscaler.scaler is not None and im.mode != "L" and scale > 1.0:
        im = upscaler.scaler.upscale(im, scale, upscaler.data_path)
    return im if im.size == (width, height) else im.resize((width, height), resample=LANCZOS)


def resize_image(
    resize_mode: int, im: Image.Image, width: int, height: int, upscaler_name: str | None = None
) -> Image.Image:
    """`im` at width x height. Mode 0 stretches, 1 crops, 2 fills what is missing with the edge's colours."""
    upscaler_name = upscaler_name or opts.upscaler_for_img2img
    if resize_mode == 0:
        return _resize(im, width, height, upscaler_name)
    wide = width * im.height > height * im.width  # the target is wider than the image
    if (resize_mode == 1) == wide:
        inner = width, max(1, im.height * width // im.width)
    else:
        inner = max(1, im.width * height // im.height), height
    resized = _resize(im, *inner, upscaler_name)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    result = Image.new("RGB" if im.mode != "L" else "L", (width, height))
    result.paste(resized, (left, top))
    if resize_mode == 2:
        right, bottom = width - left - inner[0], height - top - inner[1]
        for box, size, where in (
            ((0, 0, inner[0], 1), (inner[0], top), (left, 0)),
            ((0, inner[1] - 1, inner[0], inner[1]), (inner[0], bottom), (left, top + inner[1])),
            ((0, 0, 1, inner[1]), (left, inner[1]), (0, top)),
            ((inner[0] - 1, 0, inner[0], inner[1]), (right, inner[1]), (left + inner[0], top)),
        ):
            if min(size) > 0:
                result.paste(resized.crop(box).resize(size), where)
    return result


def _next_number(folder: Path, basename: str) -> int:
    """One more than the largest number that a file in `folder` begins with (after `basename-`)."""
    prefix = f"{basename}-" if basename else ""
    numbers = [
        int(match.group(1))
        for path in folder.iterdir()
        if path.name.startswith(prefix) and (match := _NUMBERED.match(path.name[len(prefix) :]))
    ]
    return max(numbers, default=-1) + 1


def save_image_with_geninfo(
    image: Image.Image,
    geninfo: str | None,
    filename: str | os.PathLike[str],
    extension: str | None = None,
    existing_pnginfo: dict[str, Any] | None = None,
    pnginfo_section_name: str = "parameters",
) -> None:
    """Writes `image` with its infotext: a text chunk in PNG, the user comment of Exif in JPEG, WebP and AVIF.

    Where the format cannot hold the image, the file holds a PNG; where it cannot hold the text, a text file beside it
    does.
    """
    made = _encoded(image, extension or Path(filename).suffix, geninfo, existing_pnginfo or {}, pnginfo_section_name)
    Path(filename).write_bytes(made.data)
    if made.text_is_beside and geninfo is not None:
        _write_text(Path(filename).with_suffix(".txt"), geninfo)


def _encoded(
    image: Image.Image, extension: str, geninfo: str | None, pnginfo: dict[str, Any], section: str
) -> ImageFile:
    texts = {**pnginfo, **({} if geninfo is None else {section: geninfo})} if opts.enable_pnginfo else {}
    return encode(image, extension, geninfo if opts.enable_pnginfo else None, texts, opts.jpeg_quality)


def _write_text(path: Path, text: str) -> None:
    with replacing(path, shared=True) as file:
        file.write(writable(f"{text}\n").encode("utf-8"))


def free_path(path: Path) -> Path:
    """The path, or one with a number behind its stem where there is a file already."""
    found, number = path, 0
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def save_image(
    image: Image.Image,
    path: str | os.PathLike[str],
    basename: str | None,
    seed: Any = None,
    prompt: Any = None,
    extension: str = "png",
    info: str | None = None,
    short_filename: bool = False,
    no_prompt: bool = False,
    grid: bool = False,
    pnginfo_section_name: str = "parameters",
    p: Any = None,
    existing_info: dict[str, Any] | None = None,
    forced_filename: str | None = None,
    suffix: str = "",
    save_to_dirs: bool | None = None,
) -> tuple[str, str | None]:
    """Saves `image` in the folder `path` as NUMBER-SEED.ext, with `info` in it. Returns its path and a text file's.

    A file appears at once, complete, and none is ever written over. Where the format cannot hold the image or its
    text, it is a PNG or has a text file beside it, and the job's comments say so.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if forced_filename is not None:
        stem = forced_filename
    else:
        number = _next_number(folder, basename or "")
        stem = f"{basename}-{number:04}" if basename else f"{number:05}"
        stem += "" if seed is None or short_filename else f"-{seed}"
    stem += suffix
    pnginfo = dict(existing_info or {})
    if info is not None:
        pnginfo[pnginfo_section_name] = info
    params = callbacks.ImageSaveParams(image, p, str(folder / f"{stem}.{extension.lstrip('.')}"), pnginfo)
    callbacks.before_image_saved_callback(params)
    target = Path(params.filename)
    geninfo = params.pnginfo.get(pnginfo_section_name)
    made = _encoded(params.image, target.suffix, geninfo, params.pnginfo, pnginfo_section_name)
    if made.extension != target.suffix.lower():
        known = target.suffix.lower() in Image.registered_extensions() or target.suffix == f".{extension.lstrip('.')}"
        target = target.with_suffix(made.extension) if known else target.with_name(target.name + made.extension)
    target = target if forced_filename is not None else free_path(target)
    with replacing(target, shared=True) as file:
        file.write(made.data)
    if made.note and p is not None:
        where = f"The text is in {target.stem}.txt." if made.text_is_beside else f"It is saved as {target.name}."
        p.comment(f"{made.note} {where}")
    params.filename = str(target)
    image.already_saved_as = str(target)  # type: ignore[attr-defined]
    text_file: str | None = None
    if geninfo is not None and (opts.save_txt or made.text_is_beside):
        text_file = str(target.with_suffix(".txt"))
        _write_text(Path(text_file), geninfo)
    callbacks.image_saved_callback(params)
    return str(target), text_file


def save_sample(image: Image.Image, p: Any, index: int, info: str, suffix: str = "") -> None:
    """Saves image number `index` of the job's batch; see `save_for_job`."""
    folder, made_from = p.outpath_samples or "", (p.seeds[index], p.prompts[index])
    save_for_job(image, p, folder, "", *made_from, info, opts.samples_format, suffix=suffix)


def save_for_job(
    image: Image.Image, p: Any, path: str, basename: str, seed: Any, prompt: Any, info: str, extension: str, **how: Any
) -> None:
    """`save_image` of a job's image; where the disk refuses it, the job's comments say so and the image is not lost."""
    try:
        save_image(image, path, basename, seed, prompt, extension, info=info, p=p, **how)
    except OSError as error:
        errors.report("An image could not be saved", exc_info=True)
        p.comment(f"An image could not be saved, so this is its only copy. {reason(error)}")


def read_info_from_image(image: Image.Image) -> tuple[str | None, dict[str, Any]]:
    """The infotext in `image`, or None, and what else is written in it."""
    items = {str(key): value for key, value in (image.info or {}).items()}
    geninfo = items.pop("parameters", None)
    geninfo = user_comment.png_text(geninfo) if isinstance(geninfo, str) else user_comment.comment_of(image)
    comment = items.get("comment")
    if geninfo is None and isinstance(comment, (bytes, str)):
        geninfo = comment.decode("utf-8", errors="ignore") if isinstance(comment, bytes) else comment
    for key in _NO_TEXTS:
        items.pop(key, None)
    return infotexts.infotext_of(geninfo if isinstance(geninfo, str) else None, items), items


def image_data(data: bytes) -> tuple[str | None, None]:
    """The infotext in an image file's bytes, or the text of a text file that is one."""
    try:
        return read_info_from_image(open_image(data))[0], None
    except ImageError:
        pass  # not an image: perhaps the text itself
    try:
        text = data.decode("utf-8")
        return (text, None) if len(text) < 10000 else ("", None)
    except UnicodeDecodeError:
        return "", None


def read(fp: Any, **kwargs: Any) -> Image.Image:
    """Opens an image: 8 bits, turned the way its Exif data says, with its texts. Raises ImageError, a ValueError."""
    return to_rgba(open_image(Path(fp) if isinstance(fp, (str, os.PathLike)) else fp.read()), with_texts=True)
