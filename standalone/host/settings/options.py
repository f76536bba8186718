"""Settings: their descriptions (OptionInfo) and their values (Options), saved as JSON.

What comes from a request, from the page, from an infotext or from the file is checked by its description before it
is kept; see standalone/engine/settings.py.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.errors import UserError, reason
from lib_methods.files import replacing
from standalone.host import errors
from standalone.host.settings.rules import Rule, as_text, entries, storable

_FIELDS = {"data_labels", "data", "restricted_opts", "typemap", "source"}
_MOST_ASIDE = 20  # copies of damaged files


@dataclass(eq=False)
class OptionInfo(Rule):
    """One setting. The methods that end in `return self` add text to its description and can be chained."""

    default: Any = None
    label: str = ""
    component: Any = None
    component_args: Any = None
    onchange: Callable[[], Any] | None = None
    section: Any = None
    refresh: Any = None
    comment_before: str = ""
    comment_after: str = ""
    infotext: str | None = None
    restrict_api: bool = False
    category_id: str | None = None
    check: Callable[[Any], Any] | None = field(default=None, kw_only=True)
    do_not_save = False

    def link(self, label: str, url: str) -> OptionInfo:
        self.comment_before += f"[<a href='{url}' target='_blank'>{label}</a>]"
        return self

    def js(self, label: str, js_func: str) -> OptionInfo:
        self.comment_before += f"[<a onclick='{js_func}(); return false'>{label}</a>]"
        return self

    def info(self, info: str) -> OptionInfo:
        self.comment_after += f"<span class='info'>({info})</span>"
        return self

    def html(self, html: str) -> OptionInfo:
        self.comment_after += html
        return self

    def needs_restart(self) -> OptionInfo:
        self.comment_after += " <span class='info'>(requires restart)</span>"
        return self

    def needs_reload_ui(self) -> OptionInfo:
        self.comment_after += " <span class='info'>(requires Reload UI)</span>"
        return self


class OptionHTML(OptionInfo):
    """A piece of text among the settings."""

    def __init__(self, text: Any) -> None:
        super().__init__(str(text).strip(), label="")
        self.do_not_save = True


def options_section(section_identifier: tuple[Any, ...], options_dict: dict[str, OptionInfo]) -> dict[str, OptionInfo]:
    """Puts all of `options_dict` into one section: (id, title) or (id, title, category)."""
    for option in options_dict.values():
        option.section = tuple(section_identifier[:2])
        if len(section_identifier) > 2:
            option.category_id = section_identifier[2]
    return options_dict


FOR_SCRIPTS: dict[str, Any] = {
    "img_max_size_mp": 200,
    "img2img_color_correction": False,
    "grid_extended_filename": False,
    "grid_background_color": "#ffffff",
    "grid_text_active_color": "#000000",
    "grid_text_inactive_color": "#999999",
}
"""Settings of the WebUI that this host does not have and the WebUI's scripts read, with the WebUI's defaults."""


class Options:
    """The values, read and written as attributes; unknown names are ordinary attributes."""

    typemap: dict[type, type] = {int: float}
    data: dict[str, Any]
    data_labels: dict[str, OptionInfo]

    def __init__(self, data_labels: dict[str, OptionInfo], restricted_opts: set[str]) -> None:
        self.data_labels = data_labels
        self.data = {key: info.default for key, info in data_labels.items() if not info.do_not_save}
        self.restricted_opts = restricted_opts
        self.source: Path | None = None

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _FIELDS:
            super().__setattr__(key, value)
            return
        info = self.data_labels.get(key)
        if info is None and key not in self.data:
            super().__setattr__(key, value)
        elif info is None or not info.do_not_save:
            self.data[key] = value

    def __getattr__(self, item: str) -> Any:
        # only called for what is no attribute yet
        if item in _FIELDS:
            raise AttributeError(item)
        if item in self.data:
            return self.data[item]
        if item in self.data_labels:
            return self.data_labels[item].default
        if item in FOR_SCRIPTS:
            return FOR_SCRIPTS[item]
        raise AttributeError(f"there is no setting named {item!r}")

    def checked(self, key: str, value: Any) -> Any:
        """`value` as the setting `key` keeps it. Raises SettingsError."""
        info = self.data_labels.get(key)
        if info is None or info.do_not_save:
            raise SettingsError(f"There is no setting named {as_text(key)}.")
        return info.checked(value, key)

    def set(self, key: str, value: Any, is_api: bool = False, run_callbacks: bool = True) -> bool:
        """Sets an option and calls its onchange; whether the value changed. An onchange that fails undoes it.

        Raises SettingsError for a value that the setting cannot have, and the UserError of an onchange.
        """
        option = self.data_labels[key]
        if option.do_not_save or (is_api and option.restrict_api):
            return False
        value = self.checked(key, value)
        old = self.data.get(key)
        if old == value and type(old) is type(value):
            return False
        setattr(self, key, value)
        if run_callbacks and option.onchange is not None:
            try:
                option.onchange()
            except UserError:
                setattr(self, key, old)
                raise
            except Exception as error:
                errors.display(error, f"changing setting {key} to {as_text(value)}")
                setattr(self, key, old)
                return False
        return True

    @contextlib.contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """After an exception in the block all settings are as before it, and who follows them knows."""
        before = dict(self.data)
        try:
            yield
        except BaseException:
            changed = [key for key, value in before.items() if self.data.get(key) != value]
            self.data = before
            for key in changed:
                follower = self.data_labels[key].onchange if key in self.data_labels else None
                if follower is not None:
                    errors.run(follower, f"changing setting {key} back")
            raise

    def get_default(self, key: str) -> Any:
        info = self.data_labels.get(key)
        return None if info is None else info.default

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Writes all values to `filename` as JSON, at once or not at all. Raises UserError, and OSError."""
        try:
            text = json.dumps(self.data, indent=4, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (ValueError, TypeError, RecursionError):
            bad = sorted(key for key, value in self.data.items() if not storable(value))
            raise UserError(f"These settings cannot be saved: {', '.join(bad)}.") from None
        with replacing(Path(filename)) as file:
            file.write(text)

    def same_type(self, x: Any, y: Any) -> bool:
        if x is None or y is None:
            return True
        return self.typemap.get(type(x), type(x)) == self.typemap.get(type(y), type(y))

    def load(self, filename: str | os.PathLike[str], skip: Collection[str] = ()) -> None:
        """Reads values from `filename`, but for those called in `skip`.

        What a setting cannot have is left out and named in the log; a copy of the file as it was is kept beside it. A
        file that is damaged as a whole gives what can still be read of it. Never raises because of the file.
        """
        self.source = Path(filename)
        try:
            # broken bytes become broken letters, which no setting takes
            text = self.source.read_bytes().decode("utf-8-sig", errors="surrogateescape")
        except FileNotFoundError:
            return
        except OSError as error:
            errors.report(f"{self.source.name} cannot be read, so the default settings are used. {reason(error)}")
            return
        loaded, is_whole = entries(text)
        bad = []
        for key, value in loaded.items():
            if key in skip:
                continue
            try:
                if key in self.data_labels:
                    value = self.checked(key, value)
                elif not storable([key, value]):
                    raise SettingsError(key)
            except SettingsError:
                bad.append(as_text(key))
            else:
                self.data[key] = value
        if bad or not is_whole:
            self._keep_aside(bad)

    def _keep_aside(self, bad: list[str]) -> None:
        """Copies the file of the settings, and says what of it is not used."""
        assert self.source is not None
        told = f"cannot have these values: {', '.join(bad)}" if bad else "cannot be read as a whole"
        numbers = itertools.chain([""], (f"-{number}" for number in range(2, _MOST_ASIDE + 1)))
        copies = [self.source.with_name(f"{self.source.name}.damaged{number}") for number in numbers]
        try:
            text = self.source.read_bytes()
            aside = next(copy for copy in copies if not copy.exists() or copy.read_bytes() == text)
            if not aside.exists():
                shutil.copyfile(self.source, aside)
            kept = f"The old file is kept as {aside.name}."
        except OSError:
            kept = f"A copy could not be kept beside it as {copies[0].name}."
        except StopIteration:
            kept = f"No copy was kept: there are {_MOST_ASIDE} already. Remove {copies[0].name} and the others."
        errors.report(f"The settings in {self.source.name} {told}. Defaults are used instead. {kept}")

    def onchange(self, key: str, func: Callable[[], Any], call: bool = True) -> None:
        self.data_labels[key].onchange = func
        if call:
            func()

    def dumpjson(self) -> str:
        """All values with the texts around them, as the page wants them."""
        values: dict[str, Any] = {key: self.data.get(key, info.default) for key, info in self.data_labels.items()}
        values["_comments_before"] = {k: v.comment_before for k, v in self.data_labels.items()}
        values["_comments_after"] = {k: v.comment_after for k, v in self.data_labels.items()}
        return json.dumps(values)

    def add_option(self, key: str, info: OptionInfo) -> None:
        """Adds a setting; a value that was loaded for it before stays."""
        self.data_labels[key] = info
        if info.do_not_save:
            return
        try:
            self.data[key] = info.checked(self.data[key]) if key in self.data else info.default
        except SettingsError:
            self.data[key] = info.default
            if self.source is not None:
                self._keep_aside([key])

    def reorder(self) -> None:
        """Brings settings of one section together."""
        order: dict[Any, int] = {}
        for info in self.data_labels.values():
            order.setdefault(str(info.section), len(order))
        self.data_labels = dict(sorted(self.data_labels.items(), key=lambda item: order[str(item[1].section)]))

    def cast_value(self, key: str, value: Any) -> Any:
        """`value` (often text from an infotext) as the setting `key` keeps it; None stays None. SettingsError."""
        if value is None:
            return None
        info = self.data_labels[key]
        kind, text = info.kind, isinstance(value, str)
        if text and kind == "switch":
            value = value.strip().lower() not in ("false", "0", "")
        elif text and kind in ("whole", "number"):
            try:
                number = float(value)
                value = int(number) if number.is_integer() else number
            except (ValueError, OverflowError):
                pass  # refused below, with a sentence
        elif text and kind == "list":
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif kind == "text" and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        return self.checked(key, value)
