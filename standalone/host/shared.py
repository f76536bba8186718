"""Shared by all parts of the host: settings, state, the model, the device, styles of prompts, the command line."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from standalone.host.settings.table import opts as opts
from standalone.host.state import State, TotalTQDM
from standalone.host.styles import StyleDatabase

parser = argparse.ArgumentParser(add_help=False)
# the options of the WebUI's command line that scripts look at, at values that fit this host
cmd_opts = argparse.Namespace(
    allowed_hosts=[],
    api=True,
    api_auth=None,
    ckpt=None,
    ckpt_dir=None,
    data_dir=None,
    device_id=None,
    disable_nan_check=False,
    embeddings_dir="",
    freeze_settings=False,
    freeze_settings_in_sections=None,
    freeze_specific_settings=None,
    gradio_auth=None,
    gradio_auth_path=None,
    hide_ui_dir_config=False,
    listen=False,
    lowvram=False,
    medvram=False,
    medvram_sdxl=False,
    no_half=False,
    no_half_vae=False,
    no_prompt_history=True,
    nowebui=False,
    port=None,
    precision="autocast",
    server_name=None,
    share=False,
    skip_torch_cuda_test=True,
    subpath=None,
    ui_debug_mode=False,
    use_cpu=[],
    use_ipex=False,
    vae_path=None,
    xformers=False,
)


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
state = State()
