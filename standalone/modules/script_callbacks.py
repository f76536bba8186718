"""Callbacks: functions that scripts register, and that the host calls at fixed points. A failing one is logged."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from modules import errors, extensions

Callback = Callable[..., Any]


class ImageSaveParams:
    """An image about to be saved (all fields may be changed), or that was saved."""

    def __init__(self, image: Any, p: Any, filename: str, pnginfo: dict[str, Any]) -> None:
        self.image = image
        self.p = p
        self.filename = filename
        self.pnginfo = pnginfo


class ExtraNoiseParams:
    """Noise about to be added in img2img: the noise, the latents, and the latents with the seed's noise."""

    def __init__(self, noise: Any, x: Any, xi: Any) -> None:
        self.noise = noise
        self.x = x
        self.xi = xi


class CFGDenoiserParams:
    """One call of the CFG denoiser before the model: all rows, cond first. Fields may be replaced."""

    def __init__(
        self,
        x: Any,
        image_cond: Any,
        sigma: Any,
        sampling_step: int,
        total_sampling_steps: int,
        text_cond: Any,
        text_uncond: Any,
        denoiser: Any = None,
    ) -> None:
        self.x = x
        self.image_cond = image_cond
        self.sigma = sigma
        self.sampling_step = sampling_step
        self.total_sampling_steps = total_sampling_steps
        self.text_cond = text_cond
        self.text_uncond = text_uncond
        self.denoiser = denoiser


class CFGDenoisedParams:
    """One call of the CFG denoiser after the model, before guidance: all rows of its output."""

    def __init__(self, x: Any, sampling_step: int, total_sampling_steps: int, inner_model: Any) -> None:
        self.x = x
        self.sampling_step = sampling_step
        self.total_sampling_steps = total_sampling_steps
        self.inner_model = inner_model


class AfterCFGCallbackParams:
    """One call of the CFG denoiser after guidance: one row per image; `x` may be replaced."""

    def __init__(self, x: Any, sampling_step: int, total_sampling_steps: int) -> None:
        self.x = x
        self.sampling_step = sampling_step
        self.total_sampling_steps = total_sampling_steps


class UiTrainTabParams:
    def __init__(self, txt2img_preview_params: Any) -> None:
        self.txt2img_preview_params = txt2img_preview_params


class ImageGridLoopParams:
    """A grid about to be made."""

    def __init__(self, imgs: list[Any], cols: int, rows: int) -> None:
        self.imgs = imgs
        self.cols = cols
        self.rows = rows


@dataclass
class BeforeTokenCounterParams:
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


_CATEGORIES = (
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
callback_map: dict[str, list[ScriptCallback]] = {f"callbacks_{category}": [] for category in _CATEGORIES}


def report_exception(c: ScriptCallback, job: str) -> None:
    errors.report(f"Error executing callback {job} for {c.script}", exc_info=True)


def _caller() -> str:
    """The file that called into this module."""
    return next((frame.filename for frame in inspect.stack() if frame.filename != __file__), "unknown file")


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


def _call(category: str, *args: Any, job: str | None = None, **kwargs: Any) -> list[Any]:
    """Calls all of `category`; what they return, failures left out."""
    results: list[Any] = []
    for c in ordered_callbacks(category):
        try:
            results.append(c.callback(*args, **kwargs))
        except Exception:
            report_exception(c, job or f"{category}_callback")
    return results


def app_started_callback(demo: Any, app: Any) -> None:
    _call("app_started", demo, app)


def app_reload_callback() -> None:
    _call("on_reload", job="callbacks_on_reload")


def model_loaded_callback(sd_model: Any) -> None:
    _call("model_loaded", sd_model)


def ui_tabs_callback() -> list[Any]:
    return [tab for tabs in _call("ui_tabs") for tab in tabs or []]


def ui_train_tabs_callback(params: UiTrainTabParams) -> None:
    _call("ui_train_tabs", params)


def ui_settings_callback() -> None:
    _call("ui_settings")


def before_image_saved_callback(params: ImageSaveParams) -> None:
    _call("before_image_saved", params)


def image_saved_callback(params: ImageSaveParams) -> None:
    _call("image_saved", params)


def extra_noise_callback(params: ExtraNoiseParams) -> None:
    _call("extra_noise", params)


def cfg_denoiser_callback(params: CFGDenoiserParams) -> None:
    _call("cfg_denoiser", params)


def cfg_denoised_callback(params: CFGDenoisedParams) -> None:
    _call("cfg_denoised", params)


def cfg_after_cfg_callback(params: AfterCFGCallbackParams) -> None:
    _call("cfg_after_cfg", params)


def before_component_callback(component: Any, **kwargs: Any) -> None:
    _call("before_component", component, **kwargs)


def after_component_callback(component: Any, **kwargs: Any) -> None:
    _call("after_component", component, **kwargs)


def image_grid_callback(params: ImageGridLoopParams) -> None:
    _call("image_grid", params)


def infotext_pasted_callback(infotext: str, params: dict[str, Any]) -> None:
    _call("infotext_pasted", infotext, params)


def script_unloaded_callback() -> None:
    for c in reversed(ordered_callbacks("script_unloaded")):
        try:
            c.callback()
        except Exception:
            report_exception(c, "script_unloaded")


def before_ui_callback() -> None:
    for c in reversed(ordered_callbacks("before_ui")):
        try:
            c.callback()
        except Exception:
            report_exception(c, "before_ui")


def list_optimizers_callback() -> list[Any]:
    found: list[Any] = []
    _call("list_optimizers", found)
    return found


def list_unets_callback() -> list[Any]:
    found: list[Any] = []
    _call("list_unets", found)
    return found


def before_token_counter_callback(params: BeforeTokenCounterParams) -> None:
    _call("before_token_counter", params)


def remove_current_script_callbacks() -> None:
    """Removes all that the calling file registered."""
    filename = _caller()
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.script != filename]


def remove_callbacks_for_function(callback_func: Callback) -> None:
    """Removes `callback_func` wherever it is registered."""
    for callbacks in callback_map.values():
        callbacks[:] = [c for c in callbacks if c.callback != callback_func]


def on_app_started(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the server has started; called with the gradio Blocks and the FastAPI app."""
    add_callback(callback_map["callbacks_app_started"], callback, name=name, category="app_started")


def on_before_reload(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the server is about to reload."""
    add_callback(callback_map["callbacks_on_reload"], callback, name=name, category="on_reload")


def on_model_loaded(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a checkpoint was loaded; called with the model."""
    add_callback(callback_map["callbacks_model_loaded"], callback, name=name, category="model_loaded")


def on_ui_tabs(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when tabs are made; return None or a list of (component, title, elem_id)."""
    add_callback(callback_map["callbacks_ui_tabs"], callback, name=name, category="ui_tabs")


def on_ui_train_tabs(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when tabs for training are made; this host has none."""
    add_callback(callback_map["callbacks_ui_train_tabs"], callback, name=name, category="ui_train_tabs")


def on_ui_settings(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when settings are collected: add yours with shared.opts.add_option."""
    add_callback(callback_map["callbacks_ui_settings"], callback, name=name, category="ui_settings")


def on_before_image_saved(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when an image is about to be saved; called with ImageSaveParams."""
    add_callback(callback_map["callbacks_before_image_saved"], callback, name=name, category="before_image_saved")


def on_image_saved(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when an image was saved; called with ImageSaveParams."""
    add_callback(callback_map["callbacks_image_saved"], callback, name=name, category="image_saved")


def on_extra_noise(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when extra noise is added in img2img; called with ExtraNoiseParams."""
    add_callback(callback_map["callbacks_extra_noise"], callback, name=name, category="extra_noise")


def on_cfg_denoiser(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the CFG denoiser has built its rows; called with CFGDenoiserParams."""
    add_callback(callback_map["callbacks_cfg_denoiser"], callback, name=name, category="cfg_denoiser")


def on_cfg_denoised(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the model has denoised all rows; called with CFGDenoisedParams."""
    add_callback(callback_map["callbacks_cfg_denoised"], callback, name=name, category="cfg_denoised")


def on_cfg_after_cfg(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when guidance was applied; called with AfterCFGCallbackParams."""
    add_callback(callback_map["callbacks_cfg_after_cfg"], callback, name=name, category="cfg_after_cfg")


def on_before_component(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a component of the page is about to be made; called with it and its arguments."""
    add_callback(callback_map["callbacks_before_component"], callback, name=name, category="before_component")


def on_after_component(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a component of the page was made; called with it and its arguments."""
    add_callback(callback_map["callbacks_after_component"], callback, name=name, category="after_component")


def on_image_grid(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a grid is about to be made; called with ImageGridLoopParams."""
    add_callback(callback_map["callbacks_image_grid"], callback, name=name, category="image_grid")


def on_infotext_pasted(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when an infotext is pasted; called with the text and its fields, open to changes."""
    add_callback(callback_map["callbacks_infotext_pasted"], callback, name=name, category="infotext_pasted")


def on_script_unloaded(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when scripts are unloaded: undo what you changed in the host."""
    add_callback(callback_map["callbacks_script_unloaded"], callback, name=name, category="script_unloaded")


def on_before_ui(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the page is about to be made."""
    add_callback(callback_map["callbacks_before_ui"], callback, name=name, category="before_ui")


def on_list_optimizers(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when optimizations are listed; append yours to the list."""
    add_callback(callback_map["callbacks_list_optimizers"], callback, name=name, category="list_optimizers")


def on_list_unets(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when other UNets are listed; append yours to the list."""
    add_callback(callback_map["callbacks_list_unets"], callback, name=name, category="list_unets")


def on_before_token_counter(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when tokens are counted; called with BeforeTokenCounterParams."""
    add_callback(callback_map["callbacks_before_token_counter"], callback, name=name, category="before_token_counter")
