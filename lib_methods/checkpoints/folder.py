"""Diffusers folders: which files hold each part's weights (variants and shards), and whether its build is plain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lib_methods.checkpoints.geometry import NO_MIDDLE
from lib_methods.checkpoints.kinds import LOADABLE
from lib_methods.errors import CheckpointError
from lib_methods.files import read_json as read_json_file
from lib_methods.safetensors import PICKLED, TensorHead, check_name, read_header

UNET_WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model", "model"
_VARIANTS = ("", "fp16", "bf16", "fp32")  # in this order; any other one counts where it is alone
_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
_UNET_DEFAULTS: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_type": "default",
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "dual_cross_attention": False,
    "reverse_transformer_layers_per_block": None,
    "num_attention_heads": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
    "resnet_skip_time_act": False,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "act_fn": "silu",
    "downsample_padding": 1,
}
_VAE_DEFAULTS: dict[str, Any] = {
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "act_fn": "silu",
}
_WHOLE = (
    "in_channels out_channels latent_channels block_out_channels layers_per_block transformer_layers_per_block "
    "cross_attention_dim attention_head_dim norm_num_groups time_cond_proj_dim addition_time_embed_dim "
    "projection_class_embeddings_input_dim vocab_size hidden_size intermediate_size num_hidden_layers "
    "num_attention_heads max_position_embeddings projection_dim sample_size"
).split()
_FRACTIONS = ("dropout", "attention_dropout", "norm_eps", "layer_norm_eps")
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_DEPTHS = ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers")
_MOST_LAYERS = 100
_UNSUPPORTED = {
    "num_class_embeds": "This folder holds an upscaler (its UNet takes a noise level), which is not supported.",
    "class_embed_type": "This model is conditioned on image embeddings (unCLIP), which is not supported.",
    "encoder_hid_dim_type": f"This is a Kolors, DeepFloyd IF or Kandinsky checkpoint; {LOADABLE}",
    "attention_type": "This is a GLIGEN checkpoint (it takes boxes), which is not supported.",
    "mid_block_type": NO_MIDDLE,
    "reverse_transformer_layers_per_block": NO_MIDDLE,
}


@dataclass(frozen=True)
class Weights:
    """The tensors of one part: `heads` by name over all `files`, and in which file each of them is."""

    files: tuple[Path, ...]
    heads: Mapping[str, TensorHead]
    places: Mapping[str, Path]


def is_diffusers_folder(path: Path) -> bool:
    """Whether `path` is a folder as `save_pretrained` writes it."""
    return (path / "unet" / "config.json").is_file()


def check_folder(path: Path) -> None:
    """Raises CheckpointError for a folder without a UNet, by the pipeline's name where the folder tells it."""
    if is_diffusers_folder(path):
        return
    kind = ""
    if (path / "model_index.json").is_file():
        kind = str(read_json(path, "model_index.json").get("_class_name", ""))
    if kind and not (path / "unet").is_dir():
        raise CheckpointError(f"The folder {path.name} holds a {kind[:80]}; {LOADABLE}")
    raise CheckpointError(f"The folder {path.name} is not a diffusers checkpoint: it has no unet/config.json.")


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A configuration of the folder `path`. Raises CheckpointError, which names the folder and the file."""
    try:
        parsed = read_json_file(path / name)
    except FileNotFoundError:
        raise CheckpointError(f"The folder {path.name} has no {name}; download the whole model.") from None
    except (OSError, ValueError):
        raise CheckpointError(f"{name} in the folder {path.name} cannot be read; download it again.") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{name} in the folder {path.name} is not a configuration; download it again.")
    return parsed


def part_weights(path: Path, part: str, stem: str) -> Weights:
    """The weights of `part` of the folder `path`. CheckpointError: missing, pickled, damaged, incomplete shards."""
    folder = path / part
    index = _index(folder, stem)
    if index is not None:
        return _sharded(path, part, index)
    names = [f"{stem}.{variant}.safetensors".replace("..", ".") for variant in _VARIANTS]
    others = sorted(file.name for file in folder.glob(f"{stem}.*.safetensors") if file.is_file())
    name = next((name for name in names if (folder / name).is_file()), others[0] if len(others) == 1 else None)
    if name is not None:
        heads = read_header(folder / name, f"{part}/{name}").tensors
        return Weights((folder / name,), heads, dict.fromkeys(heads, folder / name))
    present = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if any(re.fullmatch(rf"{stem}.*-\d+-of-\d+.*\.safetensors", file) for file in present):
        raise CheckpointError(f"{part}/ has parts of a sharded model, but not its {stem}.safetensors.index.json.")
    for file in present:
        if Path(file).suffix.lower() in PICKLED:
            check_name(Path(file), f"{part}/{file}")
    raise CheckpointError(
        f"The folder {path.name} has no weights in {part}/ that can be read ({stem}.safetensors); download them."
    )


def _index(folder: Path, stem: str) -> Path | None:
    """The index of the shards, unless there is a file with all weights."""
    if (folder / f"{stem}.safetensors").is_file():
        return None
    for variant in _VARIANTS:
        for name in (f"{stem}.safetensors.index.{variant}.json", f"{stem}.{variant}.safetensors.index.json"):
            path = folder / name.replace("..", ".")
            if path.is_file():
                return path
        if (folder / f"{stem}.{variant}.safetensors").is_file():
            return None
    return None


def _sharded(path: Path, part: str, index: Path) -> Weights:
    listed = read_json(path, f"{part}/{index.name}").get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(f"{part}/{index.name} does not list the model's weights; download it again.")
    names = sorted(set(listed.values()))
    for name in names:
        # whoever wrote the index must not choose which other files of this machine are read
        if not _plain(name):
            raise CheckpointError(
                f"{part}/{index.name} names a file outside the folder; it is refused. Get the model elsewhere."
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{part}/{name} is missing; download the whole model.")
    heads: dict[str, TensorHead] = {}
    places: dict[str, Path] = {}
    for name in names:
        tensors = read_header(index.parent / name, f"{part}/{name}").tensors
        for key in (key for key, file in listed.items() if file == name):
            if key not in tensors:
                raise CheckpointError(f"{part}/{name} lacks '{key}', which {index.name} says it has.")
            heads[key], places[key] = tensors[key], index.parent / name
    return Weights(tuple(index.parent / name for name in names), heads, places)


def _plain(name: str) -> bool:
    """Whether it is a bare file name, on every system."""
    return (
        name not in ("", ".", "..")
        and name == PurePosixPath(name).name == PureWindowsPath(name).name
        and ":" not in name
        and name.lower().endswith(".safetensors")
    )


def check_unet_config(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a UNet of another build than Stable Diffusion's."""
    _check_defaults(config, _UNET_DEFAULTS, "UNet")
    if str(config.get("_class_name", "UNet2DConditionModel")) != "UNet2DConditionModel":
        raise CheckpointError(f"The UNet of this folder is a {config['_class_name']}; {LOADABLE}")
    if config.get("addition_embed_type") not in (None, "text_time"):
        raise CheckpointError(f"This is a Kolors, DeepFloyd IF or Kandinsky checkpoint; {LOADABLE}")
    if not {*config.get("down_block_types", ()), *config.get("up_block_types", ())} <= {*_BLOCKS}:
        raise CheckpointError("The UNet of this folder has blocks of an unusual kind, which is not supported.")
    if any(isinstance(depth, list) for depth in _listed(config.get("transformer_layers_per_block"))):
        raise CheckpointError(NO_MIDDLE)
    check_numbers(config, "UNet in this folder")


def check_vae_config(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a VAE of another build than Stable Diffusion's."""
    _check_defaults(config, _VAE_DEFAULTS, "VAE")
    if str(config.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise CheckpointError(f"The VAE of this folder is a {config['_class_name']}, which is not supported.")
    plain = {"DownEncoderBlock2D", "UpDecoderBlock2D"}
    if not {*config.get("down_block_types", ()), *config.get("up_block_types", ())} <= plain:
        raise CheckpointError("A VAE with attention outside its middle block is not supported.")
    check_numbers(config, "VAE in this folder")


def check_numbers(config: Mapping[str, Any], what: str) -> None:
    """Raises CheckpointError for what its modules cannot be built with: text in place of a number, an unknown
    activation, or more layers than any model has, since listing their weights would take all memory."""
    for key in _WHOLE:
        for value in _listed(config.get(key)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise CheckpointError(
                    f"The {what} cannot be built from its configuration: {key} is {str(value)[:60]!r}, not a whole "
                    "number from 1."
                )
    for key in _FRACTIONS:
        value = config.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise CheckpointError(
                f"The {what} cannot be built from its configuration: {key} is {str(value)[:60]!r}, not a number from 0 "
                "to 1."
            )
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"The {what} cannot be built from its configuration: hidden_act is {str(activation)[:60]!r}, which is "
            "not known."
        )
    depths = [int(depth) for key in _DEPTHS for depth in _listed(config.get(key)) if depth is not None]
    if max([len(_listed(config.get("block_out_channels"))), *depths]) > _MOST_LAYERS:
        raise CheckpointError(f"The {what} cannot be built from its configuration: it has too many layers.")


def _check_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any], what: str) -> None:
    for key, default in defaults.items():
        value = config.get(key, default)
        if value != default and not (value is None and default is False):
            unusual = f"The {what} of this folder is of an unusual build ({key}: {str(value)[:60]}), not supported."
            raise CheckpointError(_UNSUPPORTED.get(key, unusual))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
