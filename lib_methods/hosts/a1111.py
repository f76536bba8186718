"""The seam for AUTOMATIC1111's WebUI, and for the standalone host, which keeps the same names.

Per sampling the host has a `CFGDenoiser` (`p.sampler.model_wrap_cfg`). Its `forward` builds the UNet's batch as
`[cond rows, several per image under AND | uncond rows | for 8-channel models uncond rows without image]` and runs it
at once or in slices, always in that order. So rows are known by counting how many have gone through the UNet.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import without_overrides
from lib_methods.denoiser import Guide, Hook, RowPlanner, Unsupported
from lib_methods.hosts.a1111_rows import input_channels, sees_picture
from lib_methods.hosts.a1111_seam import Seam
from lib_methods.hosts.passes import Pass

_RESIZE_MODES = {0: "stretch", 1: "crop", 2: "pad", 3: "stretch"}  # the last stretches latents


class A1111Sampling:
    """A pass of the sampler in AUTOMATIC1111's WebUI or the standalone host. Implements
    `lib_methods.denoiser.Sampling`."""

    latent_channels = 4
    pixels_per_latent = 8

    def __init__(self, p: Any, latent: Tensor | None) -> None:
        self.p = p
        self.is_hires = bool(getattr(p, "is_hr_pass", False))
        self.first_latent_size = (int(p.height) // 8, int(p.width) // 8)
        self.latent_size = self.first_latent_size if latent is None else (int(latent.shape[2]), int(latent.shape[3]))
        self._latent = latent
        self._empty: Any = None
        self._no_image: Tensor | None = None

    @cached_property
    def _pass(self) -> Pass:
        return Pass.of(self.p)

    @property
    def _denoiser(self) -> Any:
        return self.p.sampler.model_wrap_cfg

    @property
    def _seam(self) -> Seam:
        if self._pass.seam is None:
            self._pass.seam = Seam(self._pass, self._denoiser, lambda: self.unet)
        seam: Seam = self._pass.seam
        return seam

    @property
    def steps(self) -> int:
        return int(self._denoiser.steps or self.p.steps)

    @property
    def batch(self) -> tuple[int, int]:
        size = int(self.p.batch_size) if self._latent is None else len(self._latent)
        return int(getattr(self.p, "iteration", 0)) * int(self.p.batch_size), size

    @property
    def takes_picture(self) -> bool:
        return sees_picture(self.unet, self.latent_channels)

    @property
    def picture_scale(self) -> float:
        return float(getattr(self.p.sd_model, "scale_factor", 1.0))

    @property
    def wants_scaled_picture(self) -> bool:
        model = self.p.sd_model
        return bool(getattr(model, "is_sdxl", False)) and getattr(model, "parameterization", "eps") == "v"

    @property
    def device(self) -> torch.device:
        return torch.device(self._latent.device if self._latent is not None else self.p.sd_model.device)

    @property
    def unet(self) -> nn.Module:
        unet = self.p.sd_model.model.diffusion_model
        if not isinstance(unet, nn.Module):
            raise Unsupported("This model's UNet is not a PyTorch module, so its attention cannot be reached.")
        return unet

    def checkpoint_key(self) -> Hashable:
        info = getattr(self.p.sd_model, "sd_checkpoint_info", None)
        return tuple(str(getattr(info, name, "")) for name in ("sha256", "filename", "title"))

    def model_key(self) -> Hashable:
        shared = sys.modules.get("modules.shared")
        names = ("CLIP_stop_at_last_layers", "sd_vae", "sd_unet", "upcast_attn", "fp8_storage", "lora_functional")
        options = tuple(str(getattr(getattr(shared, "opts", None), name, "")) for name in names)
        merging = (
            self.p.get_token_merging_ratio(for_hr=self.is_hires) if hasattr(self.p, "get_token_merging_ratio") else 0
        )
        dtype = next(self.unet.parameters()).dtype
        networks = _loaded_networks(self.p.sd_model)
        return (self.checkpoint_key(), networks, options, merging, str(dtype), str(self.device))

    def encode(self, images: Tensor, seeds: list[int]) -> Tensor:
        from modules import devices

        model = self.p.sd_model
        latents = []
        for image, seed in zip(images, seeds):
            pixels = image[None].to(devices.device, devices.dtype_vae)
            # some of the hosts' autoencoders draw from the global generator: give them ours, and give theirs back
            with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []), torch.no_grad():
                torch.manual_seed(seed)
                latents.append(model.get_first_stage_encoding(model.encode_first_stage(pixels)))
        encoded = torch.cat(latents).to(self.device)
        return encoded if self._latent is None else encoded.to(self._latent.dtype)

    def encode_picture(self, images: Tensor) -> Tensor:
        from modules import devices

        model = self.p.sd_model
        with torch.no_grad():
            modes = [_mode(model, image[None].to(devices.device, devices.dtype_vae)) for image in images]
        return torch.cat(modes).float().to(self.device)

    def own_picture(self) -> Tensor | None:
        picture = getattr(self.p, "image_conditioning", None)  # the host's, for models that see one: the mode
        if not isinstance(picture, Tensor) or picture.shape[1] != self.latent_channels:
            return None
        if tuple(picture.shape[2:]) != self.latent_size:  # "latent upscale": the host enlarges latents, so do we
            picture = nn.functional.interpolate(picture.float(), size=self.latent_size, mode="bilinear")
        return picture.to(self.device)

    def own_frame(self) -> tuple[str, tuple[float, float, float, float]]:
        part = getattr(self.p, "paste_to", None)  # "only masked": x, y, width and height in pixels of the picture
        if part is None:
            return _RESIZE_MODES.get(getattr(self.p, "resize_mode", 0), "stretch"), (0.0, 0.0, 1.0, 1.0)
        x, y, across, down = part
        width, height = self.p.init_images[0].size
        return "pad", (x / width, y / height, (x + across) / width, (y + down) / height)

    def first_pass_picture(self) -> Tensor:
        from modules import devices

        assert self._latent is not None
        model = self.p.sd_model
        with torch.no_grad():
            drawn = [model.decode_first_stage(z[None].to(devices.dtype_vae)).float() for z in self._latent]
        return self.encode_picture(torch.cat(drawn).clamp(-1, 1))

    def noisy(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        alphas = getattr(self._denoiser, "alphas", None)
        if alphas is None:  # k-diffusion: the model takes latents plus sigma times noise
            return latents + noise * level.to(latents)
        alpha = alphas[int(level.item())].to(latents)  # timestep samplers: the variance stays one
        return latents * alpha.sqrt() + noise * (1 - alpha).sqrt()

    def run_unet(self, noisy: Tensor, level: Tensor) -> None:
        count = len(noisy)
        cond = self._arguments(self._empty_conditioning(), count, noisy)
        denoiser = self._denoiser
        with self._seam.paused(), without_overrides(self.unet), torch.no_grad():
            denoiser.inner_model(noisy, level.to(noisy.device).expand(count), cond=cond)

    def registering(self) -> AbstractContextManager[None]:
        return self._pass.registering()

    def add_hook(self, hook: Hook) -> None:
        _ = self._seam
        self._pass.register(self._pass.hooks, hook)

    def add_guide(self, guide: Guide) -> None:
        self._seam.add_guide(guide)

    def add_planner(self, planner: RowPlanner) -> None:
        self._seam.set_planner(planner)

    def prepare(self) -> None:
        """Compute the empty prompt and the "no image" condition now, so that no other model is needed while the
        sampler runs."""
        self._empty_conditioning()
        if self._extra_channels() == 5:
            self._gray_image()

    def _empty_conditioning(self) -> Any:
        if self._empty is None:
            from modules import prompt_parser

            pixels = [side * self.pixels_per_latent for side in self.latent_size]
            prompt = prompt_parser.SdConditioning([""], is_negative_prompt=False, width=pixels[1], height=pixels[0])
            with torch.no_grad():
                self._empty = self.p.sd_model.get_learned_conditioning(prompt)
        return self._empty

    def _arguments(self, text: Any, count: int, like: Tensor) -> dict[str, Any]:
        """What the host's inner model is told besides latents and level: `text`, a tensor or SDXL's dict of them, for
        all rows or one for each, and no picture."""
        key = getattr(self.p.sd_model.model, "conditioning_key", None)
        if key == "crossattn-adm":
            channels = 2 * self.p.sd_model.noise_augmentor.time_embed.dim
            return {"c_crossattn": [_repeat(text, count)], "c_adm": like.new_zeros(count, channels)}
        concat = {"c_concat": [self._concat(count, like)]}
        if isinstance(text, dict):
            return {**{name: _repeat(value, count) for name, value in text.items()}, **concat}
        return {"c_crossattn": [_repeat(text, count)], **concat}

    def _extra_channels(self) -> int:
        channels = input_channels(self.unet)
        return 0 if channels is None else channels - self.latent_channels

    def _concat(self, count: int, like: Tensor) -> Tensor:
        """What goes beside the latents of reference rows: nothing; for inpainting "repaint all of it"; for ip2p "no
        image"."""
        height, width = like.shape[2:]
        extra = self._extra_channels()
        if extra <= 0:
            return like.new_zeros(count, 5, 1, 1)  # the host hands over this placeholder, too
        if extra == 5:
            gray = torch.nn.functional.interpolate(self._gray_image().to(like), size=(height, width))
            return torch.cat([like.new_ones(1, 1, height, width), gray], 1).expand(count, -1, -1, -1)
        return like.new_zeros(count, extra, height, width)

    def _gray_image(self) -> Tensor:
        if self._no_image is None:
            sides = [side * self.pixels_per_latent for side in self.latent_size]
            self._no_image = self.encode(torch.zeros(1, 3, *sides), [0])
        return self._no_image


def _mode(model: Any, pixels: Tensor) -> Tensor:
    """The mode of the autoencoder's posterior for pixels (1, 3, H, W), not scaled."""
    encoded = model.encode_first_stage(pixels)
    if not isinstance(encoded, Tensor):
        return encoded.mode()
    # SDXL: scaled already, and drawn from the posterior unless its autoencoder is told not to
    regularization: Any = getattr(model.first_stage_model, "regularization", None)
    if getattr(regularization, "sample", False):
        regularization.sample = False
        try:
            encoded = model.encode_first_stage(pixels)
        finally:
            regularization.sample = True
    return encoded / model.scale_factor


def _repeat(conditioning: Tensor, count: int) -> Tensor:
    return conditioning.expand(count, *conditioning.shape[1:])


def _loaded_networks(model: Any) -> Hashable:
    """The LoRAs in the model: which files, as of when, and how strong, in their order.

    Our own host keeps them on the model, AUTOMATIC1111's in its built-in extension. A name alone does not tell: a file
    may be written anew, and an alias may come to mean another.
    """
    loaded = getattr(model, "loaded_networks", None)
    if loaded is None:
        loaded = getattr(sys.modules.get("networks"), "loaded_networks", None)
    fields = ("name", "te_multiplier", "unet_multiplier", "dyn_dim", "mtime")
    described = []
    for network in loaded or ():
        file = getattr(getattr(network, "network_on_disk", None), "filename", "")
        described.append((str(file), *(str(getattr(network, field, "")) for field in fields)))
    return tuple(described)
