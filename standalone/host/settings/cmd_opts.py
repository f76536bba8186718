"""The command line options of the WebUI that scripts look at, at values that fit this host."""

from __future__ import annotations

import argparse

parser = argparse.ArgumentParser(add_help=False)

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
