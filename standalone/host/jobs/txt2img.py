"""txt2img, and between the passes of Hires. fix: from the first result to the latents that the second begins with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from lib_methods.errors import UserError
from standalone.host import checkpoints, devices, extra_networks, images, shared, upscalers
from standalone.host.jobs.fields import UNSET
from standalone.host.jobs.job import StableDiffusionProcessing
from standalone.host.jobs.latents import decode_latent_batch, opt_f, rng_of, to_array, to_image
from standalone.host.jobs.result import create_infotext
from standalone.host.sampling import registry
from standalone.host.sampling.base import decode_first_stage, images_tensor_to_samples
from standalone.host.shared import opts, state


def target_size(size: tuple[int, int], scale: float, wanted: tuple[int, int]) -> tuple[int, int, int, int]:
    """Width and height in pixels that `size` is enlarged to, and how many latents are then cut off of each.

    By `scale`; or to the size `wanted`, where a zero means whatever keeps the proportions. With both given, the
    image covers the size wanted, and the rest is cut off.
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


def enlarge(p: Any, samples: torch.Tensor | None, decoded: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the second pass, and the image conditioning for them, cut to the size wanted.

    Enlarges the latents `samples`, or with an upscaler of images `decoded` (B, 3, H, W) in [-1, 1].
    """
    across, down = p.hr_upscale_to_x, p.hr_upscale_to_y
    if p.latent_scale_mode is not None:
        assert samples is not None
        for index in range(samples.shape[0]):
            _save_first_pass(p, samples, index)
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
            _save_first_pass(p, image, index)
            pictures.append(to_array(images.resize_image(0, image, across, down, upscaler_name=p.hr_upscaler)))
        enlarged = torch.from_numpy(np.stack(pictures)).to(shared.device, dtype=devices.dtype_vae)
        samples = images_tensor_to_samples(enlarged, None, shared.sd_model)
        image_conditioning = p.img2img_image_conditioning(enlarged * 2 - 1, samples)

    rows = slice(p.truncate_y // 2, samples.shape[2] - (p.truncate_y + 1) // 2)
    columns = slice(p.truncate_x // 2, samples.shape[3] - (p.truncate_x + 1) // 2)
    if image_conditioning.shape[-1] > 1:
        image_conditioning = image_conditioning[:, :, rows, columns]
    return samples[:, :, rows, columns], image_conditioning


def _save_first_pass(p: Any, image: Any, index: int) -> None:
    """Saves image `index` of the first pass, given as an image or in the latents of all, if the settings want it."""
    if not p.save_samples() or not opts.save_images_before_highres_fix:
        return
    if not isinstance(image, Image.Image):
        image = registry.sample_to_image(image, index, approximation=0)
    info = create_infotext(
        p, p.all_prompts, p.all_seeds, p.all_subseeds, [], iteration=p.iteration, position_in_batch=index
    )
    images.save_sample(image, p, index, info, suffix="-before-highres-fix")


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """A txt2img job. `hr_cfg` (None: the CFG scale of the first pass) is this host's own addition."""

    enable_hr: bool = False
    denoising_strength: float = 0.75
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: Any = ""
    hr_negative_prompt: Any = ""
    force_task_id: str | None = None
    hr_cfg: float | None = None

    cached_hr_uc = [None, None]
    cached_hr_c = [None, None]

    hr_checkpoint_info: Any = field(default=None, init=False)
    hr_upscale_to_x: int = field(default=0, init=False)
    hr_upscale_to_y: int = field(default=0, init=False)
    truncate_x: int = field(default=0, init=False)
    truncate_y: int = field(default=0, init=False)
    applied_old_hires_behavior_to: Any = field(default=None, init=False)
    latent_scale_mode: dict[str, Any] | None = field(default=None, init=False)
    hr_c: Any = field(default=None, init=False)
    hr_uc: Any = field(default=None, init=False)
    all_hr_prompts: list[str] = field(default=UNSET, init=False)
    all_hr_negative_prompts: list[str] = field(default=UNSET, init=False)
    hr_prompts: list[str] = field(default=UNSET, init=False)
    hr_negative_prompts: list[str] = field(default=UNSET, init=False)
    hr_extra_network_data: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.firstphase_width or self.firstphase_height:
            self.hr_upscale_to_x, self.hr_upscale_to_y = self.width, self.height
            self.width, self.height = self.firstphase_width, self.firstphase_height
        self.cached_hr_uc = StableDiffusionProcessingTxt2Img.cached_hr_uc
        self.cached_hr_c = StableDiffusionProcessingTxt2Img.cached_hr_c

    def calculate_target_resolution(self) -> None:
        """Sets the size of the second pass, and by how many latents it is cut down to the requested size."""
        wanted = self.hr_resize_x, self.hr_resize_y
        if any(wanted):
            self.extra_generation_params["Hires resize"] = f"{wanted[0]}x{wanted[1]}"
        else:
            self.extra_generation_params["Hires upscale"] = self.hr_scale
        target = target_size((self.width, self.height), self.hr_scale, wanted)
        self.hr_upscale_to_x, self.hr_upscale_to_y, self.truncate_x, self.truncate_y = target
        if min(target[:2]) < opt_f:
            raise UserError(f"Hires. fix cannot make an image of {target[0]}x{target[1]} pixels.")

    def init(self, all_prompts: Any, all_seeds: Any, all_subseeds: Any) -> None:
        if not self.enable_hr:
            return
        params = self.extra_generation_params
        params["Denoising strength"] = self.denoising_strength
        self.hr_checkpoint_info = checkpoints.find_checkpoint(self.hr_checkpoint_name, "Hires checkpoint")
        if self.hr_checkpoint_info is not None:
            params["Hires checkpoint"] = self.hr_checkpoint_info.short_title
        if self.hr_sampler_name is not None and self.hr_sampler_name != self.sampler_name:
            params["Hires sampler"] = self.hr_sampler_name
        if self.hr_cfg:
            params["Hires CFG scale"] = self.hr_cfg

        def hr_prompt_of(p: Any, index: int, prompt_text: str, **kwargs: Any) -> str | None:
            return p.all_hr_prompts[index] if p.all_hr_prompts[index] != prompt_text else None

        def hr_negative_prompt_of(p: Any, index: int, negative_prompt: str, **kwargs: Any) -> str | None:
            return p.all_hr_negative_prompts[index] if p.all_hr_negative_prompts[index] != negative_prompt else None

        params["Hires prompt"] = hr_prompt_of
        params["Hires negative prompt"] = hr_negative_prompt_of
        params["Hires schedule type"] = None  # the sampler writes it
        if self.hr_scheduler is None:
            self.hr_scheduler = self.scheduler

        if self.hr_upscaler:
            self.hr_upscaler = upscalers.find_hires_upscaler(self.hr_upscaler)
        self.latent_scale_mode = upscalers.latent_upscale_modes.get(
            self.hr_upscaler or upscalers.latent_upscale_default_mode
        )
        self.calculate_target_resolution()
        if not state.processing_has_refined_job_count:
            state.job_count = self.n_iter if state.job_count == -1 else state.job_count
            second = self.hr_second_pass_steps or self.steps
            only_second = getattr(self, "txt2img_upscale", False)
            shared.total_tqdm.updateTotal((second if only_second else self.steps + second) * state.job_count)
            state.job_count *= 2
            state.processing_has_refined_job_count = True
        if self.hr_second_pass_steps:
            params["Hires steps"] = self.hr_second_pass_steps
        if self.hr_upscaler is not None:
            params["Hires upscaler"] = self.hr_upscaler

    def sample(
        self,
        conditioning: Any,
        unconditional_conditioning: Any,
        seeds: Any,
        subseeds: Any,
        subseed_strength: float,
        prompts: Any,
    ) -> Any:
        self.sampler = registry.create_sampler(self.sampler_name, shared.sd_model)
        decoded: torch.Tensor | None = None
        samples: torch.Tensor | None = None
        if self.firstpass_image is not None and self.enable_hr:
            image = torch.from_numpy(to_array(self.firstpass_image))[None]
            if self.latent_scale_mode is None:
                decoded = image * 2.0 - 1.0
            else:
                samples = images_tensor_to_samples(image, None, shared.sd_model)
        else:
            x = self.rng.next()
            if self.scripts is not None:
                self.scripts.process_before_every_sampling(
                    p=self, x=x, noise=x, c=conditioning, uc=unconditional_conditioning
                )
            samples = self.sampler.sample(
                self, x, conditioning, unconditional_conditioning, image_conditioning=self.txt2img_image_conditioning(x)
            )
            if not self.enable_hr:
                return samples
            if self.latent_scale_mode is None:
                decoded = torch.stack(
                    decode_latent_batch(shared.sd_model, samples, devices.cpu, check_for_nans=True)
                ).float()
        devices.torch_gc()
        with checkpoints.SkipWritingToConfig():  # the first pass may have ended with the refiner
            checkpoints.reload_model_weights(info=self.hr_checkpoint_info)
        return self.sample_hr_pass(samples, decoded, seeds, subseeds, subseed_strength, prompts)

    def sample_hr_pass(
        self, samples: Any, decoded_samples: Any, seeds: Any, subseeds: Any, subseed_strength: float, prompts: Any
    ) -> Any:
        """The second pass: enlarge, add noise, sample again. Returns DecodedSamples."""
        if state.interrupted and samples is not None:
            return samples
        self.is_hr_pass = True
        self.sampler = registry.create_sampler(self.hr_sampler_name or self.sampler_name, shared.sd_model)
        samples, image_conditioning = enlarge(self, samples, decoded_samples)
        state.nextjob()
        self.rng = rng_of(self, samples.shape[1:])
        noise = self.rng.next()
        devices.torch_gc()
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        self.calculate_hr_conds()
        if self.scripts is not None:
            self.scripts.before_hr(self)
            self.scripts.process_before_every_sampling(p=self, x=samples, noise=noise, c=self.hr_c, uc=self.hr_uc)
        samples = self.sampler.sample_img2img(
            self,
            samples,
            noise,
            self.hr_c,
            self.hr_uc,
            steps=self.hr_second_pass_steps or self.steps,
            image_conditioning=image_conditioning,
        )
        self.sampler = None
        devices.torch_gc()
        decoded = decode_latent_batch(shared.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
        self.is_hr_pass = False
        return decoded

    def close(self) -> None:
        super().close()
        self.hr_c = self.hr_uc = None
        if not opts.persistent_cond_cache:
            StableDiffusionProcessingTxt2Img.cached_hr_uc = [None, None]
            StableDiffusionProcessingTxt2Img.cached_hr_c = [None, None]

    def setup_prompts(self) -> None:
        super().setup_prompts()
        if not self.enable_hr:
            return
        self.hr_prompt = self.prompt if self.hr_prompt in ("", None) else self.hr_prompt
        self.hr_negative_prompt = (
            self.negative_prompt if self.hr_negative_prompt in ("", None) else self.hr_negative_prompt
        )
        count = len(self.all_prompts)
        prompts = self.hr_prompt if isinstance(self.hr_prompt, list) else [self.hr_prompt] * count
        negative = (
            self.hr_negative_prompt if isinstance(self.hr_negative_prompt, list) else [self.hr_negative_prompt] * count
        )
        self.all_hr_prompts = [shared.prompt_styles.apply_styles_to_prompt(x, self.styles) for x in prompts]
        self.all_hr_negative_prompts = [
            shared.prompt_styles.apply_negative_styles_to_prompt(x, self.styles) for x in negative
        ]

    def calculate_hr_conds(self) -> None:
        """Computes hr_c and hr_uc for the batch."""
        if self.hr_c is not None:
            return
        config = registry.find_sampler_config(self.hr_sampler_name or self.sampler_name)
        steps = self.hr_second_pass_steps or self.steps
        self.hr_c, self.hr_uc = self.conds_with_caching(
            (self.hr_prompts, self.hr_negative_prompts),
            (self.hr_upscale_to_x, self.hr_upscale_to_y),
            self.firstpass_steps,
            ([self.cached_hr_c, self.cached_c], [self.cached_hr_uc, self.cached_uc]),
            self.hr_extra_network_data,
            config.total_steps(steps) if config else steps,
        )

    def setup_conds(self) -> None:
        if self.is_hr_pass:
            self.hr_c = None
            self.calculate_hr_conds()
            return
        super().setup_conds()
        self.hr_uc = self.hr_c = None
        if self.enable_hr and self.hr_checkpoint_info is None and opts.hires_fix_use_firstpass_conds:
            self.calculate_hr_conds()

    def get_conds(self) -> tuple[Any, Any]:
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else super().get_conds()

    def parse_extra_network_prompts(self) -> None:
        super().parse_extra_network_prompts()
        if self.enable_hr:
            part = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.all_hr_prompts[part])
            self.hr_negative_prompts = self.all_hr_negative_prompts[part]
