"""Shared by all parts of the host: settings, state, the model, the device, styles of prompts, the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from standalone.engine import names
from standalone.host.settings.table import opts as opts
from standalone.host.state import State, TotalTQDM

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


class PromptStyle(NamedTuple):
    """`{prompt}` in a style's text is replaced by the prompt; without it the text is appended."""

    name: str
    prompt: str | None
    negative_prompt: str | None
    path: str | None = None


def merge_prompts(style_prompt: str, prompt: str) -> str:
    """One style's text applied to `prompt`."""
    if "{prompt}" in style_prompt:
        return style_prompt.replace("{prompt}", prompt)
    return ", ".join(part.strip() for part in (prompt, style_prompt) if part.strip())


class StyleDatabase:
    """The known styles, by name. This host reads none from disk; scripts may add their own."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.no_style = PromptStyle("None", "", "")
        self.styles: dict[str, PromptStyle] = {}

    def find(self, name: str) -> PromptStyle | None:
        """The style of this name, in any case."""
        return names.find(name, self.styles)

    def get_style_prompts(self, styles: Sequence[str]) -> list[str]:
        return [(self.find(name) or self.no_style).prompt or "" for name in styles]

    def get_negative_style_prompts(self, styles: Sequence[str]) -> list[str]:
        return [(self.find(name) or self.no_style).negative_prompt or "" for name in styles]

    def apply_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        for text in self.get_style_prompts(styles):
            prompt = merge_prompts(text, prompt)
        return prompt

    def apply_negative_styles_to_prompt(self, prompt: str, styles: Sequence[str]) -> str:
        for text in self.get_negative_style_prompts(styles):
            prompt = merge_prompts(text, prompt)
        return prompt

    def extract_styles_from_prompt(self, prompt: str, negative_prompt: str) -> tuple[list[str], str, str]:
        """Styles are not guessed from a prompt here: none found, prompts as they are."""
        return [], prompt, negative_prompt


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
