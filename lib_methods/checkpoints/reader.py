"""The only checkpoint reader: headers and configurations, and every refusal, without loading weights.

The loader builds what it says, the trainer's plan counts it; so both accept and refuse the same files, in the same
words. What only the weights can tell is left to the loader: numbers that are not finite, and what an SD2 UNet predicts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_methods.checkpoints import folder as folders
from lib_methods.checkpoints.folder import Weights, part_weights, read_json
from lib_methods.checkpoints.geometry import (
    TextGeometry,
    ldm_params,
    part_params,
    text_geometries,
    unet_geometry,
    vae_geometry,
)
from lib_methods.checkpoints.kinds import check_readable, family_of
from lib_methods.checkpoints.layout import Shapes, check_weights, clip_shapes, unet_shapes, vae_shapes
from lib_methods.checkpoints.ldm_names import (
    UNET_PREFIX,
    VAE_PREFIX,
    modern_vae_key,
    open_clip_shape_names,
    read_yaml,
    unet_names,
    vae_name,
)
from lib_methods.checkpoints.schedule import NoiseSchedule, of_file, of_scheduler
from lib_methods.errors import CheckpointError
from lib_methods.safetensors import TensorHead, read_header

CLIP_VOCABULARY = 49408
TEXT_PARTS = ("text_encoder", "text_encoder_2")
_RESOLUTIONS = {"sd1": 512, "sd2": 512, "sdxl": 1024}
_V_RESOLUTION = 768  # of the SD2 models that predict v
_USUAL_IMAGE_SIZE = 64  # in latents; what LDM's configurations say, those of 768 pixels, too
_SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be loaded.

    unet, vae: the configurations of diffusers' modules; of a folder as they are there. texts: sizes of the text
    encoders of a single file; text_configs: the configurations of those of a folder. parts: the weights, under "" for a
    single file, else by the names of the subfolders. image_size: what the configuration says about the resolution, in
    latents, None where it says nothing. text_shapes: of each text encoder's weights, as transformers' modules name
    them.
    """

    path: Path
    family: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    schedule: NoiseSchedule
    scale_factor: float
    image_size: int | None
    parts: Mapping[str, Weights]
    texts: tuple[TextGeometry, ...] = ()
    text_configs: tuple[Mapping[str, Any], ...] = ()
    text_shapes: tuple[Shapes, ...] = ()

    @property
    def is_folder(self) -> bool:
        return "unet" in self.parts

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    def resolution(self, prediction: str | None = None) -> int:
        """The side in pixels that the model was trained for. prediction: where the schedule's is unknown."""
        if self.image_size is not None:
            return self.image_size * self.pixels_per_latent
        predicts_v = (prediction or self.schedule.prediction) != "eps"
        return _V_RESOLUTION if self.family == "sd2" and predicts_v else _RESOLUTIONS[self.family]


def read_checkpoint(path: Path) -> Checkpoint:
    """What the .safetensors file or diffusers folder at `path` holds. Reads headers and configurations only.

    Raises CheckpointError with the cause, which names the file and no folder above it: what cannot be read, and what no
    program of this pack can load.
    """
    path = Path(path)
    return _folder(path) if path.is_dir() else _file(path)


# -- single files


def _file(path: Path) -> Checkpoint:
    header = read_header(path)
    heads = header.tensors
    family, yaml = family_of(heads), read_yaml(path)
    check_readable(heads)
    params = ldm_params(yaml)
    schedule = of_file(heads, header.metadata, params, family, yaml is not None)
    with _sensible("model in this file or its yaml"):
        unet = unet_geometry(heads, family, part_params(params, "unet_config", "network_config"))
        vae = vae_geometry(heads)
        texts = text_geometries(heads, family, params)
        scale = _scale(params.get("scale_factor", _SCALES[family]))
        size = params.get("image_size")
        of_unet = unet_shapes(unet)
        names = unet_names(of_unet, unet)
        wanted: list[tuple[str, Shapes]] = [
            ("UNet", {UNET_PREFIX + names[key]: shape for key, shape in of_unet.items()}),
            ("VAE", {VAE_PREFIX + vae_name(k, len(vae["block_out_channels"])): s for k, s in vae_shapes(vae).items()}),
        ]
        text_wanted: list[Shapes] = []
        for number, text in enumerate(texts):
            text_wanted.append(_text_shapes(text, family))
            shapes = open_clip_shape_names(text_wanted[-1]) if text.open_clip else text_wanted[-1]
            wanted.append(("text encoder", {text.prefix + name: shape for name, shape in shapes.items()}))
            _check_text(family, number, text.vocab, text.hidden, text.heads, text.projection)
        _check_build(family, unet, vae, [text.hidden for text in texts], texts[-1].projection)
    found = {name: _flat(name, head) for name, head in heads.items()}
    for what, weights in wanted:
        check_weights(weights, found, what)
    usual = not isinstance(size, int) or isinstance(size, bool) or size <= 0 or size == _USUAL_IMAGE_SIZE
    return Checkpoint(
        path,
        family,
        unet,
        vae,
        schedule,
        scale,
        None if usual else size,
        {"": Weights((path,), heads, dict.fromkeys(heads, path))},
        tuple(texts),
        text_shapes=tuple(text_wanted),
    )


def _flat(name: str, head: TensorHead) -> tuple[int, ...]:
    """The shape; of the VAE's attention, which files have as convolutions, that of a linear layer."""
    inside = name.startswith(VAE_PREFIX) and ".attn_1." in name and len(head.shape) == 4
    return head.shape[:2] if inside else head.shape


def _text_shapes(text: TextGeometry, family: str) -> Shapes:
    """SD2's last layer conditions nothing: the model is built without."""
    return clip_shapes(
        vocab=text.vocab,
        positions=text.positions,
        hidden=text.hidden,
        intermediate=text.intermediate,
        layers=text.layers - 1 if family == "sd2" else text.layers,
        projection=text.projection if family == "sdxl" and text.open_clip else None,
    )


# -- diffusers folders


def _folder(path: Path) -> Checkpoint:
    folders.check_folder(path)
    unet, vae = read_json(path, "unet/config.json"), read_json(path, "vae/config.json")
    with _sensible("UNet in this folder"):
        folders.check_unet_config(unet)
        unet_wanted = unet_shapes({**unet, "addition_embed_type": unet.get("addition_embed_type")})
    with _sensible("VAE in this folder"):
        folders.check_vae_config(vae)
        vae_wanted = vae_shapes(vae)
        scale = _scale(vae.get("scaling_factor", _SCALES["sd1"]))
    names = TEXT_PARTS if unet.get("addition_embed_type") == "text_time" else TEXT_PARTS[:1]
    for name in names:
        if not (path / name).is_dir():
            if name == "text_encoder" and (path / "text_encoder_2").is_dir():
                raise CheckpointError("This is the SDXL refiner; choose an SDXL base checkpoint.")
            model = "an SDXL model" if len(names) > 1 else "a model"
            raise CheckpointError(f"The folder {path.name} holds {model} without {name}/; download the whole model.")
    texts = [read_json(path, f"{name}/config.json") for name in names]
    family = "sdxl" if len(names) > 1 else "sd2" if texts[0].get("hidden_act") == "gelu" else "sd1"
    schedule = of_scheduler(read_json(path, "scheduler/scheduler_config.json"))
    parts = {
        "unet": part_weights(path, "unet", folders.UNET_WEIGHTS),
        "vae": part_weights(path, "vae", folders.UNET_WEIGHTS),
        **{name: part_weights(path, name, folders.TEXT_WEIGHTS) for name in names},
    }
    for part in parts.values():
        check_readable(part.heads)
    check_weights(unet_wanted, {k: head.shape for k, head in parts["unet"].heads.items()}, "UNet")
    check_weights(vae_wanted, {modern_vae_key(k): head.shape for k, head in parts["vae"].heads.items()}, "VAE")
    text_wanted: list[Shapes] = []
    for number, (name, config) in enumerate(zip(names, texts)):
        with _sensible("text encoder in this folder"):
            text_wanted.append(_folder_text(config, family, number))
        found = {key.removeprefix("text_model."): head.shape for key, head in parts[name].heads.items()}
        check_weights(text_wanted[-1], found, "text encoder")
    with _sensible("model in this folder"):
        widths = [int(config.get("hidden_size", 512)) for config in texts]
        _check_build(family, unet, vae, widths, int(texts[-1].get("projection_dim", 512)))
        size = _side(unet.get("sample_size"))
    return Checkpoint(
        path, family, unet, vae, schedule, scale, size, parts, text_configs=tuple(texts), text_shapes=tuple(text_wanted)
    )


def _folder_text(config: Mapping[str, Any], family: str, number: int) -> Shapes:
    """The weights of a text encoder of the folder, with the defaults of transformers' CLIPTextConfig."""
    kind = str(config.get("model_type", "clip_text_model"))
    if kind not in ("clip_text_model", "clip"):
        raise CheckpointError(f"The text encoder of this folder is '{kind[:60]}'; only CLIP is supported.")
    folders.check_numbers(config, "text encoder in this folder")
    sizes = {
        name: int(config.get(key, default))
        for name, key, default in (
            ("vocab", "vocab_size", CLIP_VOCABULARY),
            ("positions", "max_position_embeddings", 77),
            ("hidden", "hidden_size", 512),
            ("intermediate", "intermediate_size", 2048),
            ("layers", "num_hidden_layers", 12),
        )
    }
    heads, projection = int(config.get("num_attention_heads", 8)), int(config.get("projection_dim", 512))
    _check_text(family, number, sizes["vocab"], sizes["hidden"], heads, projection)
    return clip_shapes(**sizes, projection=projection if number == 1 else None)


def _side(size: Any) -> int | None:
    """The side in latents. Of two, that of a square of the same area; None where the configuration has none."""
    if isinstance(size, (list, tuple)):
        height, width = (int(side) for side in size)
        if height < 1 or width < 1:
            raise ValueError(size)
        side = math.isqrt(height * width)
        return side if height == width else max(8, side - side % 8)
    if size is None:
        return None
    if isinstance(size, bool) or int(size) != size or size < 1:
        raise ValueError(size)
    return int(size)


# -- both


@contextlib.contextmanager
def _sensible(what: str) -> Iterator[None]:
    """Turns whatever a configuration that makes no sense leads to into a sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError):
        raise CheckpointError(f"The {what} cannot be built from its configuration.") from None


def _scale(value: Any) -> float:
    scale = float(value)
    if not (math.isfinite(scale) and scale > 0):
        raise CheckpointError("The latent scale factor in this model's configuration is not a positive number.")
    return scale


def _check_text(family: str, number: int, vocab: int, hidden: int, heads: int, projection: int | None) -> None:
    if vocab < CLIP_VOCABULARY:
        raise CheckpointError(f"The text encoder knows {vocab} tokens; CLIP's vocabulary has {CLIP_VOCABULARY}.")
    if heads < 1 or hidden % heads:
        raise CheckpointError(f"The text encoder's width of {hidden} does not split into {heads} heads.")
    if family == "sdxl" and number == 1 and projection is None:
        raise CheckpointError("The second text encoder of this SDXL checkpoint has no text_projection.")


def _check_build(
    family: str, unet: Mapping[str, Any], vae: Mapping[str, Any], text_widths: list[int], projection: int | None
) -> None:
    """Raises CheckpointError where parts do not fit together, or where the modules cannot be built."""
    context = int(unet["cross_attention_dim"])
    if context != sum(text_widths):
        raise CheckpointError(
            f"The UNet reads texts of width {context}, but the text encoder writes {sum(text_widths)}: the parts of "
            "this checkpoint do not belong together."
        )
    if family == "sdxl":
        pooled = int(unet["projection_class_embeddings_input_dim"]) - 6 * int(unet["addition_time_embed_dim"])
        if pooled != projection:
            raise CheckpointError(
                f"The UNet reads a pooled text of width {pooled}, but the second text encoder writes {projection}: the "
                "parts of this checkpoint do not belong together."
            )
    heads = unet.get("attention_head_dim", 8)
    widths = [int(width) for width in unet["block_out_channels"]]
    per_level = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    for width, count in zip(widths, per_level, strict=True):
        if int(count) < 1 or width % int(count):
            raise CheckpointError(f"{width} channels do not split into {count} heads; see the model's configuration.")
    for part, what in ((unet, "UNet"), (vae, "VAE")):
        groups = int(part.get("norm_num_groups", 32))
        for width in part["block_out_channels"]:
            if int(width) % groups:
                raise CheckpointError(f"The {what}'s {width} channels do not split into {groups} groups.")
    if int(unet["out_channels"]) != int(vae["latent_channels"]):
        raise CheckpointError(
            f"The UNet writes {unet['out_channels']} channels, but the VAE reads {vae['latent_channels']}: the parts "
            "of this checkpoint do not belong together."
        )
