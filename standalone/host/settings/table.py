"""The settings that this host has, under the WebUI's names and with its defaults unless a comment says why not."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import ImageColor, features

from standalone.host import upscalers
from standalone.host.settings.options import OptionInfo, Options, options_section
from standalone.host.settings.rules import folder_inside

Table = dict[str, OptionInfo]
FORMATS = ["png", "jpg", "jpeg", "webp", "bmp", "tiff", *(["avif"] if features.check("avif") else [])]


def _slider(low: float, high: float, step: float) -> dict[str, Any]:
    return {"minimum": low, "maximum": high, "step": step}


def _number(low: float, high: float) -> dict[str, Any]:
    return {"minimum": low, "maximum": high}


def _whole(low: int, high: int) -> dict[str, Any]:
    return {"minimum": low, "maximum": high, "precision": 0}


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


def saving() -> Table:
    return options_section(
        ("saving-images", "Saving images"),
        {
            "samples_save": OptionInfo(True, "Always save all generated images"),
            "samples_format": OptionInfo("png", "File format for images", gr.Dropdown, {"choices": FORMATS}),
            "save_images_before_highres_fix": OptionInfo(False, "Save a copy of the image before Hires. fix"),
            "save_mask": OptionInfo(False, "For inpainting, save a copy of the mask"),
            "grid_save": OptionInfo(False, "Always save grids of images"),
            "grid_format": OptionInfo("png", "File format for grids", gr.Dropdown, {"choices": FORMATS}),
            "grid_only_if_multiple": OptionInfo(True, "No grids of one image"),
            "jpeg_quality": OptionInfo(80, "Quality of saved jpeg images", gr.Slider, _slider(1, 100, 1)),
            "save_incomplete_images": OptionInfo(False, "Save images that were interrupted"),
            "enable_pnginfo": OptionInfo(True, "Write infotext to metadata of the generated image"),
            "save_txt": OptionInfo(False, "Write infotext to a text file next to every image"),
        },
    )


def output_folders() -> Table:
    # restrict_api: a client must not be able to move the host's output elsewhere
    labels = {
        "outdir_samples": ("", "Output directory for images"),
        "outdir_txt2img_samples": ("txt2img-images", "Output directory for txt2img images"),
        "outdir_img2img_samples": ("img2img-images", "Output directory for img2img images"),
        "outdir_grids": ("", "Output directory for grids"),
        "outdir_txt2img_grids": ("txt2img-grids", "Output directory for txt2img grids"),
        "outdir_img2img_grids": ("img2img-grids", "Output directory for img2img grids"),
    }
    return options_section(
        ("saving-paths", "Paths for saving"),
        {
            key: OptionInfo(default, label, restrict_api=True, check=folder_inside)
            for key, (default, label) in labels.items()
        },
    )


def conditioning() -> Table:
    return options_section(
        ("sd", "Stable Diffusion"),
        {
            "sd_model_checkpoint": OptionInfo(
                None, "Stable Diffusion checkpoint", infotext="Model hash", check=_checkpoint
            ),
            "CLIP_stop_at_last_layers": OptionInfo(1, "Clip skip", gr.Slider, _slider(1, 12, 1), infotext="Clip skip"),
            "emphasis": OptionInfo(
                "Original",
                "Emphasis mode",
                gr.Radio,
                {"choices": ["None", "Ignore", "Original", "No norm"]},
                infotext="Emphasis",
            ),
            "comma_padding_backtrack": OptionInfo(20, "Prompt word wrap length limit", gr.Slider, _slider(0, 74, 1)),
            "sdxl_crop_top": OptionInfo(0, "SDXL: crop top coordinate", gr.Number, _whole(0, 8192)),
            "sdxl_crop_left": OptionInfo(0, "SDXL: crop left coordinate", gr.Number, _whole(0, 8192)),
            "sdxl_clip_l_skip": OptionInfo(False, "Clip skip for SDXL", infotext="Clip skip SDXL"),
            "pad_cond_uncond": OptionInfo(False, "Pad prompt/negative prompt", infotext="Pad conds"),
            "pad_cond_uncond_v0": OptionInfo(False, "Pad prompt/negative prompt (v0)", infotext="Pad conds v0"),
            "persistent_cond_cache": OptionInfo(True, "Keep the conditioning of the last prompts"),
            "batch_cond_uncond": OptionInfo(True, "Batch cond/uncond"),
            "use_old_scheduling": OptionInfo(
                False, "Use old prompt editing timelines.", infotext="Old prompt editing timelines"
            ),
            "hires_fix_use_firstpass_conds": OptionInfo(False, "Hires. fix: take the conditioning of the first pass"),
            "hires_fix_refiner_pass": OptionInfo(
                "second pass",
                "Hires. fix: the pass that the refiner has a part in",
                gr.Radio,
                {"choices": ["first pass", "second pass", "both passes"]},
                infotext="Hires refiner",
            ),
            "refiner_switch_by_sample_steps": OptionInfo(
                False,
                "Switch to the refiner by sampling steps instead of timesteps",
                infotext="Refiner switch by sampling steps",
            ),
        },
    )


def sampling() -> Table:
    return options_section(
        ("sampler-params", "Sampler parameters"),
        {
            "hide_samplers": OptionInfo([], "Hide samplers in user interface"),
            "eta_ddim": OptionInfo(0.0, "Eta for DDIM", gr.Slider, _slider(0, 1, 0.01), infotext="Eta DDIM"),
            "eta_ancestral": OptionInfo(
                1.0, "Eta for k-diffusion samplers", gr.Slider, _slider(0, 1, 0.01), infotext="Eta"
            ),
            "s_churn": OptionInfo(0.0, "sigma churn", gr.Slider, _slider(0, 100, 0.01), infotext="Sigma churn"),
            "s_tmin": OptionInfo(0.0, "sigma tmin", gr.Slider, _slider(0, 10, 0.01), infotext="Sigma tmin"),
            "s_tmax": OptionInfo(0.0, "sigma tmax", gr.Slider, _slider(0, 999, 0.01), infotext="Sigma tmax"),
            "s_noise": OptionInfo(1.0, "sigma noise", gr.Slider, _slider(0, 1.1, 0.001), infotext="Sigma noise"),
            "sigma_min": OptionInfo(0.0, "sigma min", gr.Number, _number(0, 100), infotext="Schedule min sigma"),
            # models with zero terminal SNR begin above 4000
            "sigma_max": OptionInfo(0.0, "sigma max", gr.Number, _number(0, 10_000), infotext="Schedule max sigma"),
            "rho": OptionInfo(0.0, "rho", gr.Number, _number(0, 100), infotext="Schedule rho", check=_rho),
            "eta_noise_seed_delta": OptionInfo(
                0, "Eta noise seed delta", gr.Number, _whole(-(2**53), 2**53), infotext="ENSD"
            ),
            "always_discard_next_to_last_sigma": OptionInfo(
                False, "Always discard next-to-last sigma", infotext="Discard penultimate sigma"
            ),
            "sgm_noise_multiplier": OptionInfo(False, "SGM noise multiplier", infotext="SGM noise multiplier"),
            "uni_pc_variant": OptionInfo(
                "bh1", "UniPC variant", gr.Radio, {"choices": ["bh1", "bh2"]}, infotext="UniPC variant"
            ),
            "uni_pc_skip_type": OptionInfo(
                "time_uniform",
                "UniPC skip type",
                gr.Radio,
                {"choices": ["time_uniform", "time_quadratic", "logSNR"]},
                infotext="UniPC skip type",
            ),
            "uni_pc_order": OptionInfo(3, "UniPC order", gr.Slider, _slider(1, 3, 1), infotext="UniPC order"),
            "uni_pc_lower_order_final": OptionInfo(True, "UniPC lower order final", infotext="UniPC lower order final"),
            "enable_quantization": OptionInfo(
                False, "Round sigmas to the model's timesteps", infotext="Discrete sigmas"
            ),
            "s_min_uncond": OptionInfo(
                0.0, "Negative Guidance minimum sigma", gr.Slider, _slider(0, 15, 0.01), infotext="NGMS"
            ),
            "s_min_uncond_all": OptionInfo(
                False, "Negative Guidance minimum sigma all steps", infotext="NGMS all steps"
            ),
            "skip_early_cond": OptionInfo(
                0.0,
                "Ignore negative prompt during early sampling",
                gr.Slider,
                _slider(0, 1, 0.01),
                infotext="Skip Early CFG",
            ),
            # the CPU's generator rather than the GPU's: the same seed then gives the same image on every machine
            "randn_source": OptionInfo(
                "CPU", "Random number generator source", gr.Radio, {"choices": ["GPU", "CPU", "NV"]}, infotext="RNG"
            ).info("NV: a GPU's noise, computed on any device"),
        },
    )


def img2img() -> Table:
    return options_section(
        ("img2img", "img2img"),
        {
            "inpainting_mask_weight": OptionInfo(
                1.0,
                "Inpainting conditioning mask strength",
                gr.Slider,
                _slider(0, 1, 0.01),
                infotext="Conditional mask weight",
            ),
            "initial_noise_multiplier": OptionInfo(
                1.0, "Noise multiplier for img2img", gr.Slider, _slider(0, 1.5, 0.001), infotext="Noise multiplier"
            ),
            "img2img_extra_noise": OptionInfo(
                0.0,
                "Extra noise multiplier for img2img and hires fix",
                gr.Slider,
                _slider(0, 1, 0.01),
                infotext="Extra noise",
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
    )


def infotext() -> Table:
    return options_section(
        ("infotext", "Infotext"),
        {
            "add_model_hash_to_info": OptionInfo(True, "Add model hash to infotext"),
            "add_model_name_to_info": OptionInfo(True, "Add model name to infotext"),
            "add_version_to_infotext": OptionInfo(True, "Add program version to infotext"),
            "add_user_name_to_info": OptionInfo(False, "Add user name to infotext when authenticated"),
            "disable_weights_auto_swap": OptionInfo(True, "Disregard checkpoint information from pasted infotext"),
            "infotext_skip_pasting": OptionInfo([], "Disregard fields from pasted infotext"),
            "send_seed": OptionInfo(True, "Send seed when sending prompt or image to other interface"),
            "send_size": OptionInfo(True, "Send size when sending prompt or image to another interface"),
        },
    )


def live_preview() -> Table:
    return options_section(
        ("ui", "Live previews"),
        {
            "live_previews_enable": OptionInfo(True, "Show live previews of the created image"),
            "live_previews_image_format": OptionInfo(
                "jpeg", "Live preview file format", gr.Radio, {"choices": ["jpeg", "png"]}
            ),
            "show_progress_grid": OptionInfo(True, "Show previews of all images generated in a batch as a grid"),
            "show_progress_every_n_steps": OptionInfo(2, "Live preview display period", gr.Slider, _slider(-1, 32, 1)),
            # "Auto": the VAE itself when it is small, else a linear map from latents to colours
            "show_progress_type": OptionInfo(
                "Auto", "Live preview method", gr.Radio, {"choices": ["Auto", "Full", "Approx cheap"]}
            ),
            "live_preview_content": OptionInfo(
                "Prompt", "Live preview subject", gr.Radio, {"choices": ["Combined", "Prompt", "Negative prompt"]}
            ),
            "live_preview_refresh_period": OptionInfo(
                1000, "Progressbar and preview update period, in milliseconds", gr.Number, _whole(100, 60_000)
            ),
            "return_grid": OptionInfo(True, "Show grid in gallery"),
            "n_rows": OptionInfo(
                -1,
                "Grid row count; use -1 for autodetect and 0 for it to be same as batch size",
                gr.Slider,
                _slider(-1, 16, 1),
            ),
        },
    )


def api() -> Table:
    return options_section(
        ("api", "API"),
        {
            "cancel_jobs_without_client": OptionInfo(
                False, "Cancel the job of an API request when its client has closed the connection"
            ),
        },
    )


def all_options() -> Table:
    """A fresh table of all settings."""
    tables = (saving, output_folders, conditioning, sampling, img2img, infotext, live_preview, api)
    return {key: info for table in tables for key, info in table().items()}


options_templates: Table = all_options()
restricted_opts: set[str] = {key for key, info in options_templates.items() if info.restrict_api}
opts = Options(options_templates, restricted_opts)
