"""Shared by all parts of the host: settings, state, the model, the device."""

from standalone.host.checkpoints import list_checkpoint_tiles, refresh_checkpoints
from standalone.host.shared import parser
from . import lead
from standalone.host.paths import listfiles, natural_sort_key, walk_files
from standalone.host.sampling.registry import list_samplers
from standalone.host.settings.options import OptionHTML, OptionInfo, options_section
from standalone.host.settings.table import options_templates, restricted_opts
from standalone.host.shared import batch_cond_uncond, cmd_opts, config_filename, demo, device, face_restorers
from standalone.host.shared import hypernetworks, loaded_hypernetworks, opts, parallel_processing_allowed
from standalone.host.shared import progress_print_out, prompt_styles, sd_model, settings_components, state, tab_names
from standalone.host.shared import total_tqdm, xformers_available
from standalone.host.upscalers import latent_upscale_default_mode, latent_upscale_modes, sd_upscalers

lead(
    __name__,
    "host.shared",
    "host.checkpoints",
    "host.sampling.registry",
    "host.upscalers",
    "host.paths",
    "host.settings.options",
    "host.settings.table",
)
