"""Callbacks: functions that scripts register, and that the host calls at fixed points. A failing one is logged."""

from __future__ import annotations

from typing import Any

from modules.script_callback_params import (
    AfterCFGCallbackParams,
    BeforeTokenCounterParams,
    CFGDenoisedParams,
    CFGDenoiserParams,
    ExtraNoiseParams,
    ImageGridLoopParams,
    ImageSaveParams,
    UiTrainTabParams,
)
from modules.script_callback_registry import (
    Callback,
    call,
    register,
)
from modules.script_callback_registry import ScriptCallback as ScriptCallback
from modules.script_callback_registry import add_callback as add_callback
from modules.script_callback_registry import callback_map as callback_map
from modules.script_callback_registry import clear_callbacks as clear_callbacks
from modules.script_callback_registry import enumerate_callbacks as enumerate_callbacks
from modules.script_callback_registry import ordered_callbacks as ordered_callbacks
from modules.script_callback_registry import remove_callbacks_for_function as remove_callbacks_for_function
from modules.script_callback_registry import remove_current_script_callbacks as remove_current_script_callbacks
from modules.script_callback_registry import report_exception as report_exception
from modules.script_callback_registry import sort_callbacks as sort_callbacks


def app_started_callback(demo: Any, app: Any) -> None:
    call("app_started", demo, app)


def app_reload_callback() -> None:
    call("on_reload", job="callbacks_on_reload")


def model_loaded_callback(sd_model: Any) -> None:
    call("model_loaded", sd_model)


def ui_tabs_callback() -> list[Any]:
    return [tab for tabs in call("ui_tabs") for tab in tabs or []]


def ui_train_tabs_callback(params: UiTrainTabParams) -> None:
    call("ui_train_tabs", params)


def ui_settings_callback() -> None:
    call("ui_settings")


def before_image_saved_callback(params: ImageSaveParams) -> None:
    call("before_image_saved", params)


def image_saved_callback(params: ImageSaveParams) -> None:
    call("image_saved", params)


def extra_noise_callback(params: ExtraNoiseParams) -> None:
    call("extra_noise", params)


def cfg_denoiser_callback(params: CFGDenoiserParams) -> None:
    call("cfg_denoiser", params)


def cfg_denoised_callback(params: CFGDenoisedParams) -> None:
    call("cfg_denoised", params)


def cfg_after_cfg_callback(params: AfterCFGCallbackParams) -> None:
    call("cfg_after_cfg", params)


def before_component_callback(component: Any, **kwargs: Any) -> None:
    call("before_component", component, **kwargs)


def after_component_callback(component: Any, **kwargs: Any) -> None:
    call("after_component", component, **kwargs)


def image_grid_callback(params: ImageGridLoopParams) -> None:
    call("image_grid", params)


def infotext_pasted_callback(infotext: str, params: dict[str, Any]) -> None:
    call("infotext_pasted", infotext, params)


def script_unloaded_callback() -> None:
    call("script_unloaded", job="script_unloaded", last_first=True)


def before_ui_callback() -> None:
    call("before_ui", job="before_ui", last_first=True)


def list_optimizers_callback() -> list[Any]:
    found: list[Any] = []
    call("list_optimizers", found)
    return found


def list_unets_callback() -> list[Any]:
    found: list[Any] = []
    call("list_unets", found)
    return found


def before_token_counter_callback(params: BeforeTokenCounterParams) -> None:
    call("before_token_counter", params)


def on_app_started(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the server has started; called with the gradio Blocks and the FastAPI app."""
    register("app_started", callback, name)


def on_before_reload(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the server is about to reload."""
    register("on_reload", callback, name)


def on_model_loaded(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a checkpoint was loaded; called with the model."""
    register("model_loaded", callback, name)


def on_ui_tabs(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when tabs are made; return None or a list of (component, title, elem_id)."""
    register("ui_tabs", callback, name)


def on_ui_train_tabs(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when tabs for training are made; this host has none."""
    register("ui_train_tabs", callback, name)


def on_ui_settings(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when settings are collected: add yours with shared.opts.add_option."""
    register("ui_settings", callback, name)


def on_before_image_saved(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when an image is about to be saved; called with ImageSaveParams."""
    register("before_image_saved", callback, name)


def on_image_saved(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when an image was saved; called with ImageSaveParams."""
    register("image_saved", callback, name)


def on_extra_noise(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when extra noise is added in img2img; called with ExtraNoiseParams."""
    register("extra_noise", callback, name)


def on_cfg_denoiser(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the CFG denoiser has built its rows; called with CFGDenoiserParams."""
    register("cfg_denoiser", callback, name)


def on_cfg_denoised(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the model has denoised all rows; called with CFGDenoisedParams."""
    register("cfg_denoised", callback, name)


def on_cfg_after_cfg(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when guidance was applied; called with AfterCFGCallbackParams."""
    register("cfg_after_cfg", callback, name)


def on_before_component(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a component of the page is about to be made; called with it and its arguments."""
    register("before_component", callback, name)


def on_after_component(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a component of the page was made; called with it and its arguments."""
    register("after_component", callback, name)


def on_image_grid(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when a grid is about to be made; called with ImageGridLoopParams."""
    register("image_grid", callback, name)


def on_infotext_pasted(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when an infotext is pasted; called with the text and its fields, open to changes."""
    register("infotext_pasted", callback, name)


def on_script_unloaded(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when scripts are unloaded: undo what you changed in the host."""
    register("script_unloaded", callback, name)


def on_before_ui(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when the page is about to be made."""
    register("before_ui", callback, name)


def on_list_optimizers(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when optimizations are listed; append yours to the list."""
    register("list_optimizers", callback, name)


def on_list_unets(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when other UNets are listed; append yours to the list."""
    register("list_unets", callback, name)


def on_before_token_counter(callback: Callback, *, name: str | None = None) -> None:
    """Registers a function for when tokens are counted; called with BeforeTokenCounterParams."""
    register("before_token_counter", callback, name)
