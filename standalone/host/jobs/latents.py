"""Between images and latents: decoding a batch, the conditioning image of inpainting models, seeds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from standalone.host import devices
from standalone.host.sampling import rng
from standalone.host.sampling.base import decode_first_stage, images_tensor_to_samples

opt_C = 4
opt_f = 8  # pixels per latent


class DecodedSamples(list[torch.Tensor]):
    """Images (3, H, W) in [-1, 1], already decoded."""

    already_decoded = True


def decode_latent_batch(
    model: Any, batch: torch.Tensor, target_device: torch.device | None = None, check_for_nans: bool = False
) -> DecodedSamples:
    """Decodes latents one by one, to save memory. A half precision VAE that makes NaNs is tried again in 32 bits."""
    samples = DecodedSamples()
    if check_for_nans:
        devices.test_for_nans(batch, "unet")
    for latent in batch:
        sample = decode_first_stage(model, latent[None])[0]
        if check_for_nans and torch.isnan(sample).any() and devices.dtype_vae == torch.float16:
            print("The VAE gave NaN in 16 bits and continues in 32 bits.")
            devices.dtype_vae = torch.float32
            model.first_stage_model.to(torch.float32)
            sample = decode_first_stage(model, latent[None])[0]
        if check_for_nans:
            devices.test_for_nans(sample, "vae")
        samples.append(sample if target_device is None else sample.to(target_device))
    return samples


def txt2img_image_conditioning(sd_model: Any, x: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """What inpainting models see in txt2img: everything masked, and a grey image. Zeros (B, 5, 1, 1) for others."""
    if (
        sd_model.model.conditioning_key in {"hybrid", "concat"}
        and sd_model.model.diffusion_model.config.in_channels == 8
    ):
        return x.new_zeros(x.shape[0], 4, *x.shape[-2:])  # editing models: no image to edit
    if sd_model.model.conditioning_key in {"hybrid", "concat"} or sd_model.is_sdxl_inpaint:
        grey = torch.full((1, 3, height, width), 0.5, device=x.device)
        encoded = torch.nn.functional.interpolate(images_tensor_to_samples(grey, 0, sd_model), size=x.shape[-2:])
        ones = encoded.new_ones(1, 1, *encoded.shape[-2:])
        return torch.cat([ones, encoded], dim=1).expand(x.shape[0], -1, -1, -1).to(x.dtype)
    return x.new_zeros(x.shape[0], 5, 1, 1)


def create_random_tensors(
    shape: Sequence[int],
    seeds: Sequence[int],
    subseeds: Sequence[int] | None = None,
    subseed_strength: float = 0.0,
    seed_resize_from_h: int = 0,
    seed_resize_from_w: int = 0,
    p: Any = None,
) -> torch.Tensor:
    """The first noise of a batch, (B, *shape)."""
    return rng.ImageRNG(
        shape,
        seeds,
        subseeds=subseeds,
        subseed_strength=subseed_strength,
        seed_resize_from_h=seed_resize_from_h,
        seed_resize_from_w=seed_resize_from_w,
    ).next()


def rng_of(p: Any, shape: Sequence[int]) -> rng.ImageRNG:
    """The noise of the job's batch, (B, *shape)."""
    varied = {"subseeds": p.subseeds, "subseed_strength": p.subseed_strength}
    resized = {"seed_resize_from_h": p.seed_resize_from_h, "seed_resize_from_w": p.seed_resize_from_w}
    return rng.ImageRNG(shape, p.seeds, **varied, **resized)


def get_fixed_seed(seed: Any) -> Any:
    """`seed` as a number; -1, None and anything that is not a number give a random one below 2^32. Lists stay."""
    if isinstance(seed, list):
        return seed
    try:
        number = -1 if seed is None or seed == "" else int(seed)
    except (TypeError, ValueError):
        number = -1
    return random.randrange(4294967294) if number == -1 else number


def fix_seed(p: Any) -> None:
    """Puts numbers in the place of random seeds in `p`."""
    p.seed = get_fixed_seed(p.seed)
    p.subseed = get_fixed_seed(p.subseed)


def to_image(sample: torch.Tensor) -> Image.Image:
    """An image of a tensor (3, H, W) in [0, 1]."""
    pixels = 255.0 * np.moveaxis(sample.float().cpu().numpy(), 0, 2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def to_array(image: Image.Image) -> np.ndarray[Any, Any]:
    """An image as an array (3, H, W) in [0, 1]."""
    return np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0, 2, 0)
