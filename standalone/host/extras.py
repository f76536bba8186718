"""What the tab Extras and its API do: images go through the postprocessing scripts, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lib_methods.errors import UserError, reason
from lib_methods.files import as_file_name
from lib_methods.pictures.convert import FORMATS, ImageError, open_image, to_rgba
from standalone.host import images, paths
from standalone.host.scripts import loading
from standalone.host.scripts.postprocessing import PostprocessedImage
from standalone.host.shared import opts, state
from standalone.infotext.pairs import quote

PREVIEW_SIDE = 1024
MOST_NAMED = 3
"""So many images that could not be read are named; of the others there is the number."""


@dataclass(frozen=True)
class Source:
    """An image that is yet to be opened. name: of its file; keeps_name: whether the result's file is called alike."""

    open: Callable[[], Image.Image]
    name: str = ""
    keeps_name: bool = False


@dataclass(frozen=True)
class Result:
    """image: with its texts in `info`. infotext: what the image came with. done: what the scripts did, as infotext."""

    image: Image.Image
    infotext: str
    done: str

    @property
    def both(self) -> str:
        """Infotext and what was done, as formats with room for one text have them."""
        return ", ".join(text for text in (self.infotext, self.done) if text)


def file_source(path: Path, keeps_name: bool = False) -> Source:
    """An image file."""
    return Source(lambda: to_rgba(open_image(path), with_texts=True), path.name, keeps_name)


def folder_sources(folder: str) -> list[Source]:
    """The images in a folder, by name, hidden ones left out. Raises UserError where there is none."""
    given = folder.strip().strip('"')
    path = Path(given).expanduser()
    if not given or not path.is_absolute():
        raise UserError("Enter the folder's whole path, such as C:\\Pictures or /home/me/pictures.")
    try:
        if not path.is_dir():
            raise UserError("There is no such folder. Check the path.")
        Image.init()
        endings = {ending for ending, name in Image.EXTENSION.items() if name in FORMATS}
        found = [Path(file) for file in paths.listfiles(str(path)) if Path(file).suffix.lower() in endings]
    except (OSError, ValueError) as error:
        told = reason(error) if isinstance(error, OSError) else "Check the path."
        raise UserError(f"The folder cannot be read. {told}") from None
    if not found:
        raise UserError("There are no images in this folder.")
    return [file_source(file, keeps_name=True) for file in found]


class Extras:
    """A run over some images. problems: sentences about images that were left out."""

    def __init__(self, sources: Sequence[Source], args: Sequence[Any], folder: str | None = None) -> None:
        """args: of all scripts, in their order. folder: where results are saved; None saves none."""
        self.sources, self._args, self._folder = sources, args, folder
        self._unread: list[str] = []
        self._refused: list[str] = []

    @property
    def problems(self) -> list[str]:
        found = list(self._refused[:MOST_NAMED])
        if len(self._refused) > MOST_NAMED:
            found.append(f"{len(self._refused) - MOST_NAMED} more were left out.")
        if self._unread:
            more = "" if len(self._unread) <= MOST_NAMED else " ..."
            shown = ", ".join(self._unread[:MOST_NAMED]) + more
            found.append(f"{len(self._unread)} of {len(self.sources)} images could not be read: {shown}")
        return found

    def results(self) -> Iterator[Result]:
        """Yields each result when it is ready. Skips images that cannot be used, unless there is only one.

        Raises UserError for a single image that cannot be used.
        """
        state.job_count = len(self.sources)
        for number, source in enumerate(self.sources):
            state.job_no, state.textinfo, state.skipped = number, source.name, False
            if state.interrupted or state.stopping_generation:
                break
            try:
                image = source.open()
                infotext, texts = images.read_info_from_image(image)
                kept = {key: value for key, value in texts.items() if isinstance(value, str)}
                kept |= {"parameters": infotext} if infotext else {}
                pp = PostprocessedImage(image)
                loading.scripts_postproc.run(pp, self._args)
            except UserError as error:
                if len(self.sources) == 1:
                    raise
                if isinstance(error, ImageError):
                    self._unread.append(source.name)
                else:
                    self._refused.append(f"{source.name}: {error}")
                continue
            if not state.skipped:
                yield from self._finished(pp, kept, source)
        state.job_no = len(self.sources)

    def _finished(self, pp: PostprocessedImage, kept: dict[str, str], source: Source) -> Iterator[Result]:
        """The results of one image, saved. kept: the texts that it came with."""
        used: dict[str, Any] = {}
        for one in (pp, *pp.extra_images):
            pairs = ((key, value) for key, value in one.info.items() if value is not None)
            done = ", ".join(key if key == value else f"{key}: {quote(value)}" for key, value in pairs)
            texts: dict[str, Any] = {**kept, "postprocessing": done} if opts.enable_pnginfo else {}
            one.image.info = dict(texts)
            result = Result(one.image, kept.get("parameters", ""), done)
            if opts.live_previews_enable:
                state.assign_current_image(one.image.reduce(max(1, max(one.image.size) // PREVIEW_SIDE)))
            suffix = one.get_suffix(used)
            if self._folder is not None:
                self._save(result, texts, source, f"-{as_file_name(suffix[1:])}" if suffix else "", one.caption)
            yield result

    def _save(self, result: Result, texts: dict[str, Any], source: Source, suffix: str, caption: str | None) -> None:
        folder, extension = Path(self._folder or ""), opts.samples_format
        forced = None
        if source.keeps_name and opts.use_original_name_batch:
            name = as_file_name(Path(source.name).stem, suffix, otherwise="image")
            forced = images.free_path(folder / f"{name}.{extension}").name.removesuffix(f".{extension}")
        # a PNG has room for both texts, each under its own name
        section, text = ("extras", result.done) if extension == "png" else ("parameters", result.both)
        try:
            path, text_file = images.save_image(
                result.image,
                folder,
                "",
                extension=extension,
                info=text,
                short_filename=True,
                pnginfo_section_name=section,
                existing_info=texts,
                forced_filename=forced,
                suffix="" if forced else suffix,
            )
            if caption and caption.strip() and text_file is None:
                Path(path).with_suffix(".txt").write_text(caption.strip(), encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"The image cannot be saved. {reason(error)}") from error


def output_folder() -> str:
    """Where the page's results go."""
    return str(opts.outdir_samples or opts.outdir_extras_samples)
