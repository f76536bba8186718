"""Lists samplers, schedules, upscalers, checkpoints, scripts, settings and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from lib_methods.errors import UserError, reason
from standalone.host import lora, shared
from standalone.host.checkpoints import checkpoints_list
from standalone.host.sampling import registry
from standalone.host.sampling.schedulers import schedulers as all_schedulers
from standalone.host.scripts import loading
from standalone.host.scripts.script import ScriptInfo
from standalone.host.settings.rules import as_text
from standalone.host.upscalers import latent_upscale_modes as latent_modes
from standalone.host.upscalers import sd_upscalers

from .checks import check_setting
from .errors import BadRequest


class SamplerItem(BaseModel):
    name: str
    aliases: list[str]
    options: dict[str, Any]


class SchedulerItem(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float | None
    need_inner_model: bool | None


class UpscalerItem(BaseModel):
    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float | None


class LatentUpscalerModeItem(BaseModel):
    name: str


class SDModelItem(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None = None


class PromptStyleItem(BaseModel):
    name: str
    prompt: str | None
    negative_prompt: str | None


class MemoryResponse(BaseModel):
    ram: dict[str, Any]
    cuda: dict[str, Any]


class ScriptsList(BaseModel):
    txt2img: list[str]
    img2img: list[str]


def samplers() -> list[SamplerItem]:
    return [
        SamplerItem(name=s.name, aliases=s.aliases, options={k: str(v) for k, v in s.options.items()})
        for s in registry.all_samplers
    ]


def schedulers() -> list[SchedulerItem]:
    return [SchedulerItem.model_validate(scheduler) for scheduler in all_schedulers]


def upscalers() -> list[UpscalerItem]:
    return [
        UpscalerItem(name=upscaler.name, model_name=getattr(upscaler.scaler, "model_name", None), scale=upscaler.scale)
        for upscaler in sd_upscalers
    ]


def latent_upscale_modes() -> list[LatentUpscalerModeItem]:
    return [LatentUpscalerModeItem(name=name) for name in latent_modes]


def checkpoints() -> list[SDModelItem]:
    """The checkpoints. `filename` is the name of the file alone: where it is on the server is nobody's business."""
    return [
        SDModelItem(
            title=c.title, model_name=c.model_name, hash=c.shorthash, sha256=c.sha256, filename=Path(c.filename).name
        )
        for c in checkpoints_list.values()
    ]


def styles() -> list[PromptStyleItem]:
    return [PromptStyleItem(**style._asdict()) for style in shared.prompt_styles.styles.values()]


def loras() -> list[dict[str, Any]]:
    """All LoRAs that prompts can name. `path` is within models/Lora, for the same reason."""
    folder = lora.folder()
    return [
        {
            "name": found.name,
            "alias": found.alias,
            "path": Path(found.filename).relative_to(folder.folder).as_posix(),
            "metadata": found.metadata,
        }
        for found in folder.all()
    ]


def refresh_loras() -> None:
    lora.folder().refresh()


def scripts_list() -> ScriptsList:
    return ScriptsList(
        txt2img=[s.name for s in loading.scripts_txt2img.scripts if s.name],
        img2img=[s.name for s in loading.scripts_img2img.scripts if s.name],
    )


def script_info() -> list[ScriptInfo]:
    runners = (loading.scripts_txt2img, loading.scripts_img2img)
    return [script.api_info for runner in runners for script in runner.scripts if script.api_info is not None]


def _shown(key: str) -> bool:
    """Settings with folders of the server in them are not shown."""
    info = shared.opts.data_labels.get(key)
    return not (info is not None and info.restrict_api) and not key.startswith("outdir_")


def options() -> dict[str, Any]:
    """All settings and their values; folders of the server are left empty."""
    return {key: value if _shown(key) else "" for key, value in shared.opts.data.items()}


def check_options(wanted: dict[str, Any]) -> dict[str, Any]:
    """The settings in `wanted` as they are kept, without the WebUI's that this host does not have.

    BadRequest unless each is there and can have its value.
    """
    for key in wanted:
        if key not in shared.opts.data_labels and key not in _WEBUI_SETTINGS:
            raise BadRequest(f"There is no setting named {as_text(key)}.")
    known = {key: value for key, value in wanted.items() if key in shared.opts.data_labels}
    # what `options` leaves empty comes back empty
    return {key: check_setting(key, value, "options") for key, value in known.items() if value != "" or _shown(key)}


def set_options(wanted: dict[str, Any]) -> None:
    """Sets and saves settings, all or none. Call it on the job queue's thread: a job must not meet the change.

    A checkpoint is loaded at once. BadRequest, or UserError when it cannot be loaded or the file cannot be written.
    """
    with shared.opts.undone_on_error():
        for key, value in check_options(wanted).items():
            if not shared.opts.set(key, value, is_api=True) and shared.opts.data.get(key) != value and _shown(key):
                raise BadRequest(f"The setting '{key}' could not be changed to {as_text(value)}.", 500)
        try:
            shared.opts.save(shared.config_filename)
        except OSError as error:
            raise UserError(f"The settings cannot be saved. {reason(error)}") from error


def cmd_flags() -> dict[str, Any]:
    """The command line options that scripts look at, without the folders and logins of the server."""
    hidden = ("dir", "path", "ckpt", "auth")
    flags = {key: value for key, value in vars(shared.cmd_opts).items() if not any(part in key for part in hidden)}
    return {
        key: value if isinstance(value, (bool, int, float, str, type(None), list)) else str(value)
        for key, value in flags.items()
    }


def _ram() -> dict[str, Any]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        used = page * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (AttributeError, ValueError, OSError, IndexError):
        return {"error": "unavailable"}
    return {"free": total - used, "used": used, "total": total}


def _cuda() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"error": "unavailable"}
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    found: dict[str, Any] = {"system": {"free": free, "used": total - free, "total": total}}
    for name, key in (
        ("active", "active_bytes"),
        ("allocated", "allocated_bytes"),
        ("reserved", "reserved_bytes"),
        ("inactive", "inactive_split_bytes"),
    ):
        found[name] = {"current": stats.get(f"{key}.all.current", 0), "peak": stats.get(f"{key}.all.peak", 0)}
    found["events"] = {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)}
    return found


def memory() -> MemoryResponse:
    """Memory of this process and of the GPU, in bytes."""
    return MemoryResponse(ram=_ram(), cuda=_cuda())


# settings that the WebUI v1.10.1 has and this host does not: clients set them, and they are left out
_WEBUI_SETTINGS = frozenset(
    """
    DAT_tile DAT_tile_overlap ESRGAN_tile ESRGAN_tile_overlap SWIN_tile SWIN_tile_overlap SWIN_torch_compile
    add_vae_hash_to_info add_vae_name_to_info api_enable_requests api_forbid_local_requests api_useragent
    auto_backcompat auto_launch_browser auto_vae_precision auto_vae_precision_bfloat16 cache_fp16_weight
    canvas_auto_expand canvas_blur_prompt canvas_disabled_functions canvas_hotkey_adjust canvas_hotkey_fullscreen
    canvas_hotkey_grow_brush canvas_hotkey_move canvas_hotkey_overlap canvas_hotkey_reset canvas_hotkey_shrink_brush
    canvas_hotkey_zoom canvas_show_tooltip clean_temp_dir_at_start code_former_weight compact_prompt_box
    cross_attention_optimization dat_enabled_models dataset_filename_join_string dataset_filename_word_regex
    ddim_discretize deepbooru_escape deepbooru_filter_tags deepbooru_sort_alpha deepbooru_use_spaces
    dimensions_and_batch_together directories_filename_pattern directories_max_prompt_words disable_all_extensions
    disable_mmap_load_safetensors disable_token_counters disabled_extensions do_not_show_images
    dump_stacks_on_signal enable_batch_seeds enable_console_prompts enable_reloading_ui_scripts
    enable_upscale_progressbar export_for_4chan extra_networks_add_text_separator
    extra_networks_card_description_is_html extra_networks_card_height extra_networks_card_order
    extra_networks_card_order_field extra_networks_card_show_desc extra_networks_card_text_scale
    extra_networks_card_width extra_networks_default_multiplier extra_networks_dir_button_function
    extra_networks_hidden_models extra_networks_show_hidden_directories extra_networks_tree_view_default_enabled
    extra_networks_tree_view_default_width extra_networks_tree_view_style extra_options_accordion extra_options_cols
    extra_options_img2img extra_options_txt2img face_restoration face_restoration_model face_restoration_unload font
    fp8_storage gallery_height gradio_theme gradio_themes_cache grid_background_color grid_extended_filename
    grid_prevent_empty_spots grid_save_to_dirs grid_text_active_color grid_text_inactive_color
    grid_zip_filename_pattern hidden_tabs hide_ldm_prints hires_fix_show_prompts hires_fix_show_sampler
    hypertile_enable_unet hypertile_enable_unet_secondpass hypertile_enable_vae hypertile_explanation
    hypertile_max_depth_unet hypertile_max_depth_vae hypertile_max_tile_unet hypertile_max_tile_vae
    hypertile_swap_size_unet hypertile_swap_size_vae img2img_batch_show_results_limit img2img_color_correction
    img2img_editor_height img2img_inpaint_mask_brush_color img2img_inpaint_sketch_default_brush_color
    img2img_settings_accordion img2img_sketch_default_brush_color img_downscale_threshold img_max_size_mp
    include_styles_into_token_counters infotext_explanation infotext_styles interrogate_clip_dict_limit
    interrogate_clip_max_length interrogate_clip_min_length interrogate_clip_num_beams
    interrogate_clip_skip_categories interrogate_deepbooru_score_threshold interrogate_keep_models_in_memory
    interrogate_return_ranks interrupt_after_current js_live_preview_in_modal_lightbox js_modal_lightbox
    js_modal_lightbox_gamepad js_modal_lightbox_gamepad_repeat js_modal_lightbox_initially_zoomed keyedit_delimiters
    keyedit_delimiters_whitespace keyedit_move keyedit_precision_attention keyedit_precision_extra ldsr_cached
    ldsr_steps list_hidden_files live_preview_allow_lowvram_full live_preview_fast_interrupt
    lora_add_hashes_to_infotext lora_bundled_ti_to_infotext lora_functional lora_hide_unknown_for_versions
    lora_in_memory_limit lora_not_found_gradio_warning lora_not_found_warning_console lora_preferred_name
    lora_show_all memmon_poll_rate multiple_tqdm no_dpmpp_sde_batch_determinism notification_audio
    notification_volume open_dir_button_choice outdir_init_images pin_memory
    prevent_screen_sleep_during_generation print_hypernet_extra profiling_activities profiling_enable
    profiling_explanation profiling_filename profiling_profile_memory profiling_record_shapes profiling_with_stack
    quicksettings_list realesrgan_enabled_models restore_config_state_file return_mask_composite
    samplers_in_dropdown samples_filename_pattern samples_log_stdout save_images_add_number
    save_images_before_color_correction save_images_before_face_restoration save_images_replace_action save_init_img
    save_mask_composite save_optimizer_state save_selected_only save_to_dirs save_training_settings_to_txt
    save_write_log_csv sd3_enable_t5 sd_checkpoint_cache sd_checkpoint_dropdown_use_short sd_checkpoint_hash
    sd_checkpoints_keep_in_cpu sd_checkpoints_limit sd_hypernetwork sd_lora sd_unet sd_vae sd_vae_checkpoint_cache
    sd_vae_decode_method sd_vae_encode_method sd_vae_explanation sd_vae_overrides_per_model_preferences
    sd_webui_modal_lightbox_icon_opacity sd_webui_modal_lightbox_toolbar_opacity sdxl_refiner_high_aesthetic_score
    sdxl_refiner_low_aesthetic_score set_scale_by_when_changing_upscaler settings_in_ui
    show_gradio_deprecation_warnings show_progress_in_title show_progressbar show_warnings target_side_length
    temp_dir textual_inversion_add_hashes_to_infotext textual_inversion_print_at_load tiling token_merging_ratio
    token_merging_ratio_hr token_merging_ratio_img2img training_enable_tensorboard training_image_repeats_per_epoch
    training_tensorboard_flush_every training_tensorboard_save_images training_write_csv_every
    training_xattention_optimizations txt2img_settings_accordion ui_extra_networks_tab_reorder ui_reorder_list
    ui_tab_order unload_models_when_training upcast_attn use_downcasted_alpha_bar use_old_emphasis_implementation
    use_old_hires_fix_width_height use_old_karras_scheduler_sigmas use_save_to_dirs_for_ui
    use_upscaler_name_as_suffix webp_lossless
    """.split()
)
