"""Settings: their descriptions (OptionInfo) and their values (Options), saved as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import errors

_FIELDS = {"data_labels", "data", "restricted_opts", "typemap"}


class OptionInfo:
    """One setting. The methods that end in `return self` add text to its description and can be chained."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Callable[[], Any] | None = None,
        section: Any = None,
        refresh: Any = None,
        comment_before: str = "",
        comment_after: str = "",
        infotext: str | None = None,
        restrict_api: bool = False,
        category_id: str | None = None,
    ) -> None:
        self.default = default
        self.label = label
        self.component = component
        self.component_args = component_args
        self.onchange = onchange
        self.section = section
        self.category_id = category_id
        self.refresh = refresh
        self.do_not_save = False
        self.comment_before = comment_before
        self.comment_after = comment_after
        self.infotext = infotext
        self.restrict_api = restrict_api

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


class Options:
    """The values, read and written as attributes; unknown names are ordinary attributes."""

    typemap: dict[type, type] = {int: float}
    data: dict[str, Any]
    data_labels: dict[str, OptionInfo]

    def __init__(self, data_labels: dict[str, OptionInfo], restricted_opts: set[str]) -> None:
        self.data_labels = data_labels
        self.data = {key: info.default for key, info in data_labels.items() if not info.do_not_save}
        self.restricted_opts = restricted_opts

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
        raise AttributeError(f"there is no setting named {item!r}")

    def set(self, key: str, value: Any, is_api: bool = False, run_callbacks: bool = True) -> bool:
        """Sets an option and calls its onchange; whether the value changed. An onchange that fails undoes it."""
        old = self.data.get(key)
        if old == value:
            return False
        option = self.data_labels[key]
        if option.do_not_save or (is_api and option.restrict_api):
            return False
        setattr(self, key, value)
        if run_callbacks and option.onchange is not None:
            try:
                option.onchange()
            except Exception as error:
                errors.display(error, f"changing setting {key} to {value}")
                setattr(self, key, old)
                return False
        return True

    def get_default(self, key: str) -> Any:
        info = self.data_labels.get(key)
        return None if info is None else info.default

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Writes all values to `filename` as JSON, at once or not at all."""
        target = Path(filename)
        draft = target.with_name(target.name + ".tmp")
        draft.write_text(json.dumps(self.data, indent=4, ensure_ascii=False), encoding="utf-8")
        os.replace(draft, target)

    def same_type(self, x: Any, y: Any) -> bool:
        if x is None or y is None:
            return True
        return self.typemap.get(type(x), type(x)) == self.typemap.get(type(y), type(y))

    def load(self, filename: str | os.PathLike[str]) -> None:
        """Reads values from `filename`. A damaged file is set aside; a value of a wrong type is dropped."""
        source = Path(filename)
        try:
            loaded = json.loads(source.read_text(encoding="utf-8"))
            if not isinstance(loaded, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            return
        except (ValueError, OSError):
            aside = source.with_name(source.name + ".damaged")
            errors.report(f"The settings in {source.name} cannot be read; they are kept as {aside.name}.")
            os.replace(source, aside)
            return
        for key, value in loaded.items():
            info = self.data_labels.get(key)
            if info is not None and not self.same_type(info.default, value):
                print(f"The setting {key} has a value of the wrong type; its default is used.", file=sys.stderr)
                continue
            self.data[key] = value

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
        if key not in self.data and not info.do_not_save:
            self.data[key] = info.default

    def reorder(self) -> None:
        """Brings settings of one section together."""
        order: dict[Any, int] = {}
        for info in self.data_labels.values():
            order.setdefault(str(info.section), len(order))
        self.data_labels = dict(sorted(self.data_labels.items(), key=lambda item: order[str(item[1].section)]))

    def cast_value(self, key: str, value: Any) -> Any:
        """`value` (often text from an infotext) as the type of the setting `key`; None stays None."""
        if value is None:
            return None
        default = self.data_labels[key].default
        if default is None:
            default = getattr(self, key, None)
        if default is None:
            return None
        if isinstance(default, bool) and isinstance(value, str):
            return value.strip().lower() not in ("false", "0", "")
        if isinstance(default, int) and not isinstance(default, bool):
            return int(float(value))
        return type(default)(value)
