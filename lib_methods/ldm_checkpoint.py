"""Single checkpoint files in LDM's and SGM's layout: how the names of their parts begin, and their yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_methods.errors import CheckpointError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
SD1_TEXT_PREFIX = "cond_stage_model.transformer."
SD2_TEXT_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
MAX_YAML_BYTES, MAX_YAML_DEPTH = 64 * 1024, 50
"""Ten times those of LDM's and SGM's own configurations."""


def read_yaml(checkpoint: Path) -> Mapping[str, Any] | None:
    """The parsed yaml with the checkpoint's name beside it, or None when there is none. Raises CheckpointError."""
    path = checkpoint.with_suffix(".yaml")
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path.name}, the configuration beside the checkpoint, cannot be read.") from error
    if len(data) > MAX_YAML_BYTES:
        raise CheckpointError(
            f"{path.name}, the configuration beside the checkpoint, is larger than {MAX_YAML_BYTES // 1024} KB. "
            "It is not an LDM configuration; remove it or get the right one."
        )
    try:
        parsed = _parsed_yaml(data.decode("utf-8-sig"))
    except Exception as error:  # a number too long, a date that is none: PyYAML lets much through as it comes
        raise CheckpointError(f"{path.name}, the configuration beside the checkpoint, is not valid yaml.") from error
    if not isinstance(parsed, Mapping):
        raise CheckpointError(f"{path.name}, the configuration beside the checkpoint, is not an LDM configuration.")
    return parsed


def _parsed_yaml(text: str) -> Any:
    """`yaml.safe_load` for files of strangers: no deeper than `MAX_YAML_DEPTH`, and without aliases, which make much of
    little."""
    import yaml  # hosts have it; most callers of this module only want the names

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.depth += 1
            if self.depth > MAX_YAML_DEPTH or self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("nested too deep, or an alias")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return yaml.load(text, Loader)
