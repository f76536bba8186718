"""Lays out a small SD1 checkpoint so that the real WebUI loads it without a network.

AUTOMATIC1111's WebUI builds the text encoder from the configuration that belongs to the tokenizer's folder, and looks
for that folder in the Hugging Face cache. A tiny model has a text encoder of its own size, so it needs a tokenizer
folder of its own, named by `version` in the checkpoint's yaml.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import yaml

TEXT_PREFIX = "cond_stage_model.transformer.text_model."
SDXL_PREFIX = "conditioner.embedders.0.transformer.text_model."
SDXL_CONFIG = Path("repositories", "generative-models", "configs", "inference", "sd_xl_base.yaml")  # in the checkout
EMBEDDER_ARGUMENTS = {"version", "device", "max_length", "freeze", "layer", "layer_idx"}


class CheckpointUnusable(Exception):
    """The checkpoint cannot be given to the WebUI; the message says why."""


def weight_shapes(checkpoint: Path) -> dict[str, list[int]]:
    """Name and shape of every weight, from the header of a `.safetensors` file."""
    with checkpoint.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def text_config(shapes: dict[str, list[int]], heads: int | None, prefix: str = TEXT_PREFIX) -> dict[str, Any]:
    """The transformers configuration of the CLIP text encoder whose weights have these `shapes`."""
    try:
        vocab, hidden = shapes[prefix + "embeddings.token_embedding.weight"]
        positions, _ = shapes[prefix + "embeddings.position_embedding.weight"]
        intermediate, _ = shapes[prefix + "encoder.layers.0.mlp.fc1.weight"]
    except KeyError as missing:
        raise CheckpointUnusable(f"the checkpoint has no CLIP text encoder: {missing} is missing") from None
    layer = re.compile(re.escape(prefix) + r"encoder\.layers\.(\d+)\.")
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": 1 + max(int(match[1]) for match in map(layer.match, shapes) if match),
        "num_attention_heads": heads or max(1, hidden // 64),
        "max_position_embeddings": positions,
        "hidden_act": "quick_gelu",
        "projection_dim": hidden,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "pad_token_id": vocab - 1,
    }


def write_tokenizer(folder: Path, vocabulary: Path, config: dict[str, Any]) -> None:
    """A folder that transformers loads as CLIP tokenizer; `vocabulary` holds vocab.json and merges.txt."""
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(vocabulary / name, folder / name)
    special = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": config["max_position_embeddings"], **special}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer),
        ("special_tokens_map.json", special),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def place(checkpoint: Path, models: Path) -> Path:
    """Links `checkpoint` into the models folder of a WebUI that needs nothing else; returns the link."""
    target = models / "Stable-diffusion" / checkpoint.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(checkpoint)
    except OSError:  # Windows, without the right to
        shutil.copyfile(checkpoint, target)
    return target


def prepare(checkpoint: Path, vocabulary: Path, models: Path, webui: Path) -> Path:
    """Copies `checkpoint` and its yaml into the models folder of a WebUI; returns the copy. webui: its checkout.

    A yaml that already names an existing tokenizer folder is kept as it is; otherwise a folder is made from the CLIP
    `vocabulary`. The yaml's `num_attention_heads` of the text encoder, which the WebUI does not know, moves there.
    """
    source_yaml = checkpoint.with_suffix(".yaml")
    if not source_yaml.is_file():
        shapes = weight_shapes(checkpoint)
        if any(name.startswith(SDXL_PREFIX) for name in shapes):
            return _place_sdxl(checkpoint, shapes, vocabulary, models, webui)
        raise CheckpointUnusable(
            f"{checkpoint.name} has no {source_yaml.name} beside it, which tells the WebUI the model's size"
        )
    folder = models / "Stable-diffusion"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / checkpoint.name
    shutil.copyfile(checkpoint, target)

    config = yaml.safe_load(source_yaml.read_text(encoding="utf-8"))
    stage = config["model"]["params"].get("cond_stage_config") or {}
    if not str(stage.get("target", "")).endswith(".FrozenCLIPEmbedder"):
        shutil.copyfile(source_yaml, target.with_suffix(".yaml"))  # SD2, SDXL: their yaml names all that is needed
        return target
    params = stage.get("params") or {}
    version = params.get("version")
    if not version or not Path(version).is_dir():
        tokenizer = models / "clip-tokenizer"
        write_tokenizer(
            tokenizer, vocabulary, text_config(weight_shapes(checkpoint), params.get("num_attention_heads"))
        )
        version = str(tokenizer)
    kept = {name: value for name, value in params.items() if name in EMBEDDER_ARGUMENTS}
    stage["params"] = {**kept, "version": version, "device": "cpu"}
    target.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return target


def _place_sdxl(checkpoint: Path, shapes: dict[str, list[int]], vocabulary: Path, models: Path, webui: Path) -> Path:
    """Links an SDXL checkpoint of `models`, with the WebUI's own configuration of SDXL for its UNet of one width."""
    config = yaml.safe_load((webui / SDXL_CONFIG).read_text(encoding="utf-8"))
    params = config["model"]["params"]
    params["network_config"]["params"]["channel_mult"] = [1, 1, 1]
    if "v_pred" in shapes:
        scaling = params["denoiser_config"]["params"]["scaling_config"]
        scaling["target"] = scaling["target"].replace("EpsScaling", "VScaling")
    tokenizer = models / "clip-tokenizer"
    write_tokenizer(tokenizer, vocabulary, text_config(shapes, None, SDXL_PREFIX))
    params["conditioner_config"]["params"]["emb_models"][0]["params"]["version"] = str(tokenizer)
    target = place(checkpoint, models)
    target.with_suffix(".yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return target
