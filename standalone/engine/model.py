"""The model object that the host hands to scripts as `p.sd_model`.

It speaks the language of the original `ldm` and `sgm` models (apply_model, encode_first_stage, get_learned_conditioning
...), so that what is written for the WebUI finds its way around; inside are diffusers' UNet and VAE.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from lib_methods.checkpoints.schedule import SMALLEST_ABAR, NoiseSchedule

from .text import TextEncoder

Cond = Mapping[str, Any]


class EmbeddedSizes(nn.Module):
    """Takes the place of the SDXL UNet's `add_time_proj`: the sizes in `vector` are embedded already.

    The WebUI's SDXL conditioning carries one vector (pooled text and six Fourier features of sizes), diffusers' UNet
    wants the sizes as numbers and embeds them itself. Passing them through keeps the WebUI's vector as the contract.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values


class DiffusionWrapper(nn.Module):
    """Holds the UNet under the name that `ldm` gives it, `model.diffusion_model`."""

    def __init__(self, unet: UNet2DConditionModel, conditioning_key: str) -> None:
        super().__init__()
        self.diffusion_model = unet
        self.conditioning_key = conditioning_key


class StableDiffusionModel(nn.Module):
    """A loaded checkpoint of one of the families "sd1", "sd2", "sdxl"."""

    alphas_cumprod: torch.Tensor

    def __init__(
        self,
        *,
        family: str,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        encoders: Sequence[TextEncoder],
        scale_factor: float,
        noise_schedule: NoiseSchedule,
    ) -> None:
        super().__init__()
        channels = unet.config.in_channels
        self.is_sd1, self.is_sd2, self.is_sdxl = family == "sd1", family == "sd2", family == "sdxl"
        self.is_sd3 = self.is_ssd = False
        self.is_sdxl_inpaint = self.is_sdxl and channels == 9
        self.cond_stage_key = "edit" if channels == 8 else "txt"
        if self.is_sdxl:
            unet.add_time_proj = EmbeddedSizes()
        concat = channels in (8, 9) and not self.is_sdxl
        self.model = DiffusionWrapper(unet, "hybrid" if concat else "crossattn")
        self.first_stage_model = vae
        self.text_encoders = nn.ModuleList(encoders)
        self.scale_factor = scale_factor
        self.noise_schedule, self.ztsnr = noise_schedule, noise_schedule.zero_terminal_snr
        self.parameterization = noise_schedule.prediction
        self.latent_channels = int(vae.config.latent_channels)
        self.register_buffer("alphas_cumprod", alpha_schedule(noise_schedule), persistent=False)
        self.sd_checkpoint_info: Any = None
        self.sd_model_hash: str | None = None
        self.loaded_networks: tuple[Any, ...] = ()  # the LoRAs in the weights; engine.lora adds and removes them
        self.requires_grad_(False)
        self.eval()

    # -- where it is

    @property
    def device(self) -> torch.device:
        return next(self.model.diffusion_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.diffusion_model.parameters()).dtype

    @property
    def cond_stage_model(self) -> TextEncoder:
        """The (first) text encoder, under the name that `ldm` gives it."""
        encoder = self.text_encoders[0]
        assert isinstance(encoder, TextEncoder)
        return encoder

    @contextlib.contextmanager
    def ema_scope(self) -> Iterator[None]:
        """Does nothing: only one set of weights is kept. Here because callers of `ldm` models use it."""
        yield None

    # -- prediction

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        """The UNet's output (eps or v) for latents `x` (B, C, h, w) in alpha space at timesteps `t` (B,).

        `cond` holds `c_crossattn`: [(B, T, D)] or, for SDXL, `crossattn`: (B, T, D) and `vector`: (B, V); models with
        8 or 9 input channels also read `c_concat`: [(B, 4 or 5, h, w)].
        """
        unet = self.model.diffusion_model
        text = cond["crossattn"] if "crossattn" in cond else torch.cat(list(cond["c_crossattn"]), dim=1)
        if unet.config.in_channels != x.shape[1]:
            extra = list(cond["c_concat"])
            x = torch.cat([x, *[e.to(x) for e in extra]], dim=1)
        added = None
        if self.is_sdxl:
            vector = cond["vector"].to(self.dtype)
            pooled = int(unet.config.projection_class_embeddings_input_dim) - 6 * int(
                unet.config.addition_time_embed_dim
            )
            added = {"text_embeds": vector[:, :pooled], "time_ids": vector[:, pooled:]}
        out = unet(
            x.to(self.dtype), t, encoder_hidden_states=text.to(self.dtype), added_cond_kwargs=added, return_dict=False
        )
        return out[0].to(x.dtype)

    # -- text

    def get_learned_conditioning(self, prompts: Sequence[str]) -> torch.Tensor | dict[str, torch.Tensor]:
        """Conditioning of `prompts`: (B, T, D), for SDXL {"crossattn": (B, T, D), "vector": (B, V)}.

        For SDXL the attributes `width`, `height` and `is_negative_prompt` of the list are used; an empty negative
        prompt becomes zeros, as SDXL was trained.
        """
        with torch.no_grad():
            encoded = [encoder(list(prompts)) for encoder in self.text_encoders]
        if not self.is_sdxl:
            return encoded[0][0]
        hidden = torch.cat([h for h, _ in encoded], dim=-1)
        pooled = encoded[-1][1]
        assert pooled is not None
        if getattr(prompts, "is_negative_prompt", False) and all(prompt == "" for prompt in prompts):
            hidden, pooled = torch.zeros_like(hidden), torch.zeros_like(pooled)
        height = float(getattr(prompts, "height", None) or 1024)
        width = float(getattr(prompts, "width", None) or 1024)
        top, left = getattr(prompts, "crop_top_left", (0, 0))
        sizes = torch.tensor([height, width, top, left, height, width], device=hidden.device, dtype=torch.float32)
        dim = int(self.model.diffusion_model.config.addition_time_embed_dim)
        features = get_timestep_embedding(sizes, dim, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()
        vector = torch.cat([pooled, features.to(pooled).expand(len(prompts), -1)], dim=1)
        return {"crossattn": hidden, "vector": vector}

    @property
    def cond_stage_model_empty_prompt(self) -> torch.Tensor:
        """The conditioning of one empty chunk, (1, 77, D), used to pad a shorter prompt."""
        cond = self.get_learned_conditioning([""])
        return cond["crossattn"] if isinstance(cond, dict) else cond

    # -- images

    def encode_first_stage(self, x: torch.Tensor) -> DiagonalGaussianDistribution | torch.Tensor:
        """Encodes images `x` (B, 3, H, W) in [-1, 1]: the posterior, or for SDXL the scaled latents themselves."""
        with torch.no_grad():
            posterior = self.first_stage_model.encode(x.to(self.first_stage_model.dtype), return_dict=False)[0]
        return self._scaled(posterior) if self.is_sdxl else posterior

    def get_first_stage_encoding(self, encoded: DiagonalGaussianDistribution | torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, C, h, w) of what encode_first_stage gave.

        The mean of the posterior, not a sample: the same image then always has the same latents.
        """
        return encoded if self.is_sdxl and isinstance(encoded, torch.Tensor) else self._scaled(encoded)

    def _scaled(self, encoded: DiagonalGaussianDistribution | torch.Tensor) -> torch.Tensor:
        mean = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
        return mean * self.scale_factor

    def decode_first_stage(self, z: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W), about [-1, 1], of scaled latents `z` (B, C, h, w)."""
        with torch.no_grad():
            scaled = z.to(self.first_stage_model.dtype) / self.scale_factor
            return self.first_stage_model.decode(scaled, return_dict=False)[0]


def alpha_schedule(schedule: NoiseSchedule) -> torch.Tensor:
    """Cumulative products of alpha, (T,), fp32. Where nothing of the image is left they end a little above zero, since
    samplers divide by them."""
    return torch.from_numpy(schedule.alphas_cumprod()).float().clamp(min=SMALLEST_ABAR)
