"""What AUTOMATIC1111's WebUI, its forks and the standalone host tell a script in the same way: sizes, steps, keys, the
VAE, and what the UNet is given for an empty prompt."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import LATENT_CHANNELS, PIXELS_PER_LATENT, Guide, Hook, Part, Unsupported, input_channels
from lib_methods.denoiser.levels import Levels
from lib_methods.hosts.passes import Pass

# options that change what a model computes: a noise schedule changes the timesteps, the crop SDXL's conditioning;
# Forge's select files for VAE and text encoders, and quantised weights
_OPTIONS = (
    "CLIP_stop_at_last_layers", "sd_vae", "sd_unet", "upcast_attn", "fp8_storage", "lora_functional",
    "sd_noise_schedule", "use_downcasted_alpha_bar", "sdxl_crop_top", "sdxl_crop_left",
    "forge_additional_modules", "forge_unet_storage_dtype",
)  # fmt: skip
_RESIZE_MODES = {0: "stretch", 1: "crop", 2: "pad", 3: "stretch"}  # the last stretches latents


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block the global generators start from a seed of ours; afterwards they continue where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class JobSampling:
    """The members of `lib_methods.denoiser.Sampling` that these hosts share.

    p: the host's `StableDiffusionProcessing`. latent: the `x` of `process_before_every_sampling`, (batch, 4, h, w).
    """

    def __init__(self, p: Any, latent: Tensor | None) -> None:
        self.p, self.latent = p, latent
        self.is_hires = bool(getattr(p, "is_hr_pass", False))
        self.first_latent_size = (int(p.height) // PIXELS_PER_LATENT, int(p.width) // PIXELS_PER_LATENT)
        self.latent_size = self.first_latent_size if latent is None else (int(latent.shape[2]), int(latent.shape[3]))
        self._empty: Any = None
        self._no_image: Tensor | None = None

    @cached_property
    def current(self) -> Pass:
        """The pass that this is a view of, shared by the methods of the job."""
        return Pass.of(self.p)

    @property
    def steps(self) -> int:
        return int(self.p.sampler.model_wrap_cfg.steps or self.p.steps)

    @property
    def batch(self) -> tuple[int, int]:
        size = int(self.p.batch_size) if self.latent is None else len(self.latent)
        number = int(getattr(self.p, "iteration", 0)) // (2 if getattr(self.p, "steer_compared", False) else 1)
        return number * int(self.p.batch_size), size

    @property
    def alphas_cumprod(self) -> Tensor:
        """The model's noise schedule, (timesteps,)."""
        alphas: Tensor = self.p.sd_model.alphas_cumprod
        return alphas

    @cached_property
    def levels(self) -> Levels:
        return Levels(self.alphas_cumprod)

    def sigma(self, level: Tensor) -> float:
        return float(level.item())

    def level(self, sigma: float) -> Tensor:
        return torch.tensor([self.levels.nearest(sigma)])

    def own_frame(self) -> tuple[str, tuple[float, float, float, float]]:
        part = getattr(self.p, "paste_to", None)  # "only masked": x, y, width and height in pixels of the image
        if part is None:
            return _RESIZE_MODES.get(getattr(self.p, "resize_mode", 0), "stretch"), (0.0, 0.0, 1.0, 1.0)
        x, y, across, down = part
        width, height = self.p.init_images[0].size
        return "pad", (x / width, y / height, (x + across) / width, (y + down) / height)

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of this pass's images."""
        height, width = (side * PIXELS_PER_LATENT for side in self.latent_size)
        return width, height

    @property
    def device(self) -> torch.device:
        return torch.device(self.latent.device if self.latent is not None else self.p.sd_model.device)

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
        options = tuple(str(getattr(getattr(shared, "opts", None), name, "")) for name in _OPTIONS)
        merging = (
            self.p.get_token_merging_ratio(for_hr=self.is_hires) if hasattr(self.p, "get_token_merging_ratio") else 0
        )
        dtypes = (next(self.unet.parameters()).dtype, getattr(self.unet, "storage_dtype", ""))
        networks = (_loaded_networks(self.p.sd_model), str(getattr(self.p.sd_model, "current_lora_hash", "")))
        return (self.checkpoint_key(), networks, options, merging, str(dtypes), str(self.device))

    def encode(self, images: Tensor, seeds: list[int]) -> Tensor:
        from modules import devices

        model = self.p.sd_model
        latents = []
        for image, seed in zip(images, seeds):
            pixels = image[None].to(devices.device, devices.dtype_vae)
            with seeded(seed, pixels.device), torch.no_grad():  # some autoencoders draw from the global generator
                latents.append(model.get_first_stage_encoding(model.encode_first_stage(pixels)))
        encoded = torch.cat(latents).to(self.device)
        return encoded if self.latent is None else encoded.to(self.latent.dtype)

    def registering(self) -> AbstractContextManager[None]:
        return self.current.registering()

    def add_hook(self, hook: Hook) -> None:
        self.current.register(self.current.hooks, hook)

    def add_guide(self, guide: Guide) -> None:
        self.current.register(self.current.guides, guide)

    def reserve(self, size: int) -> None:
        """Nothing to tell: memory is taken as it is needed."""

    def failure(self, part: Part) -> str:
        return self.current.failures.get(type(part), "")

    def prepare(self) -> None:
        """Compute the empty prompt and the "no image" condition now, so that no other model is needed while the
        sampler runs."""
        self.empty_prompt()
        if self.extra_channels() == 5:
            self._gray_image()

    def empty_prompt(self) -> Any:
        """The empty prompt as the host embeds it: (1, tokens, dim), or SDXL's dict."""
        if self._empty is None:
            from modules import prompt_parser

            width, height = self.pixels
            prompt = prompt_parser.SdConditioning([""], is_negative_prompt=False, width=width, height=height)
            with torch.no_grad():
                self._empty = self.p.sd_model.get_learned_conditioning(prompt)
        return self._empty

    def extra_channels(self) -> int:
        """How many channels the UNet takes beside the latent's own, which are 4, or 32 in Neo's Mugen."""
        channels = input_channels(self.unet)
        own = LATENT_CHANNELS if self.latent is None else int(self.latent.shape[1])
        return 0 if channels is None else channels - own

    def beside(self, count: int, like: Tensor, image: Tensor | None) -> Tensor:
        """What goes beside latents: `image`, for all rows or one for each, or without it `no_picture`."""
        return self.no_picture(count, like) if image is None else image.to(like).expand(count, -1, -1, -1)

    def no_picture(self, count: int, like: Tensor) -> Tensor:
        """What goes beside latents without an image: nothing; for inpainting "repaint all of it"; for ip2p zeros."""
        height, width = like.shape[2:]
        extra = self.extra_channels()
        if extra <= 0:
            return like.new_zeros(count, 5, 1, 1)  # the host passes this placeholder, too
        if extra == 5:
            gray = nn.functional.interpolate(self._gray_image().to(like), size=(height, width))
            return torch.cat([like.new_ones(1, 1, height, width), gray], 1).expand(count, -1, -1, -1)
        return like.new_zeros(count, extra, height, width)

    def _gray_image(self) -> Tensor:
        if self._no_image is None:
            width, height = self.pixels
            self._no_image = self.encode(torch.zeros(1, 3, height, width), [0])
        return self._no_image


def _loaded_networks(model: Any) -> Hashable:
    """The LoRAs in the model: which files, as of when, and how strong, in their order.

    Our own host keeps them on the model, AUTOMATIC1111's in its built-in extension. A name alone does not tell: a file
    may be replaced, and an alias may come to mean another.
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
