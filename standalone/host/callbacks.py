"""Callbacks: functions that scripts register, and that the host calls at fixed points. A failing one is logged."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from standalone.host import errors, paths

Callback = Callable[..., Any]


class Register(Protocol):
    """Adds a function to a category of callbacks."""

    def __call__(self, callback: Callback, *, name: str | None = None) -> None: ...


@dataclass(eq=False)
class ImageSaveParams:
    """An image about to be saved (all fields may be changed), or that was saved."""

    image: Any
    p: Any
    filename: str
    pnginfo: dict[str, Any]


@dataclass(eq=False)
class ExtraNoiseParams:
    """Noise about to be added in img2img: the noise, the latents, and the latents with the seed's noise."""

    noise: Any
    x: Any
    xi: Any


@dataclass(eq=False)
class CFGDenoiserParams:
    """One call of the CFG denoiser before the model: all rows, cond first. Fields may be replaced."""

    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any = None


@dataclass(eq=False)
class CFGDenoisedParams:
    """One call of the CFG denoiser after the model, before guidance: all rows of its output."""

    x: Any
    sampling_step: int
    total_sampling_steps: int
    inner_model: Any


@dataclass(eq=False)
class AfterCFGCallbackParams:
    """One call of the CFG denoiser after guidance: one row per image; `x` may be replaced."""

    x: Any
    sampling_step: int
    total_sampling_steps: int


@dataclass(eq=False)
class UiTrainTabParams:
    """What training tabs receive; this host has none."""

    txt2img_preview_params: Any


@dataclass(eq=False)
class ImageGridLoopParams:
    """A grid about to be made."""

    imgs: list[Any]
    cols: int
    rows: int


@dataclass
class BeforeTokenCounterParams:
    """A prompt about to be counted."""

    prompt: str
    steps: int
    styles: list[str]
    is_positive: bool = True


@dataclass
class ScriptCallback:
    """A registered function with the file that registered it."""

    script: str
    callback: Callback
    name: str = "unnamed"


# by category, in the order of registration
callback_map: dict[str, list[ScriptCallback]] = {}


def report_exception(c: ScriptCallback, job: str) -> None:
    errors.report(f"Error executing callback {job} for {c.script}", exc_info=True)


def _caller() -> str:
    """The file that called into this module."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") == __name__:
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
    """Appends `fun` under a unique name: extension/file/category[/name][-number]."""
    filename = filename or _caller()
    extension = paths.find_extension(filename)
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


def remove_current_script_callbacks() -> None:
    """Removes everything that the calling file registered."""
    filename = _caller()
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.script != filename]


def remove_callbacks_for_function(callback_func: Callback) -> None:
    """Removes `callback_func` wherever it is registered."""
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.callback != callback_func]


def _call(category: str, *args: Any, job: str | None = None, last_first: bool = False, **kwargs: Any) -> list[Any]:
    """Calls all of `category`; what they return, without those that failed, which are logged."""
    results: list[Any] = []
    callbacks = ordered_callbacks(category)
    for c in reversed(callbacks) if last_first else callbacks:
        try:
            results.append(c.callback(*args, **kwargs))
        except (Exception, SystemExit):
            report_exception(c, job or f"{category}_callback")
    return results


def _calls(category: str, **how: Any) -> Callable[..., None]:
    """The function that calls all of `category` with what it is given."""

    def call(*args: Any, **kwargs: Any) -> None:
        _call(category, *args, **how, **kwargs)

    return call


def _lists(category: str) -> Callable[[], list[Any]]:
    """The function that gives all of `category` a list to append to."""

    def collect() -> list[Any]:
        found: list[Any] = []
        _call(category, found)
        return found

    return collect


def _registers(category: str, when: str) -> Register:
    """The function that adds a callback to `category`."""
    callbacks = callback_map.setdefault(f"callbacks_{category}", [])

    def on(callback: Callback, *, name: str | None = None) -> None:
        add_callback(callbacks, callback, name=name, category=category)

    on.__doc__ = f"Registers a function for when {when}."
    return on


on_app_started = _registers("app_started", "the server has started; called with the gradio Blocks and the FastAPI app")
on_model_loaded = _registers("model_loaded", "a checkpoint was loaded; called with the model")
on_ui_tabs = _registers("ui_tabs", "tabs are made; return None or a list of (component, title, elem_id)")
on_ui_train_tabs = _registers("ui_train_tabs", "training tabs are made; this host has none")
on_ui_settings = _registers("ui_settings", "settings are collected: add yours with shared.opts.add_option")
on_before_image_saved = _registers("before_image_saved", "an image is about to be saved; called with ImageSaveParams")
on_image_saved = _registers("image_saved", "an image was saved; called with ImageSaveParams")
on_extra_noise = _registers("extra_noise", "extra noise is added in img2img; called with ExtraNoiseParams")
on_cfg_denoiser = _registers("cfg_denoiser", "the CFG denoiser has built its rows; called with CFGDenoiserParams")
on_cfg_denoised = _registers("cfg_denoised", "the model has denoised all rows; called with CFGDenoisedParams")
on_cfg_after_cfg = _registers("cfg_after_cfg", "guidance was applied; called with AfterCFGCallbackParams")
on_before_component = _registers("before_component", "a component is about to be made; called with it, its arguments")
on_after_component = _registers("after_component", "a component was made; called with it and its arguments")
on_image_grid = _registers("image_grid", "a grid is about to be made; called with ImageGridLoopParams")
on_infotext_pasted = _registers("infotext_pasted", "an infotext is pasted; called with the text and its fields")
on_script_unloaded = _registers("script_unloaded", "scripts are unloaded: undo what you changed in the host")
on_before_ui = _registers("before_ui", "the page is about to be made")
on_before_reload = _registers("on_reload", "the server is about to reload")
on_list_optimizers = _registers("list_optimizers", "optimizations are listed; append yours to the list")
on_list_unets = _registers("list_unets", "other UNets are listed; append yours to the list")
on_before_token_counter = _registers("before_token_counter", "tokens are counted; called with BeforeTokenCounterParams")

app_started_callback = _calls("app_started")
app_reload_callback = _calls("on_reload", job="callbacks_on_reload")
model_loaded_callback = _calls("model_loaded")
ui_train_tabs_callback = _calls("ui_train_tabs")
ui_settings_callback = _calls("ui_settings")
before_image_saved_callback = _calls("before_image_saved")
image_saved_callback = _calls("image_saved")
extra_noise_callback = _calls("extra_noise")
cfg_denoiser_callback = _calls("cfg_denoiser")
cfg_denoised_callback = _calls("cfg_denoised")
cfg_after_cfg_callback = _calls("cfg_after_cfg")
before_component_callback = _calls("before_component")
after_component_callback = _calls("after_component")
image_grid_callback = _calls("image_grid")
infotext_pasted_callback = _calls("infotext_pasted")
script_unloaded_callback = _calls("script_unloaded", job="script_unloaded", last_first=True)
before_ui_callback = _calls("before_ui", job="before_ui", last_first=True)
before_token_counter_callback = _calls("before_token_counter")
list_optimizers_callback = _lists("list_optimizers")
list_unets_callback = _lists("list_unets")


def ui_tabs_callback() -> list[Any]:
    return [tab for tabs in _call("ui_tabs") for tab in tabs or []]
