"""What all parts of the host share: settings, state, the model, the device."""

from __future__ import annotations

import sys
from typing import Any

import torch

from modules import options, shared_cmd_options, shared_options, util
from modules.shared_total_tqdm import TotalTQDM
from modules.styles import StyleDatabase
from modules.upscaler import UpscalerData, builtin_upscalers
from standalone.engine import names

cmd_opts = shared_cmd_options.cmd_opts
parser = shared_cmd_options.parser

options_templates = shared_options.options_templates
restricted_opts = shared_options.restricted_opts
options_section = options.options_section
OptionInfo = options.OptionInfo
OptionHTML = options.OptionHTML
opts = options.Options(options_templates, restricted_opts)

demo: Any = None
device: torch.device = torch.device("cpu")
sd_model: Any = None
xformers_available = False
parallel_processing_allowed = True
batch_cond_uncond = True
hypernetworks: dict[str, Any] = {}
loaded_hypernetworks: list[Any] = []
face_restorers: list[Any] = []
settings_components: dict[str, Any] = {}
tab_names: list[str] = []
prompt_styles = StyleDatabase()
total_tqdm = TotalTQDM()
progress_print_out = sys.stdout
config_filename = ""

latent_upscale_default_mode = "Latent"
latent_upscale_modes: dict[str, dict[str, Any]] = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
    "Latent (nearest-exact)": {"mode": "nearest-exact", "antialias": False},
}
sd_upscalers: list[UpscalerData] = builtin_upscalers()


def find_upscaler(name: str) -> UpscalerData | None:
    """The upscaler of images with this name, in any case; None when there is no such upscaler."""
    return names.find(name, {upscaler.name: upscaler for upscaler in sd_upscalers})


def find_hires_upscaler(name: str) -> str:
    """The name of the upscaler of latents or images for Hires. fix that `name` means, in any case. Raises UserError."""
    known = {text: text for text in (*latent_upscale_modes, *(upscaler.name for upscaler in sd_upscalers))}
    found = names.find(name, known)
    if found is None:
        raise names.unknown("upscaler", name, known)
    return found


natural_sort_key = util.natural_sort_key
listfiles = util.listfiles
walk_files = util.walk_files


def list_checkpoint_tiles(use_short: bool = False) -> list[str]:
    import modules.sd_models as sd_models

    return sd_models.checkpoint_tiles(use_short)


def refresh_checkpoints() -> None:
    import modules.sd_models as sd_models

    sd_models.list_models()


def list_samplers() -> list[Any]:
    import modules.sd_samplers as sd_samplers

    return sd_samplers.all_samplers


# at the end: the state reads `opts` above
from modules.shared_state import State  # noqa: E402

state = State()
