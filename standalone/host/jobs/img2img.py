"""img2img and inpainting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from lib_methods.errors import UserError
from standalone.host import devices, images, shared
from standalone.host.jobs import masks
from standalone.host.jobs.job import StableDiffusionProcessing
from standalone.host.jobs.latents import create_random_tensors, opt_f, to_array
from standalone.host.jobs.masks import create_binary_mask, gaussian_blur
from standalone.host.sampling import registry
from standalone.host.sampling.base import images_tensor_to_samples
from standalone.host.scripts.script import MaskBlendArgs
from standalone.host.shared import opts

FILL, ORIGINAL, LATENT_NOISE, LATENT_NOTHING = range(4)
RESIZE_MODES = ("Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)")
LATENT_RESIZE = 3


@dataclass(repr=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    """An img2img job; with `mask` (white where to paint) inpainting."""

    init_images: list[Any] | None = None
    resize_mode: int = 0
    denoising_strength: float = 0.75
    image_cfg_scale: float | None = None
    mask: Any = None
    mask_blur_x: int = 4
    mask_blur_y: int = 4
    mask_blur: int | None = None
    mask_round: bool = True
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float | None = None
    latent_mask: Any = None
    force_task_id: str | None = None

    image_mask: Any = field(default=None, init=False)
    nmask: torch.Tensor | None = field(default=None, init=False)
    image_conditioning: torch.Tensor | None = field(default=None, init=False)
    init_img_hash: str | None = field(default=None, init=False)
    mask_for_overlay: Any = field(default=None, init=False)
    init_latent: torch.Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.image_mask, self.mask = self.mask, None

    def fill_fields_from_opts(self) -> None:
        super().fill_fields_from_opts()
        if self.initial_noise_multiplier is None:
            self.initial_noise_multiplier = opts.initial_noise_multiplier

    def init(self, all_prompts: Any, all_seeds: Any, all_subseeds: Any) -> None:
        params = self.extra_generation_params
        params["Denoising strength"] = self.denoising_strength
        if 0 < self.resize_mode < len(RESIZE_MODES):
            params["Resize mode"] = RESIZE_MODES[self.resize_mode]
        if shared.sd_model.cond_stage_key != "edit":
            self.image_cfg_scale = None
        self.sampler = registry.create_sampler(self.sampler_name, shared.sd_model)
        if not self.init_images:
            raise UserError("img2img needs an image to start from. Add one.")
        if len(self.init_images) > 1 and len(self.init_images) > self.batch_size:
            raise UserError(f"There are {len(self.init_images)} images for a batch of {self.batch_size}.")

        flat = [images.flatten(image, opts.img2img_background_color) for image in self.init_images]
        image_mask, crop = self._prepare_mask(flat[0].size)
        latent_mask = self.latent_mask if self.latent_mask is not None else image_mask
        pictures = [self._prepare_image(image, image_mask, latent_mask, crop) for image in flat]
        if len(pictures) == 1:
            pictures = pictures * self.batch_size
            if self.overlay_images is not None:
                self.overlay_images = self.overlay_images * self.batch_size
        else:
            self.batch_size = len(pictures)
        image = torch.from_numpy(np.stack(pictures)).to(shared.device, dtype=devices.dtype_vae)
        self.init_latent = images_tensor_to_samples(image, None, shared.sd_model)
        if self.resize_mode == LATENT_RESIZE:
            size = self.height // opt_f, self.width // opt_f
            self.init_latent = torch.nn.functional.interpolate(self.init_latent, size=size, mode="bilinear")
        if image_mask is not None:
            self._mask_latents(latent_mask, all_seeds)
        self.image_conditioning = self.img2img_image_conditioning(
            image * 2 - 1, self.init_latent, image_mask, self.mask_round
        )
        devices.torch_gc()

    def _prepare_mask(self, size: tuple[int, int]) -> tuple[Image.Image | None, masks.Box | None]:
        """The mask at the size of the job, and the part of an image of `size` that is worked on (None: all of it)."""
        if self.image_mask is None:
            return None, None
        params = self.extra_generation_params
        mask = create_binary_mask(self.image_mask, round=self.mask_round)
        if mask.size != size:  # it covers the whole image, whatever its own size is
            mask = mask.resize(size, Image.Resampling.BILINEAR)
        if self.inpainting_mask_invert:
            mask = ImageOps.invert(mask)
            params["Mask mode"] = "Inpaint not masked"
        mask = gaussian_blur(gaussian_blur(mask, self.mask_blur_x, axis=1), self.mask_blur_y, axis=0)
        if self.mask_blur_x > 0 or self.mask_blur_y > 0:
            params["Mask blur"] = self.mask_blur
            if self.mask_blur is None:
                params["Mask blur x"], params["Mask blur y"] = self.mask_blur_x, self.mask_blur_y
        self.overlay_images = []
        if not self.inpaint_full_res:
            mask = images.resize_image(min(self.resize_mode, 2), mask, self.width, self.height)
            # the overlay fades out sooner than the mask, so that no seam of the old image shows
            self.mask_for_overlay = mask.point(lambda value: min(255, value * 2))
            return mask, None
        self.mask_for_overlay = mask
        crop = masks.get_crop_region_v2(mask, self.inpaint_full_res_padding)
        if crop is None:
            self.comment('The mask is empty, so "Only masked" has nothing to work on. The whole image was used.')
            self.mask_for_overlay, self.overlay_images, self.inpaint_full_res = None, None, False
            return None, None
        crop = masks.expand_crop_region(crop, self.width, self.height, mask.width, mask.height)
        x1, y1, x2, y2 = crop
        self.paste_to = x1, y1, x2 - x1, y2 - y1
        params["Inpaint area"] = "Only masked"
        params["Masked area padding"] = self.inpaint_full_res_padding
        return images.resize_image(2, mask.crop(crop), self.width, self.height), crop

    def _prepare_image(
        self, image: Image.Image, mask: Image.Image | None, latent_mask: Image.Image | None, crop: masks.Box | None
    ) -> Any:
        """One RGB image at the size of the job, as an array (3, H, W) in [0, 1]; keeps what will lie over the
        result."""
        if crop is not None and image.size != self.mask_for_overlay.size:  # the region is the first image's
            image = images.resize_image(min(self.resize_mode, 2), image, *self.mask_for_overlay.size)
        if crop is None and self.resize_mode != LATENT_RESIZE:
            image = images.resize_image(self.resize_mode, image, self.width, self.height)
        if mask is not None:
            if self.mask_for_overlay.size != image.size:
                self.mask_for_overlay = images.resize_image(
                    min(self.resize_mode, 2), self.mask_for_overlay, *image.size
                )
            kept = Image.new("RGBa", image.size)
            kept.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(self.mask_for_overlay.convert("L")))
            assert self.overlay_images is not None
            self.overlay_images.append(kept.convert("RGBA"))
        if crop is not None:
            image = images.resize_image(2, image.crop(crop), self.width, self.height)
        if mask is not None and self.inpainting_fill != ORIGINAL:
            assert latent_mask is not None
            fitting = latent_mask if latent_mask.size == image.size else latent_mask.resize(image.size)
            image = masks.fill(image, fitting)
            if self.inpainting_fill == FILL:
                self.extra_generation_params["Masked content"] = "fill"
        if self.resize_mode == LATENT_RESIZE:
            # the VAE wants whole latents
            image = image.resize((max(opt_f, image.width // opt_f * opt_f), max(opt_f, image.height // opt_f * opt_f)))
        return to_array(image)

    def _mask_latents(self, latent_mask: Any, all_seeds: Any) -> None:
        """Sets `mask` (1 where the image stays) and `nmask` (1 where it is painted), and what latents begin with."""
        assert self.init_latent is not None
        small = latent_mask.convert("L").resize((self.init_latent.shape[3], self.init_latent.shape[2]))
        values = np.asarray(small, dtype=np.float32) / 255.0
        values = np.around(values) if self.mask_round else values
        painted = torch.from_numpy(values).expand(self.init_latent.shape[1], -1, -1).to(shared.device, devices.dtype)
        self.nmask, self.mask = painted, 1.0 - painted
        if self.inpainting_fill == LATENT_NOISE:
            noise = create_random_tensors(self.init_latent.shape[1:], all_seeds[: self.init_latent.shape[0]])
            self.init_latent = self.init_latent * self.mask + noise * self.nmask
            self.extra_generation_params["Masked content"] = "latent noise"
        elif self.inpainting_fill == LATENT_NOTHING:
            self.init_latent = self.init_latent * self.mask
            self.extra_generation_params["Masked content"] = "latent nothing"

    def sample(
        self,
        conditioning: Any,
        unconditional_conditioning: Any,
        seeds: Any,
        subseeds: Any,
        subseed_strength: float,
        prompts: Any,
    ) -> Any:
        assert self.init_latent is not None
        x = self.rng.next()
        if self.initial_noise_multiplier != 1.0:
            self.extra_generation_params["Noise multiplier"] = self.initial_noise_multiplier
            x = x * self.initial_noise_multiplier
        # a new sampler for every batch, so that nothing of one sampling is left for the next, and before scripts
        # reach for it
        self.sampler = registry.create_sampler(self.sampler_name, shared.sd_model)
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(
                p=self, x=self.init_latent, noise=x, c=conditioning, uc=unconditional_conditioning
            )
        samples = self.sampler.sample_img2img(
            self,
            self.init_latent,
            x,
            conditioning,
            unconditional_conditioning,
            image_conditioning=self.image_conditioning,
        )
        if self.mask is not None:
            blended = samples * self.nmask + self.init_latent * self.mask
            if self.scripts is not None:
                args = MaskBlendArgs(samples, self.nmask, self.init_latent, self.mask, blended)
                self.scripts.on_mask_blend(self, args)
                blended = args.blended_latent
            samples = blended
        devices.torch_gc()
        return samples


def _get_blur(self: StableDiffusionProcessingImg2Img) -> int | None:
    """The mask's blur, when it is the same both ways."""
    return self.mask_blur_x if self.mask_blur_x == self.mask_blur_y else None


def _set_blur(self: StableDiffusionProcessingImg2Img, value: int | None) -> None:
    if isinstance(value, (int, float)):
        self.mask_blur_x = self.mask_blur_y = int(value)


# after the dataclass is made, so that the field keeps None as its default
StableDiffusionProcessingImg2Img.mask_blur = property(_get_blur, _set_blur)  # type: ignore[assignment]
