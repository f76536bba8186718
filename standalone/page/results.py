"""Results for the page: files for the gallery, infotext, a line about the job."""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import time
from pathlib import Path
from typing import Any

from PIL import Image

from lib_methods.pictures.convert import to_rgb
from standalone.api.codec import png_bytes
from standalone.host.images import resize_image

KEPT_SECONDS = 7 * 24 * 3600


def scratch_folder(data_dir: Path) -> Path:
    """Holds what galleries show: images that are not to be saved, and the results of finished jobs."""
    return data_dir / "tmp" / "page"


def clean_scratch(data_dir: Path) -> None:
    """Removes scratch files that are older than a week: gradio's copies, unsaved images, results."""
    limit = time.time() - KEPT_SECONDS
    for folder in (scratch_folder(data_dir), data_dir / "tmp" / "gradio"):
        for path in folder.glob("*") if folder.is_dir() else ():
            if path.stat().st_mtime < limit:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def as_file(image: Image.Image, infotext: str | None, folder: Path) -> str:
    """A PNG of `image` that carries its infotext: the saved one if there is one, else one in `folder`."""
    saved = getattr(image, "already_saved_as", None)
    if saved and Path(saved).is_file() and str(saved).lower().endswith(".png"):
        return str(saved)
    if infotext:
        image.info["parameters"] = infotext
    data = png_bytes(image)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:24]}.png"
    if not path.exists():
        path.write_bytes(data)
    return str(path)


def gallery_files(processed: Any, data_dir: Path) -> list[str]:
    """One file per image of `processed`."""
    texts = list(processed.infotexts) + [None] * len(processed.images)
    return [as_file(image, text, scratch_folder(data_dir)) for image, text in zip(processed.images, texts)]


def as_html(text: str, css_class: str = "") -> str:
    """Plain text as HTML, line by line."""
    lines = "<br>\n".join(html.escape(line) for line in text.strip().split("\n"))
    return f"<p class='{css_class}'>{lines}</p>" if css_class else f"<p>{lines}</p>"


def error_html(sentence: str) -> str:
    """A message as the page's error box."""
    return f"<div class='error' role='alert'>{html.escape(sentence)}</div>"


def duration(seconds: float) -> str:
    """For example "3.2 s" or "2 min 5 s"."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def log_html(comments: str, seconds: float) -> str:
    """Comments of the job, and how long it took."""
    said = as_html(comments, "comments") if comments.strip() else ""
    return f"{said}<p class='time'>Time taken: <b>{duration(seconds)}</b></p>"


def before_html(image: Image.Image, resize_mode: int, size: tuple[int, int], folder: Path) -> str:
    """What a job started from, as it saw it, for the full-screen viewer to compare with. Hidden."""
    seen = resize_image(resize_mode if resize_mode in (1, 2) else 0, to_rgb(image), *size, "None")
    return f'<span class="before-image" hidden data-file="{html.escape(as_file(seen, None, folder))}"></span>'


def infotext_of(generation_info: str, index: int | None, texts: str = "infotexts") -> str:
    """The infotext of image number `index` in the JSON that belongs to a gallery; "" when there is none. texts:
    "postprocessing" for what was done in Extras."""
    try:
        found = json.loads(generation_info or "{}").get(texts, [])
    except (ValueError, AttributeError, RecursionError):
        return ""
    number = index or 0
    return str(found[number]) if isinstance(found, list) and 0 <= number < len(found) else ""


def shown_infotext(generation_info: str, index: int | None) -> str:
    """What the page shows below image number `index`."""
    texts = (infotext_of(generation_info, index, kind) for kind in ("infotexts", "postprocessing"))
    return "\n".join(text for text in texts if text)


def chosen_image(gallery: list[Any] | None, selected: int | None, generation_info: str) -> tuple[Path | None, int]:
    """The file and the number of the selected image of a gallery, without a selection of the first one behind the
    grid; (None, 0) for an empty gallery."""
    if not gallery:
        return None, 0
    try:
        first = int(json.loads(generation_info or "{}").get("index_of_first_image", 0))
    except (ValueError, TypeError, AttributeError, RecursionError):
        first = 0
    wanted = selected if selected is not None and 0 <= selected < len(gallery) else first
    number = wanted if 0 <= wanted < len(gallery) else 0
    return image_file(gallery[number]), number


def image_file(item: Any) -> Path:
    """The file of an entry of a gallery: with or without a caption."""
    return Path(item[0] if isinstance(item, (tuple, list)) else item)
