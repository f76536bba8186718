"""Styles: named pieces of prompt, kept in `styles.csv` of the data folder, in the WebUI's format."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lib_methods.checks import SettingsError, clean_name
from lib_methods.errors import UserError, reason
from lib_methods.files import write_whole
from standalone.engine import names
from standalone.host import errors

FILE = "styles.csv"
MAX_BYTES = 16 * 2**20
PLACE = "{prompt}"
_COLUMNS = ("name", "prompt", "negative_prompt")


class PromptStyle(NamedTuple):
    """`{prompt}` in a style's text is replaced by the prompt; without it the text is appended."""

    name: str
    prompt: str | None
    negative_prompt: str | None
    path: str | None = None


def merge_prompts(style_prompt: str, prompt: str) -> str:
    """One style's text applied to `prompt`."""
    if PLACE in style_prompt:
        return style_prompt.replace(PLACE, prompt)
    return ", ".join(part.strip() for part in (prompt, style_prompt) if part.strip())


def _without(style_prompt: str, prompt: str) -> str | None:
    """The text that `merge_prompts` makes `prompt` of with this style; None where there is none."""
    text = style_prompt if PLACE in style_prompt else style_prompt.strip()
    before, _, after = text.partition(PLACE) if PLACE in text else ("", "", text)
    if len(prompt) < len(before) + len(after) or not (prompt.startswith(before) and prompt.endswith(after)):
        return None
    found = prompt[len(before) : len(prompt) - len(after)]
    found = found if PLACE in text else found.removesuffix(", ")
    return found if merge_prompts(style_prompt, found) == prompt else None


class StyleDatabase:
    """The known styles, by name: those of a file, and those that scripts add."""

    def __init__(self, paths: Sequence[str | Path] = ()) -> None:
        self.no_style = PromptStyle("None", "", "")
        self.styles: dict[str, PromptStyle] = {}
        self.paths = list(paths)
        self._read: object = None  # what the file was when it was read
        self._comments: list[tuple[str, str, str]] = []
        self.problem = ""
        """Why the file cannot be read; it is then not written either."""
        self.reload()

    @property
    def _file(self) -> Path | None:
        return Path(self.paths[0]) if self.paths else None

    def reload(self) -> None:
        """Reads the file again if it has changed. Never raises because of it."""
        file = self._file
        try:
            stat = file.stat() if file is not None else None
        except OSError:
            stat = None
        seen = (file, stat and (stat.st_mtime_ns, stat.st_size))
        if seen == self._read:
            return
        self._read = seen
        rows, self.problem = [], ""
        if file is not None and stat is not None:
            try:
                rows = _rows(file)
            except UserError as error:
                self.problem = str(error)
                errors.report(self.problem)
        self._comments = [row for row in rows if row[0].startswith("#")]
        self.styles = {row[0]: PromptStyle(*row, str(file)) for row in rows if not row[0].startswith("#")}

    def find(self, name: str) -> PromptStyle | None:
        """The style of this name, in any case."""
        return names.find(name, self.styles)

    def keep(self, name: object, prompt: str, negative_prompt: str) -> str:
        """Saves a style; its name as it is kept. Raises UserError for a name or a file that cannot be."""
        clean = clean_name(name, "style", SettingsError)
        if clean.startswith("#"):
            raise SettingsError("A style's name cannot begin with #: in the file, this marks a comment.")
        if not prompt.strip() and not negative_prompt.strip():
            raise SettingsError("A style needs a prompt or a negative prompt.")
        self._write({**self._current(), clean: PromptStyle(clean, prompt, negative_prompt, str(self._file))})
        return clean

    def drop(self, name: str) -> bool:
        """Removes a style from the file; False if there is none of this name. Raises UserError."""
        current = self._current()
        if current.pop(name, None) is None:
            return False
        self._write(current)
        return True

    def save_styles(self, path: str | None = None) -> None:
        """Writes all styles, as scripts do that have changed `styles`. Raises UserError."""
        self._write(self.styles)

    def _current(self) -> dict[str, PromptStyle]:
        """The styles with those that another program has written meanwhile."""
        self.reload()
        return dict(self.styles)

    def _write(self, styles: dict[str, PromptStyle]) -> None:
        if self.problem:
            raise UserError(self.problem)
        if self._file is not None:
            text = io.StringIO()
            table = csv.writer(text)
            table.writerow(_COLUMNS)
            table.writerows([*self._comments, *(style[:3] for style in styles.values())])
            write_whole(self._file, text.getvalue().encode("utf-8-sig", errors="replace"), "The file of styles")
        self.styles = styles

    def get_style_prompts(self, styles: Sequence[str]) -> list[str]:
        return [(self.find(name) or self.no_style).prompt or "" for name in styles]

    def get_negative_style_prompts(self, styles: Sequence[str]) -> list[str]:
        return [(self.find(name) or self.no_style).negative_prompt or "" for name in styles]

    def apply_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        return _merged(prompt, self.get_style_prompts(styles))

    def apply_negative_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        return _merged(prompt, self.get_negative_style_prompts(styles))

    def extract_styles_from_prompt(self, prompt: str, negative_prompt: str) -> tuple[list[str], str, str]:
        """The styles that the prompts were made with, in their order, and the prompts without them.

        Applied again, they give exactly these prompts.
        """
        found: list[str] = []
        left = [style for style in self.styles.values() if style.prompt or style.negative_prompt]
        while True:
            for style in left:
                plain = _without(style.prompt or "", prompt)
                negative = _without(style.negative_prompt or "", negative_prompt)
                if plain is not None and negative is not None:
                    break
            else:
                return found[::-1], prompt, negative_prompt
            prompt, negative_prompt = plain, negative
            left.remove(style)
            found.append(style.name)


def _merged(prompt: str, texts: Iterable[str]) -> str:
    for text in texts:
        prompt = merge_prompts(text, prompt)
    return prompt


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """(name, prompt, negative prompt) of the file's rows, comments included. Raises UserError."""
    try:
        data = file.read_bytes()
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES // 2**20} MiB")
        table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), skipinitialspace=True)
        columns = table.fieldnames or []
        prompt = "prompt" if "prompt" in columns else "text"  # the WebUI's first format
        if data.strip() and not {"name", prompt} <= set(columns):
            raise ValueError('its first line must be "name,prompt,negative_prompt"')
        return [(row["name"], row[prompt] or "", row.get("negative_prompt") or "") for row in table if row["name"]]
    except OSError as error:
        raise UserError(f"{file.name} cannot be read. {reason(error)}") from error
    except UnicodeDecodeError:
        raise UserError(f"{file.name} cannot be read: it is not UTF-8 text. Save it as UTF-8.") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file.name} cannot be read: {error}.") from None
