"""Callbacks: functions that scripts register, and that the host calls at fixed points. A failing one is logged."""

from standalone.host.callbacks import AfterCFGCallbackParams, BeforeTokenCounterParams, CFGDenoisedParams
from standalone.host.callbacks import CFGDenoiserParams, ExtraNoiseParams, ImageGridLoopParams, ImageSaveParams
from standalone.host.callbacks import ScriptCallback, UiTrainTabParams, add_callback, after_component_callback
from standalone.host.callbacks import app_reload_callback, app_started_callback, before_component_callback
from standalone.host.callbacks import before_image_saved_callback, before_token_counter_callback, before_ui_callback
from standalone.host.callbacks import callback_map, cfg_after_cfg_callback, cfg_denoised_callback
from standalone.host.callbacks import cfg_denoiser_callback, clear_callbacks, enumerate_callbacks
from standalone.host.callbacks import extra_noise_callback, image_grid_callback, image_saved_callback
from standalone.host.callbacks import infotext_pasted_callback, list_optimizers_callback, list_unets_callback
from standalone.host.callbacks import model_loaded_callback, on_after_component, on_app_started, on_before_component
from standalone.host.callbacks import on_before_image_saved, on_before_reload, on_before_token_counter, on_before_ui
from standalone.host.callbacks import on_cfg_after_cfg, on_cfg_denoised, on_cfg_denoiser, on_extra_noise
from standalone.host.callbacks import on_image_grid, on_image_saved, on_infotext_pasted, on_list_optimizers
from standalone.host.callbacks import on_list_unets, on_model_loaded, on_script_unloaded, on_ui_settings, on_ui_tabs
from standalone.host.callbacks import on_ui_train_tabs, ordered_callbacks, remove_callbacks_for_function
from standalone.host.callbacks import remove_current_script_callbacks, report_exception, script_unloaded_callback
from standalone.host.callbacks import sort_callbacks, ui_settings_callback, ui_tabs_callback, ui_train_tabs_callback
from . import lead

lead(__name__, "host.callbacks")
