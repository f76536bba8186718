"""VAEs beside the checkpoint's: this host has none, and scripts of the WebUI that list them find an empty list."""

from __future__ import annotations

from typing import Any

unspecified = object()
vae_dict: dict[str, str] = {}
loaded_vae_file: str | None = None


def refresh_vae_list() -> None:
    """Nothing to look for."""


def reload_vae_weights(sd_model: Any = None, vae_file: Any = unspecified) -> None:
    """The checkpoint's own VAE stays."""
