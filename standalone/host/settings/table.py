"""The settings that this host has, under the WebUI's names and with its defaults unless a comment says why not."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import ImageColor, features

from standalone.host import localization, upscalers
from standalone.host.settings.options import OptionInfo, Options, options_section
from standalone.host.settings.rules import folder_inside

Table = dict[str, OptionInfo]
FORMATS = ["png", "jpg", "jpeg", "webp", "bmp", "tiff", *(["avif"] if features.check("avif") else [])]


def _slider(
    default: float, label: str, low: float, high: float, step: float, infotext: str | None = None
) -> OptionInfo:
    return OptionInfo(default, label, gr.Slider, {"minimum": low, "maximum": high, "step": step}, infotext=infotext)


def _number(
    default: float, label: str, low: float, high: float, infotext: str | None = None, **arguments: Any
) -> OptionInfo:
    """A whole number where the default is one."""
    limits = {"minimum": low, "maximum": high, **({"precision": 0} if isinstance(default, int) else {})}
    return OptionInfo(default, label, gr.Number, limits, infotext=infotext, **arguments)


def _choice(default: str, label: str, *choices: str, infotext: str | None = None) -> OptionInfo:
    return OptionInfo(default, label, gr.Radio, {"choices": list(choices)}, infotext=infotext)


def _rho(value: float) -> float:
    """Below a tenth the powers of a schedule are too large for the numbers that it is computed in."""
    if 0 < value < 0.1:
        raise ValueError("give 0 for the schedule's own, or a number from 0.1 to 100")
    return value


def _colour(value: str) -> str:
    """An opaque colour as #rrggbb, of any form that Pillow reads, and of gradio's "rgba(255, 0, 0, 1)"."""
    plain = value.strip().lower()
    if plain.startswith("rgba("):
        numbers = [float(part) for part in plain[5:].rstrip(")").split(",")]
        found: tuple[float, ...] = (*numbers[:3], *(alpha * 255 for alpha in numbers[3:]))
    else:
        found = ImageColor.getrgb(plain)
    if len(found) not in (3, 4) or not all(0 <= part <= 255 for part in found) or found[3:] not in ((), (255,)):
        raise ValueError("give an opaque color such as #ffffff")
    return "#{:02x}{:02x}{:02x}".format(*(round(part) for part in found[:3]))


def _checkpoint(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("give the name of a checkpoint")
    return value


def _upscalers() -> dict[str, Any]:
    return {"choices": [upscaler.name for upscaler in upscalers.sd_upscalers]}


def _localizations() -> dict[str, Any]:
    return {"choices": localization.names()}


def all_options() -> Table:
    """A fresh table of all settings."""
    formats = {"choices": FORMATS}
    sections: dict[tuple[str, str], Table] = {
        ("saving-images", "Saving images"): {
            "samples_save": OptionInfo(True, "Always save all generated images"),
            "samples_format": OptionInfo("png", "File format for images", gr.Dropdown, formats),
            "save_images_before_highres_fix": OptionInfo(False, "Save a copy of the image before Hires. fix"),
            "save_mask": OptionInfo(False, "For inpainting, save a copy of the mask"),
            "grid_save": OptionInfo(False, "Always save grids of images"),
            "grid_format": OptionInfo("png", "File format for grids", gr.Dropdown, formats),
            "grid_only_if_multiple": OptionInfo(True, "No grids of one image"),
            "jpeg_quality": _slider(80, "Quality of saved jpeg images", 1, 100, 1),
            "save_incomplete_images": OptionInfo(False, "Save images that were interrupted"),
            "enable_pnginfo": OptionInfo(True, "Write infotext to metadata of the generated image"),
            "save_txt": OptionInfo(False, "Write infotext to a text file next to every image"),
            "use_original_name_batch": OptionInfo(
                True, "Use original name for output filename during batch process in extras tab"
            ),
        },
        # restrict_api: a client must not be able to move the host's output elsewhere
        ("saving-paths", "Paths for saving"): {
            f"outdir_{key}": OptionInfo(folder, f"Output directory for {what}", restrict_api=True, check=folder_inside)
            for key, folder, what in (
                ("samples", "", "images"),
                ("txt2img_samples", "txt2img-images", "txt2img images"),
                ("img2img_samples", "img2img-images", "img2img images"),
                ("extras_samples", "extras-images", "images from extras tab"),
                ("grids", "", "grids"),
                ("txt2img_grids", "txt2img-grids", "txt2img grids"),
                ("img2img_grids", "img2img-grids", "img2img grids"),
                ("save", "saved", "images saved using the Save button"),
            )
        },
        ("sd", "Stable Diffusion"): {
            "sd_model_checkpoint": OptionInfo(
                None, "Stable Diffusion checkpoint", infotext="Model hash", check=_checkpoint
            ),
            "CLIP_stop_at_last_layers": _slider(1, "Clip skip", 1, 12, 1, "Clip skip"),
            "emphasis": _choice(
                "Original", "Emphasis mode", "None", "Ignore", "Original", "No norm", infotext="Emphasis"
            ),
            "comma_padding_backtrack": _slider(20, "Prompt word wrap length limit", 0, 74, 1),
            "sdxl_crop_top": _number(0, "SDXL: crop top coordinate", 0, 8192),
            "sdxl_crop_left": _number(0, "SDXL: crop left coordinate", 0, 8192),
            "sdxl_clip_l_skip": OptionInfo(False, "Clip skip for SDXL", infotext="Clip skip SDXL"),
            "pad_cond_uncond": OptionInfo(False, "Pad prompt/negative prompt", infotext="Pad conds"),
            "pad_cond_uncond_v0": OptionInfo(False, "Pad prompt/negative prompt (v0)", infotext="Pad conds v0"),
            "persistent_cond_cache": OptionInfo(True, "Keep the conditioning of the last prompts"),
            "batch_cond_uncond": OptionInfo(True, "Batch cond/uncond"),
            "use_old_scheduling": OptionInfo(
                False, "Use old prompt editing timelines.", infotext="Old prompt editing timelines"
            ),
            "hires_fix_use_firstpass_conds": OptionInfo(False, "Hires. fix: take the conditioning of the first pass"),
            "hires_fix_refiner_pass": _choice(
                "second pass",
                "Hires. fix: the pass that the refiner has a part in",
                *("first pass", "second pass", "both passes"),
                infotext="Hires refiner",
            ),
            "refiner_switch_by_sample_steps": OptionInfo(
                False,
                "Switch to the refiner by sampling steps instead of timesteps",
                infotext="Refiner switch by sampling steps",
            ),
        },
        ("sampler-params", "Sampler parameters"): {
            "hide_samplers": OptionInfo([], "Hide samplers in user interface"),
            "eta_ddim": _slider(0.0, "Eta for DDIM", 0, 1, 0.01, "Eta DDIM"),
            "eta_ancestral": _slider(1.0, "Eta for k-diffusion samplers", 0, 1, 0.01, "Eta"),
            "s_churn": _slider(0.0, "sigma churn", 0, 100, 0.01, "Sigma churn"),
            "s_tmin": _slider(0.0, "sigma tmin", 0, 10, 0.01, "Sigma tmin"),
            "s_tmax": _slider(0.0, "sigma tmax", 0, 999, 0.01, "Sigma tmax"),
            "s_noise": _slider(1.0, "sigma noise", 0, 1.1, 0.001, "Sigma noise"),
            "sigma_min": _number(0.0, "sigma min", 0, 100, "Schedule min sigma"),
            # models with zero terminal SNR begin above 4000
            "sigma_max": _number(0.0, "sigma max", 0, 10_000, "Schedule max sigma"),
            "rho": _number(0.0, "rho", 0, 100, "Schedule rho", check=_rho),
            "eta_noise_seed_delta": _number(0, "Eta noise seed delta", -(2**53), 2**53, "ENSD"),
            "always_discard_next_to_last_sigma": OptionInfo(
                False, "Always discard next-to-last sigma", infotext="Discard penultimate sigma"
            ),
            "sgm_noise_multiplier": OptionInfo(False, "SGM noise multiplier", infotext="SGM noise multiplier"),
            "uni_pc_variant": _choice("bh1", "UniPC variant", "bh1", "bh2", infotext="UniPC variant"),
            "uni_pc_skip_type": _choice(
                "time_uniform",
                "UniPC skip type",
                *("time_uniform", "time_quadratic", "logSNR"),
                infotext="UniPC skip type",
            ),
            "uni_pc_order": _slider(3, "UniPC order", 1, 3, 1, "UniPC order"),
            "uni_pc_lower_order_final": OptionInfo(True, "UniPC lower order final", infotext="UniPC lower order final"),
            "enable_quantization": OptionInfo(
                False, "Round sigmas to the model's timesteps", infotext="Discrete sigmas"
            ),
            "s_min_uncond": _slider(0.0, "Negative Guidance minimum sigma", 0, 15, 0.01, "NGMS"),
            "s_min_uncond_all": OptionInfo(
                False, "Negative Guidance minimum sigma all steps", infotext="NGMS all steps"
            ),
            "skip_early_cond": _slider(
                0.0, "Ignore negative prompt during early sampling", 0, 1, 0.01, "Skip Early CFG"
            ),
            # the CPU's generator rather than the GPU's: the same seed then gives the same image on every machine
            "randn_source": _choice("CPU", "Random number generator source", "GPU", "CPU", "NV", infotext="RNG").info(
                "NV: a GPU's noise, computed on any device"
            ),
        },
        ("img2img", "img2img"): {
            "inpainting_mask_weight": _slider(
                1.0, "Inpainting conditioning mask strength", 0, 1, 0.01, "Conditional mask weight"
            ),
            "initial_noise_multiplier": _slider(1.0, "Noise multiplier for img2img", 0, 1.5, 0.001, "Noise multiplier"),
            "img2img_extra_noise": _slider(
                0.0, "Extra noise multiplier for img2img and hires fix", 0, 1, 0.01, "Extra noise"
            ),
            "img2img_fix_steps": OptionInfo(
                False, "With img2img, do exactly the amount of steps the slider specifies."
            ),
            "img2img_background_color": OptionInfo(
                "#ffffff", "Fill transparent parts of the input image with this color.", gr.ColorPicker, check=_colour
            ),
            "upscaler_for_img2img": OptionInfo(None, "Upscaler for img2img", gr.Dropdown, _upscalers),
            "overlay_inpaint": OptionInfo(True, "Overlay original for inpaint"),
            "return_mask": OptionInfo(False, "For inpainting, include the greyscale mask in results for web"),
        },
        ("infotext", "Infotext"): {
            "add_model_hash_to_info": OptionInfo(True, "Add model hash to infotext"),
            "add_model_name_to_info": OptionInfo(True, "Add model name to infotext"),
            "add_version_to_infotext": OptionInfo(True, "Add program version to infotext"),
            "add_user_name_to_info": OptionInfo(False, "Add user name to infotext when authenticated"),
            "disable_weights_auto_swap": OptionInfo(True, "Disregard checkpoint information from pasted infotext"),
            "infotext_skip_pasting": OptionInfo([], "Disregard fields from pasted infotext"),
            "send_seed": OptionInfo(True, "Send seed when sending prompt or image to other interface"),
            "send_size": OptionInfo(True, "Send size when sending prompt or image to another interface"),
        },
        ("localization", "Language"): {
            "localization": OptionInfo(localization.NONE, "Localization", gr.Dropdown, _localizations).info(
                "reload the page afterwards"
            ),
        },
        ("ui", "Live previews"): {
            "live_previews_enable": OptionInfo(True, "Show live previews of the created image"),
            "live_previews_image_format": _choice("jpeg", "Live preview file format", "jpeg", "png"),
            "show_progress_grid": OptionInfo(True, "Show previews of all images generated in a batch as a grid"),
            "show_progress_every_n_steps": _slider(2, "Live preview display period", -1, 32, 1),
            # "Auto": the VAE itself when it is small, else a linear map from latents to colours
            "show_progress_type": _choice("Auto", "Live preview method", "Auto", "Full", "Approx cheap"),
            "live_preview_content": _choice("Prompt", "Live preview subject", "Combined", "Prompt", "Negative prompt"),
            "live_preview_refresh_period": _number(
                1000, "Progressbar and preview update period, in milliseconds", 100, 60_000
            ),
            "return_grid": OptionInfo(True, "Show grid in gallery"),
            "n_rows": _slider(
                -1, "Grid row count; use -1 for autodetect and 0 for it to be same as batch size", -1, 16, 1
            ),
        },
        ("api", "API"): {
            "cancel_jobs_without_client": OptionInfo(
                False, "Cancel the job of an API request when its client has closed the connection"
            )
        },
    }
    return {key: info for section, table in sections.items() for key, info in options_section(section, table).items()}


options_templates: Table = all_options()
restricted_opts: set[str] = {key for key, info in options_templates.items() if info.restrict_api}
opts = Options(options_templates, restricted_opts)
