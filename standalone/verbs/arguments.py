"""Checks of the command line before torch is imported: files, folders, images, names.

All raise UserError with one sentence.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from lib_methods.errors import UserError, reason
from standalone.engine import names


def existing_file(path: Path, option: str) -> Path:
    """The file that an option names."""
    found = full_path(path, option)
    try:
        if found.is_dir():
            raise UserError(f"{option}: {path.name or path} is a folder. Give a file.")
        with found.open("rb"):
            return found
    except FileNotFoundError:
        raise UserError(f"{option}: there is no file {path.name or path}.") from None
    except OSError as error:
        raise UserError(f"{option}: {path.name} cannot be read. {reason(error)}") from None


def image_file(path: Path, option: str) -> bytes:
    """The bytes of an image file, which were decoded once to see that they can be."""
    from lib_methods.pictures.convert import ImageError, open_image

    data = existing_file(path, option).read_bytes()
    try:
        open_image(data).load()
    except (ImageError, OSError, ValueError, SyntaxError) as error:
        told = str(error) if isinstance(error, ImageError) else "The file is damaged."
        raise UserError(f"{option}: {path.name} is not an image that can be read. {told}") from None
    return data


def existing_model(path: Path, option: str) -> Path:
    """The checkpoint that an option names: a file, or a folder."""
    found = full_path(path, option)
    if found.is_dir():
        return found
    return existing_file(path, option)


def writable_folder(path: Path, option: str) -> Path:
    """A folder that files can be written to, or that can be made."""
    found = full_path(path, option)
    try:
        above = next((folder for folder in (found, *found.parents) if folder.exists()), found.parent)
    except OSError as error:
        raise UserError(f"{option}: this path cannot be used. {reason(error)}") from None
    if not above.is_dir():
        raise UserError(f"{option}: {above.name} is a file. Give a folder.")
    try:
        with tempfile.TemporaryFile(dir=above):  # asking for the permission is not enough: disks can be read-only, too
            return found
    except OSError as error:
        raise UserError(f"{option}: the folder {above.name or above} cannot be written to. {reason(error)}") from None


def new_file(path: Path, option: str, ending: str = ".safetensors") -> Path:
    """A file that is not there yet and can be written."""
    found = full_path(path, option)
    if found.suffix.lower() != ending:
        raise UserError(f"{option}: the result must be a {ending} file; {path.name or path} is not one.")
    if found.exists():
        raise UserError(f"{option}: {path.name} already exists. Choose another name, or remove it.")
    writable_folder(found.parent, option)
    return found


def full_path(path: Path, option: str) -> Path:
    """`path` from the root on, with the home folder for "~"."""
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # no such user, a circle of links, a NUL
        raise UserError(f"{option}: this path cannot be used.") from None


def text(value: str, option: str) -> str:
    """Text without broken letters, which a console of another encoding passes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{option}: some letters cannot be read. Start again in a console that uses UTF-8.") from None
    return value


def sampler(name: str, option: str) -> None:
    """A sampler that this host has."""
    if names.find_sampler(name, names.SAMPLERS, names.SCHEDULES) is None:
        raise UserError(f"{option}: {names.unknown('sampler', name, names.SAMPLERS)}")


def schedule(name: str, option: str) -> None:
    """A schedule that this host has."""
    if names.find_schedule(name, names.SCHEDULES) is None:
        raise UserError(f"{option}: {names.unknown('schedule', name, names.SCHEDULES)}")


def hires_upscaler(name: str, option: str) -> None:
    """An upscaler that Hires. fix has."""
    known = (*names.LATENT_UPSCALERS, *names.UPSCALERS)
    if names.find(name, {text: text for text in known}) is None:
        raise UserError(f"{option}: {names.unknown('upscaler', name, known)}")
