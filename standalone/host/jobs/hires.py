"""Between the passes of Hires. fix: from the first pass's result to the larger latents that the second begins with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from standalone.host import devices, images, shared
from standalone.host.jobs.latents import opt_f, to_array, to_image
from standalone.host.jobs.result import create_infotext
from standalone.host.sampling import registry
from standalone.host.sampling.base import decode_first_stage, images_tensor_to_samples
from standalone.host.shared import opts


def target_size(size: tuple[int, int], scale: float, wanted: tuple[int, int]) -> tuple[int, int, int, int]:
    """Width and height in pixels that `size` is enlarged to, and how many latents are then cut off of each.

    By `scale`; or to the size `wanted`, where a zero stands for what keeps the proportions. With both given, the
    picture covers the size wanted, and the rest is cut off.
    """
    width, height = size
    x, y = wanted
    if not x and not y:
        return int(width * scale), int(height * scale), 0, 0
    by_width = x, x * height // width
    by_height = y * width // height, y
    if not x or not y:
        return (*(by_width if not y else by_height), 0, 0)
    across, down = by_width if width * y < height * x else by_height
    return across, down, (across - x) // opt_f, (down - y) // opt_f


def enlarge(
    p: Any, samples: torch.Tensor | None, decoded: torch.Tensor | None, seeds: Any, prompts: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the second pass, and the image conditioning for them, cut to the size wanted.

    Enlarges the latents `samples`, or with an upscaler of pictures `decoded` (B, 3, H, W) in [-1, 1].
    """
    across, down = p.hr_upscale_to_x, p.hr_upscale_to_y
    if p.latent_scale_mode is not None:
        assert samples is not None
        for index in range(samples.shape[0]):
            save_first_pass(p, samples, index, seeds, prompts)
        samples = torch.nn.functional.interpolate(
            samples,
            size=(down // opt_f, across // opt_f),
            mode=p.latent_scale_mode["mode"],
            antialias=p.latent_scale_mode["antialias"],
        )
        if getattr(p, "inpainting_mask_weight", opts.inpainting_mask_weight) < 1.0:
            image_conditioning = p.img2img_image_conditioning(decode_first_stage(shared.sd_model, samples), samples)
        else:
            image_conditioning = p.txt2img_image_conditioning(
                samples, samples.shape[3] * opt_f, samples.shape[2] * opt_f
            )
    else:
        assert decoded is not None
        pictures: list[Any] = []
        for index, sample in enumerate(torch.clamp((decoded + 1.0) / 2.0, 0.0, 1.0)):
            image = to_image(sample)
            save_first_pass(p, image, index, seeds, prompts)
            pictures.append(to_array(images.resize_image(0, image, across, down, upscaler_name=p.hr_upscaler)))
        enlarged = torch.from_numpy(np.stack(pictures)).to(shared.device, dtype=devices.dtype_vae)
        samples = images_tensor_to_samples(enlarged, None, shared.sd_model)
        image_conditioning = p.img2img_image_conditioning(enlarged * 2 - 1, samples)

    rows = slice(p.truncate_y // 2, samples.shape[2] - (p.truncate_y + 1) // 2)
    columns = slice(p.truncate_x // 2, samples.shape[3] - (p.truncate_x + 1) // 2)
    if image_conditioning.shape[-1] > 1:
        image_conditioning = image_conditioning[:, :, rows, columns]
    return samples[:, :, rows, columns], image_conditioning


def save_first_pass(p: Any, image: Any, index: int, seeds: Any, prompts: Any) -> None:
    """Saves picture `index` of the first pass, given as an image or in the latents of all, if the settings want it."""
    if not p.save_samples() or not opts.save_images_before_highres_fix:
        return
    if not isinstance(image, Image.Image):
        image = registry.sample_to_image(image, index, approximation=0)
    info = create_infotext(
        p, p.all_prompts, p.all_seeds, p.all_subseeds, [], iteration=p.iteration, position_in_batch=index
    )
    images.save_for_job(
        image,
        p,
        p.outpath_samples or "",
        "",
        seeds[index],
        prompts[index],
        opts.samples_format,
        info=info,
        suffix="-before-highres-fix",
    )
