"""Shared by all parts of the host: settings, state, the model, the device."""

from __future__ import annotations

import sys
from typing import Any

import torch

from standalone.host.settings.cmd_opts import cmd_opts as cmd_opts
from standalone.host.settings.table import opts as opts
from standalone.host.state import State, TotalTQDM
from standalone.host.styles import StyleDatabase

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
