"""A checkpoint of the engine as DreamBooth's trainer wants it: plain calls, gradients where asked for, LDM's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from lib_methods.checkpoints.ldm_names import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_CLIP_PREFIX,
    SDXL_OPEN_CLIP_PREFIX,
    UNET_PREFIX,
    open_clip_name,
)
from lib_methods.checkpoints.reader import TEXT_PARTS
from lib_methods.dreambooth.model.base import checked_base
from lib_methods.dreambooth.model.identifier import RAREST_FROM
from lib_methods.dreambooth.model.model import TextEmbedding
from lib_methods.errors import UserError, reason
from standalone.engine.checkpoint import checkpoint_sha256, load_checkpoint, part_state, read
from standalone.engine.model import StableDiffusionModel
from standalone.engine.text import TextEncoder, TextOptions, clip_tokenizer
from standalone.engine.weights import ldm_unet, ldm_unet_names, ldm_vae

_PLAIN = TextOptions(emphasis="None")


class EngineModel:
    """`lib_methods.dreambooth.model.model.TrainingModel` over a `StableDiffusionModel`.

    The parts may be on different devices: every call takes its input to the part that it needs and leaves the result
    there. Nothing requires a gradient until the trainer says so.
    """

    def __init__(self, model: StableDiffusionModel, *, name: str, sha256: str, resolution: int) -> None:
        self.model = model
        self.name, self.sha256, self.resolution = name, sha256, resolution
        self.family = "sdxl" if model.is_sdxl else "sd2" if model.is_sd2 else "sd1"
        self.parameterization = model.parameterization
        self.zero_terminal_snr = model.noise_schedule.zero_terminal_snr
        self.pixels_per_latent = 2 ** (len(model.first_stage_model.config.block_out_channels) - 1)
        self.latent_channels = model.latent_channels
        self.limit, self.rare_from = None, RAREST_FROM
        # the schedule itself: the model's own, which samplers divide by, does not end at zero
        self.alphas_cumprod = torch.from_numpy(model.noise_schedule.alphas_cumprod()).float()
        for encoder in self.encoders:
            encoder.options = lambda: _PLAIN

    # -- the parts

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.model.model.diffusion_model
        return unet

    @property
    def vae(self) -> nn.Module:
        vae: nn.Module = self.model.first_stage_model
        return vae

    @property
    def encoders(self) -> list[TextEncoder]:
        return [encoder for encoder in self.model.text_encoders if isinstance(encoder, TextEncoder)]

    # -- text

    def tokens(self, text: str) -> list[int]:
        return self.encoders[0].tokenize([text])[0]

    def token_words(self) -> Mapping[str, int]:
        vocabulary: Mapping[str, int] = clip_tokenizer().get_vocab()
        return vocabulary

    def embed(self, texts: Sequence[str]) -> TextEmbedding:
        encoded = [encoder(list(texts)) for encoder in self.encoders]
        if len(encoded) == 1:
            return TextEmbedding(encoded[0][0])
        device = encoded[-1][0].device
        return TextEmbedding(torch.cat([hidden.to(device) for hidden, _ in encoded], dim=-1), encoded[-1][1])

    # -- the UNet

    def predict(self, latents: Tensor, timesteps: Tensor, text: TextEmbedding, sizes: Tensor | None = None) -> Tensor:
        unet: Any = self.unet
        weight = next(unet.parameters())  # sharded ones do not serve as `to`'s argument
        added = None
        if text.pooled is not None:
            time_ids = self._size_features(latents, sizes).to(weight.device, weight.dtype)
            added = {"text_embeds": text.pooled.to(weight.device, weight.dtype), "time_ids": time_ids}
        out: Tensor = unet(
            latents.to(weight.device, weight.dtype),
            timesteps.to(weight.device),
            encoder_hidden_states=text.hidden.to(weight.device, weight.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out.to(latents.dtype)

    def _size_features(self, latents: Tensor, sizes: Tensor | None) -> Tensor:
        """(B, 6 * 256): the Fourier features of SDXL's six numbers, which the engine's UNet takes ready-made."""
        if sizes is None:
            height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]]).expand(latents.shape[0], -1)
        unet: Any = self.unet
        numbers = sizes.to(latents.device, torch.float32).flatten()
        features = get_timestep_embedding(
            numbers, int(unet.config.addition_time_embed_dim), flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return features.reshape(latents.shape[0], -1)

    # -- images

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        def encode() -> tuple[Tensor, Tensor]:
            vae: Any = self.vae
            found = vae.encode(pixels.to(next(vae.parameters())), return_dict=False)[0]
            return found.mean.float() * self.model.scale_factor, found.std.float() * self.model.scale_factor

        with torch.no_grad():
            mean, std = encode()
            if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
                self.vae.float()  # SDXL's own VAE overflows in half precision
                mean, std = encode()
        return mean, std

    def decode(self, latents: Tensor) -> Tensor:
        def run() -> Tensor:
            vae: Any = self.vae
            scaled = latents.to(next(vae.parameters())) / self.model.scale_factor
            pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
            return pixels.float()

        with torch.no_grad():
            pixels = run()
            if not bool(torch.isfinite(pixels).all()) and bool(torch.isfinite(latents).all()):
                self.vae.float()
                pixels = run()
        return pixels.clamp(-1, 1)

    # -- the file

    def unet_names(self) -> dict[str, str]:
        return {key: UNET_PREFIX + name for key, name in ldm_unet_names(self.model.model.diffusion_model).items()}

    def file_weights(self) -> dict[str, Tensor]:
        state = self.unet.state_dict()
        weights = {name: state[key].detach() for key, name in self.unet_names().items()}
        for number, encoder in enumerate(self.encoders):
            weights.update(file_text(encoder.transformer.state_dict(), self.family, number))
        return weights

    def source_weights(self, source: Path) -> dict[str, Tensor]:
        return folder_state(source, self.model, self.family)


def load_training_model(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> EngineModel:
    """The checkpoint at `path`, a .safetensors file or a diffusers folder, ready to be trained.

    Raises UserError when there is none, or one of a kind that cannot be trained.
    """
    path = Path(path)
    base = checked_base(path)
    try:
        model = load_checkpoint(path, device=device, dtype=dtype)
        sha256 = checkpoint_sha256(path)
    except UserError as error:
        raise UserError(f"The base model cannot be used: {error}") from error
    except OSError as error:
        raise UserError(f"The base model {path.name} cannot be read. {reason(error)}") from error
    return EngineModel(
        model,
        name=path.stem if path.is_file() else path.name,
        sha256=sha256,
        resolution=base.resolution(model.parameterization),
    )


def file_text(state: Mapping[str, Tensor], family: str, number: int) -> dict[str, Tensor]:
    """The weights of the text encoder `number` (from 0) of a model of `family`: CLIP's names, or OpenCLIP's.

    Always nested (`text_model.`), whatever version of transformers holds them. SD2's encoder lacks the file's last
    layer, which conditions nothing.
    """
    bare = {key.removeprefix("text_model."): value.detach() for key, value in state.items()}
    bare.pop("embeddings.position_ids", None)  # no weight; older versions of transformers list it
    if family == "sd2" or number:
        prefix = SD2_TEXT_PREFIX if family == "sd2" else SDXL_OPEN_CLIP_PREFIX
        return {prefix + name: value for name, value in _open_clip(bare).items()}
    prefix = SD1_TEXT_PREFIX if family == "sd1" else SDXL_CLIP_PREFIX
    return {f"{prefix}text_model.{key}": value for key, value in bare.items()}


def _open_clip(bare: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights as OpenCLIP has them: query, key and value in one matrix, the projection transposed."""
    found: dict[str, Tensor] = {}
    for key, value in bare.items():
        name = open_clip_name(key)
        if name == "text_projection":
            value = value.T.contiguous()
        elif ".attn.in_proj_" in name:
            part = key.split(".")[-2]
            value = torch.cat([bare[key.replace(part, f"{letter}_proj")] for letter in "qkv"])
        found[name] = value
    return found


def folder_state(path: Path, model: StableDiffusionModel, family: str) -> dict[str, Tensor]:
    """The weights of the folder that `model` was loaded from, by LDM's names. Raises UserError."""
    try:
        found = read(path)
        unet, vae = part_state(found, "unet"), part_state(found, "vae")
        texts = [part_state(found, name) for name in TEXT_PARTS if name in found.parts]
    except UserError as error:
        raise UserError(f"The base model cannot be read: {error}") from error
    parts: Any = model
    state = {**_named(ldm_unet, parts.model.diffusion_model, unet), **_named(ldm_vae, parts.first_stage_model, vae)}
    for number, text in enumerate(texts):
        state.update(file_text(text, family, number))
    if family == "sd2":
        state.update(_last_layer(state))
    return state


def _named(rename: Callable[[Any], dict[str, Tensor]], part: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `rename` makes of the folder's weights rather than of those of the module, which were trained."""
    wanted = {key: state[key] for key in part.state_dict()}
    return rename(SimpleNamespace(config=part.config, state_dict=lambda: wanted))


def _last_layer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """SD2's files have one layer more, which conditions nothing and which readers count on; here it does nothing."""
    root = f"{SD2_TEXT_PREFIX}transformer.resblocks."
    count = len({key[len(root) :].split(".")[0] for key in state if key.startswith(root)})
    last = {key: value for key, value in state.items() if key.startswith(f"{root}{count - 1}.")}
    return {
        key.replace(f"{root}{count - 1}.", f"{root}{count}."): torch.ones_like(value)
        if ".ln_" in key and key.endswith("weight")
        else torch.zeros_like(value)
        for key, value in last.items()
    }
