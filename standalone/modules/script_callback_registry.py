"""Keeps what scripts register: by category, with the file that registered it, in the order of registration."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from modules import errors, extensions

Callback = Callable[..., Any]


@dataclass
class ScriptCallback:
    """A registered function with the file that registered it."""

    script: str
    callback: Callback
    name: str = "unnamed"


CATEGORIES = (
    "app_started",
    "model_loaded",
    "ui_tabs",
    "ui_train_tabs",
    "ui_settings",
    "before_image_saved",
    "image_saved",
    "extra_noise",
    "cfg_denoiser",
    "cfg_denoised",
    "cfg_after_cfg",
    "before_component",
    "after_component",
    "image_grid",
    "infotext_pasted",
    "script_unloaded",
    "before_ui",
    "on_reload",
    "list_optimizers",
    "list_unets",
    "before_token_counter",
)
callback_map: dict[str, list[ScriptCallback]] = {f"callbacks_{category}": [] for category in CATEGORIES}


def report_exception(c: ScriptCallback, job: str) -> None:
    errors.report(f"Error executing callback {job} for {c.script}", exc_info=True)


def _caller() -> str:
    """The file that called into this module or script_callbacks."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "modules.script_callbacks"):
        frame = frame.f_back
    return frame.f_code.co_filename if frame is not None else "unknown file"


def add_callback(
    callbacks: list[ScriptCallback],
    fun: Callback,
    *,
    name: str | None = None,
    category: str = "unknown",
    filename: str | None = None,
) -> None:
    """Appends `fun` under a name of its own: extension/file/category[/name][-number]."""
    filename = filename or _caller()
    extension = extensions.find_extension(filename)
    base = f"{extension.canonical_name if extension else 'base'}/{os.path.basename(filename)}/{category}"
    base += f"/{name}" if name is not None else ""
    taken = {callback.name for callback in callbacks}
    unique, number = base, 0
    while unique in taken:
        number += 1
        unique = f"{base}-{number}"
    callbacks.append(ScriptCallback(filename, fun, unique))


def sort_callbacks(
    category: str, unordered_callbacks: list[ScriptCallback], *, enable_user_sort: bool = True
) -> list[ScriptCallback]:
    """The order in which they are called: that of registration."""
    return list(unordered_callbacks)


def ordered_callbacks(
    category: str, unordered_callbacks: list[ScriptCallback] | None = None, *, enable_user_sort: bool = True
) -> list[ScriptCallback]:
    if unordered_callbacks is None:
        unordered_callbacks = callback_map.get("callbacks_" + category, [])
    return sort_callbacks(category, unordered_callbacks, enable_user_sort=enable_user_sort)


def enumerate_callbacks() -> Iterator[tuple[str, list[ScriptCallback]]]:
    for category, callbacks in callback_map.items():
        yield category.removeprefix("callbacks_"), callbacks


def clear_callbacks() -> None:
    for callbacks in callback_map.values():
        callbacks.clear()


def register(category: str, callback: Callback, name: str | None) -> None:
    """Adds `callback` to a category."""
    add_callback(callback_map[f"callbacks_{category}"], callback, name=name, category=category)


def call(category: str, *args: Any, job: str | None = None, last_first: bool = False, **kwargs: Any) -> list[Any]:
    """Calls all of `category`; what they return, failures, which are logged, left out."""
    results: list[Any] = []
    callbacks = ordered_callbacks(category)
    for c in reversed(callbacks) if last_first else callbacks:
        try:
            results.append(c.callback(*args, **kwargs))
        except (Exception, SystemExit):
            report_exception(c, job or f"{category}_callback")
    return results


def remove_current_script_callbacks() -> None:
    """Removes all that the calling file registered."""
    filename = _caller()
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.script != filename]


def remove_callbacks_for_function(callback_func: Callback) -> None:
    """Removes `callback_func` wherever it is registered."""
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.callback != callback_func]
