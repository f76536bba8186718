"""The host's checkpoints and LoRAs: which there are, where they lie, and a new look at the folders."""

from __future__ import annotations

import sys
from pathlib import Path

from lib_methods.checks import SettingsError
from modules import paths, sd_models, shared


def checkpoints() -> list[str]:
    """The titles of all checkpoints."""
    return [str(title) for title in sd_models.checkpoint_tiles()]


def loaded() -> str:
    """The title of the checkpoint that is in use; the first one where that is not known, "" where there is none."""
    titles = checkpoints()
    chosen = sd_models.get_closet_checkpoint_match(getattr(shared.opts, "sd_model_checkpoint", None))
    if chosen is not None and chosen.title in titles:
        return str(chosen.title)
    return titles[0] if titles else ""


def checkpoint_file(title: object) -> Path:
    """The file, or diffusers folder, of a checkpoint. Raises SettingsError: there is none of that title."""
    found = sd_models.get_closet_checkpoint_match(title) if isinstance(title, str) and title.strip() else None
    if found is None:
        raise SettingsError("Choose the base model." if not title else "The base model is not there any more.")
    return Path(found.filename)


def checkpoint_title(file: Path) -> str:
    """The title of a checkpoint's file; "" where the host does not list it."""
    for info in sd_models.checkpoints_list.values():
        if Path(info.filename).resolve() == file.resolve():
            return str(info.title)
    return ""


def loras() -> list[str]:
    """The names of all LoRAs: their files' places in the host's folder."""
    folder = folder_of("LoRA")
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix.lower() == ".safetensors")


def lora_file(name: object) -> Path:
    """The file of a LoRA of `loras`, also without its ending. Raises SettingsError: there is none of that name."""
    for known in loras():
        if name in (known, str(Path(known).with_suffix(""))):
            return folder_of("LoRA") / known
    raise SettingsError("The LoRA to continue from is not there any more.")


def folder_of(kind: str) -> Path:
    """Where the host looks for "LoRA" or "full" results."""
    if kind == "LoRA":
        return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora")
    given = getattr(shared.cmd_opts, "ckpt_dir", None)
    return Path(given) if given and Path(given).is_dir() else Path(paths.models_path) / "Stable-diffusion"


def refresh() -> None:
    """Looks through the folders again."""
    sd_models.list_models()
    networks = sys.modules.get("networks")  # AUTOMATIC1111's built-in extension
    if networks is not None and hasattr(networks, "list_available_networks"):
        networks.list_available_networks()
    own = sys.modules.get("modules.extra_networks_lora")  # the standalone host's
    if own is not None:
        own.folder().refresh()
