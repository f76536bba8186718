"""What txt2img and img2img share: the request, its prompts, seeds and conditioning, and the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from modules import extra_networks, prompt_parser, sd_samplers, shared
from modules.extra_networks_lora import networks_key
from modules.processing_infotext import create_infotext, program_version
from modules.processing_latents import txt2img_image_conditioning
from modules.shared import opts, state
from standalone.engine.errors import UserError

UNSET: Any = None  # for fields that are filled in before anyone reads them


@dataclass(repr=False)
class StableDiffusionProcessing:
    """One job, as scripts see it: `p`."""

    sd_model: Any = None
    outpath_samples: str | None = None
    outpath_grids: str | None = None
    prompt: Any = ""
    prompt_for_display: str | None = None
    negative_prompt: Any = ""
    styles: list[str] = UNSET
    seed: Any = -1
    subseed: Any = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    seed_enable_extras: bool = True
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict[str, Any] = UNSET
    overlay_images: list[Any] | None = None
    eta: float | None = None
    do_not_reload_embeddings: bool = False
    denoising_strength: float | None = UNSET
    ddim_discretize: str | None = None
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, Any] = UNSET
    override_settings_restore_afterwards: bool = True
    sampler_index: int | None = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    token_merging_ratio = 0
    token_merging_ratio_hr = 0
    disable_extra_networks: bool = False
    firstpass_image: Any = None

    scripts_value: Any = field(default=None, init=False)
    script_args_value: Any = field(default=None, init=False)
    scripts_setup_complete: bool = field(default=False, init=False)

    # the conditioning of the last job, kept on the class: [what it was made from, the result]
    cached_uc = [None, None]
    cached_c = [None, None]

    comments: dict[str, int] = UNSET
    sampler: Any = field(default=None, init=False)
    is_using_inpainting_conditioning: bool = field(default=False, init=False)
    paste_to: tuple[int, int, int, int] | None = field(default=None, init=False)
    is_hr_pass: bool = field(default=False, init=False)
    c: Any = field(default=None, init=False)
    uc: Any = field(default=None, init=False)
    rng: Any = field(default=None, init=False)
    step_multiplier: int = field(default=1, init=False)
    color_corrections: list[Any] | None = field(default=None, init=False)

    all_prompts: list[str] = field(default=UNSET, init=False)
    all_negative_prompts: list[str] = field(default=UNSET, init=False)
    all_seeds: list[int] = field(default=UNSET, init=False)
    all_subseeds: list[int] = field(default=UNSET, init=False)
    iteration: int = field(default=0, init=False)
    main_prompt: str = field(default=UNSET, init=False)
    main_negative_prompt: str = field(default=UNSET, init=False)
    prompts: list[str] = field(default=UNSET, init=False)
    negative_prompts: list[str] = field(default=UNSET, init=False)
    seeds: list[int] = field(default=UNSET, init=False)
    subseeds: list[int] = field(default=UNSET, init=False)
    extra_network_data: Any = field(default=None, init=False)

    user: str | None = field(default=None, init=False)
    sd_model_name: str | None = field(default=None, init=False)
    sd_model_hash: str | None = field(default=None, init=False)
    sd_vae_name: str | None = field(default=None, init=False)
    sd_vae_hash: str | None = field(default=None, init=False)
    is_api: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.comments = {}
        self.styles = self.styles or []
        self.sampler_noise_scheduler_override: Callable[[int], torch.Tensor] | None = None
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.script_args = self.script_args or {}
        self.refiner_checkpoint_info = None
        if not self.seed_enable_extras:
            self.subseed, self.subseed_strength = -1, 0
            self.seed_resize_from_h = self.seed_resize_from_w = 0
        self.cached_uc = StableDiffusionProcessing.cached_uc
        self.cached_c = StableDiffusionProcessing.cached_c

    def fill_fields_from_opts(self) -> None:
        """Takes from the settings what the request leaves open."""
        for name in ("s_min_uncond", "s_churn", "s_tmin", "s_tmax", "s_noise"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(opts, name))
        self.s_tmax = self.s_tmax or float("inf")

    @property
    def scripts(self) -> Any:
        """The runner of the tab's scripts. With both this and script_args set, the scripts' `setup` is called."""
        return self.scripts_value

    @scripts.setter
    def scripts(self, value: Any) -> None:
        self.scripts_value = value
        self._setup_when_complete()

    @property
    def script_args(self) -> Any:
        """The arguments of all scripts, in the runner's layout."""
        return self.script_args_value

    @script_args.setter
    def script_args(self, value: Any) -> None:
        self.script_args_value = value
        self._setup_when_complete()

    def _setup_when_complete(self) -> None:
        if self.scripts_value and self.script_args_value and not self.scripts_setup_complete:
            self.setup_scripts()

    def setup_scripts(self) -> None:
        self.scripts_setup_complete = True
        self.scripts.setup_scrips(self, is_ui=not self.is_api)

    def comment(self, text: str) -> None:
        """A line that the page shows under the result."""
        self.comments[text] = 1

    # -- images that condition the model

    def txt2img_image_conditioning(
        self, x: torch.Tensor, width: int | None = None, height: int | None = None
    ) -> torch.Tensor:
        self.is_using_inpainting_conditioning = (
            shared.sd_model.model.conditioning_key in {"hybrid", "concat"} and shared.sd_model.cond_stage_key != "edit"
        )
        return txt2img_image_conditioning(shared.sd_model, x, width or self.width, height or self.height)

    def edit_image_conditioning(self, source_image: torch.Tensor) -> torch.Tensor:
        """InstructPix2Pix: the latents of the picture, unscaled."""
        return shared.sd_model.encode_first_stage(source_image).mode()

    def inpainting_image_conditioning(
        self,
        source_image: torch.Tensor,
        latent_image: torch.Tensor,
        image_mask: Any = None,
        round_image_mask: bool = True,
    ) -> torch.Tensor:
        """Inpainting models: the mask (1 where to paint) and the latents of the picture without what it covers."""
        self.is_using_inpainting_conditioning = True
        if image_mask is None:
            mask = source_image.new_ones(1, 1, *source_image.shape[-2:])
        elif torch.is_tensor(image_mask):
            mask = image_mask
        else:
            mask = torch.from_numpy(np.asarray(image_mask.convert("L"), dtype=np.float32) / 255.0)[None, None]
            mask = mask.round() if round_image_mask else mask
        mask = mask.to(source_image)
        weight = getattr(self, "inpainting_mask_weight", opts.inpainting_mask_weight)
        masked = torch.lerp(source_image, source_image * (1.0 - mask), weight)
        latents = torch.cat(
            [shared.sd_model.get_first_stage_encoding(shared.sd_model.encode_first_stage(row[None])) for row in masked]
        )
        mask = torch.nn.functional.interpolate(mask, size=latent_image.shape[-2:]).expand(latents.shape[0], -1, -1, -1)
        return torch.cat([mask.to(latents), latents], dim=1).to(shared.device).type(shared.sd_model.dtype)

    def img2img_image_conditioning(
        self,
        source_image: torch.Tensor,
        latent_image: torch.Tensor,
        image_mask: Any = None,
        round_image_mask: bool = True,
    ) -> torch.Tensor:
        """What the model sees of the picture besides its latents; `source_image` (B, 3, H, W) in [-1, 1]."""
        if shared.sd_model.cond_stage_key == "edit":
            return self.edit_image_conditioning(source_image)
        if self.sampler.conditioning_key in {"hybrid", "concat"} or shared.sd_model.is_sdxl_inpaint:
            return self.inpainting_image_conditioning(source_image, latent_image, image_mask, round_image_mask)
        return latent_image.new_zeros(latent_image.shape[0], 5, 1, 1)

    # -- the parts that txt2img and img2img fill in

    def init(self, all_prompts: Any, all_seeds: Any, all_subseeds: Any) -> None:
        """Called once, before the first batch."""

    def sample(
        self,
        conditioning: Any,
        unconditional_conditioning: Any,
        seeds: Any,
        subseeds: Any,
        subseed_strength: float,
        prompts: Any,
    ) -> Any:
        """Latents of one batch (or DecodedSamples)."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of what the job held."""
        self.sampler = self.c = self.uc = None
        if not opts.persistent_cond_cache:
            StableDiffusionProcessing.cached_c = [None, None]
            StableDiffusionProcessing.cached_uc = [None, None]

    def get_token_merging_ratio(self, for_hr: bool = False) -> float:
        return 0

    # -- prompts and conditioning

    def setup_prompts(self) -> None:
        """Fills all_prompts and all_negative_prompts, one entry per image of the job."""
        count = self.batch_size * self.n_iter
        if isinstance(self.prompt, list):
            prompts = self.prompt
        else:
            prompts = [self.prompt] * (len(self.negative_prompt) if isinstance(self.negative_prompt, list) else count)
        negative = (
            self.negative_prompt if isinstance(self.negative_prompt, list) else [self.negative_prompt] * len(prompts)
        )
        if len(prompts) != len(negative):
            raise UserError(f"There are {len(prompts)} prompts but {len(negative)} negative prompts.")
        self.all_prompts = [shared.prompt_styles.apply_styles_to_prompt(x, self.styles) for x in prompts]
        self.all_negative_prompts = [
            shared.prompt_styles.apply_negative_styles_to_prompt(x, self.styles) for x in negative
        ]
        self.main_prompt, self.main_negative_prompt = self.all_prompts[0], self.all_negative_prompts[0]

    def cached_params(
        self,
        required_prompts: Any,
        steps: int,
        extra_network_data: Any,
        hires_steps: int | None = None,
        use_old_scheduling: bool = False,
    ) -> tuple[Any, ...]:
        """All that the conditioning depends on."""
        return (
            tuple(required_prompts),
            getattr(required_prompts, "is_negative_prompt", False),
            getattr(required_prompts, "width", None),
            getattr(required_prompts, "height", None),
            steps,
            hires_steps,
            use_old_scheduling,
            shared.sd_model.sd_checkpoint_info,
            id(shared.sd_model),
            extra_network_data,
            networks_key(shared.sd_model),  # the tags alone do not tell: a file may have come or changed since
            opts.CLIP_stop_at_last_layers,
            opts.emphasis,
            opts.comma_padding_backtrack,
            opts.sdxl_clip_l_skip,
            opts.sdxl_crop_left,
            opts.sdxl_crop_top,
        )

    def get_conds_with_caching(
        self,
        function: Callable[..., Any],
        required_prompts: Any,
        steps: int,
        caches: list[list[Any]],
        extra_network_data: Any,
        hires_steps: int | None = None,
    ) -> Any:
        """function(model, prompts, steps, hires steps, old scheduling), or what one of `caches` has of it already."""
        if opts.use_old_scheduling:
            self.extra_generation_params["Old prompt editing timelines"] = True
        key = self.cached_params(required_prompts, steps, extra_network_data, hires_steps, opts.use_old_scheduling)
        for cache in caches:
            if cache[0] is not None and cache[0] == key:
                return cache[1]
        caches[0][1] = function(shared.sd_model, required_prompts, steps, hires_steps, opts.use_old_scheduling)
        caches[0][0] = key
        return caches[0][1]

    def setup_conds(self) -> None:
        """Computes c and uc for the batch."""
        prompts = prompt_parser.SdConditioning(self.prompts, width=self.width, height=self.height)
        negative = prompt_parser.SdConditioning(
            self.negative_prompts, width=self.width, height=self.height, is_negative_prompt=True
        )
        config = sd_samplers.find_sampler_config(self.sampler_name)
        total_steps = config.total_steps(self.steps) if config else self.steps
        self.step_multiplier = total_steps // self.steps
        self.firstpass_steps = total_steps
        self.uc = self.get_conds_with_caching(
            prompt_parser.get_learned_conditioning, negative, total_steps, [self.cached_uc], self.extra_network_data
        )
        self.c = self.get_conds_with_caching(
            prompt_parser.get_multicond_learned_conditioning,
            prompts,
            total_steps,
            [self.cached_c],
            self.extra_network_data,
        )

    def get_conds(self) -> tuple[Any, Any]:
        return self.c, self.uc

    def parse_extra_network_prompts(self) -> None:
        """Takes the `<...>` tags out of the batch's prompts."""
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)

    def save_samples(self) -> bool:
        """Whether images are written to disk."""
        complete = not state.interrupted and not state.skipped
        return bool(opts.samples_save and not self.do_not_save_samples and (opts.save_incomplete_images or complete))


def _get_model(self: StableDiffusionProcessing) -> Any:
    return shared.sd_model


def _keep_model(self: StableDiffusionProcessing, value: Any) -> None:
    """The model is always the loaded one; what the constructor is given has no effect, as in the WebUI."""


# after the dataclass is made, so that the field keeps None as its default
StableDiffusionProcessing.sd_model = property(_get_model, _keep_model)


class Processed:
    """The result of a job: images and their infotexts, in step; a grid may come first."""

    def __init__(
        self,
        p: StableDiffusionProcessing,
        images_list: list[Any],
        seed: Any = -1,
        info: str = "",
        subseed: Any = None,
        all_prompts: Any = None,
        all_negative_prompts: Any = None,
        all_seeds: Any = None,
        all_subseeds: Any = None,
        index_of_first_image: int = 0,
        infotexts: Any = None,
        comments: str = "",
    ) -> None:
        def first(value: Any) -> Any:
            return value[0] if isinstance(value, list) else value

        self.images = images_list
        self.prompt, self.negative_prompt = first(p.prompt), first(p.negative_prompt)
        self.seed = int(first(seed)) if seed is not None else -1
        self.subseed = int(first(subseed)) if subseed is not None else -1
        self.subseed_strength = p.subseed_strength
        self.info = info
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.width, self.height = p.width, p.height
        self.sampler_name, self.cfg_scale, self.steps, self.batch_size = (
            p.sampler_name,
            p.cfg_scale,
            p.steps,
            p.batch_size,
        )
        self.image_cfg_scale = getattr(p, "image_cfg_scale", None)
        self.restore_faces, self.face_restoration_model = p.restore_faces, None
        self.sd_model_name, self.sd_model_hash = p.sd_model_name, p.sd_model_hash
        self.sd_vae_name, self.sd_vae_hash = p.sd_vae_name, p.sd_vae_hash
        self.seed_resize_from_w, self.seed_resize_from_h = p.seed_resize_from_w, p.seed_resize_from_h
        self.denoising_strength = getattr(p, "denoising_strength", None)
        self.extra_generation_params = p.extra_generation_params
        self.index_of_first_image = index_of_first_image
        self.styles = p.styles
        self.job_timestamp = state.job_timestamp
        self.clip_skip = opts.CLIP_stop_at_last_layers
        self.token_merging_ratio, self.token_merging_ratio_hr = p.token_merging_ratio, p.token_merging_ratio_hr
        self.eta, self.ddim_discretize = p.eta, p.ddim_discretize
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = p.s_churn, p.s_tmin, p.s_tmax, p.s_noise
        self.s_min_uncond = p.s_min_uncond
        self.sampler_noise_scheduler_override = p.sampler_noise_scheduler_override
        self.is_using_inpainting_conditioning = p.is_using_inpainting_conditioning
        self.all_prompts = all_prompts or p.all_prompts or [self.prompt]
        self.all_negative_prompts = all_negative_prompts or p.all_negative_prompts or [self.negative_prompt]
        self.all_seeds = all_seeds or p.all_seeds or [self.seed]
        self.all_subseeds = all_subseeds or p.all_subseeds or [self.subseed]
        self.infotexts = infotexts or [info] * len(images_list)
        self.version = program_version()

    def js(self) -> str:
        """The result without its images, as JSON."""
        names = (
            "all_prompts",
            "all_negative_prompts",
            "seed",
            "all_seeds",
            "subseed",
            "all_subseeds",
            "subseed_strength",
            "width",
            "height",
            "sampler_name",
            "cfg_scale",
            "steps",
            "batch_size",
            "restore_faces",
            "face_restoration_model",
            "sd_model_name",
            "sd_model_hash",
            "sd_vae_name",
            "sd_vae_hash",
            "seed_resize_from_w",
            "seed_resize_from_h",
            "denoising_strength",
            "extra_generation_params",
            "index_of_first_image",
            "infotexts",
            "styles",
            "job_timestamp",
            "clip_skip",
            "is_using_inpainting_conditioning",
            "version",
        )
        values = {"prompt": self.all_prompts[0], "negative_prompt": self.all_negative_prompts[0]}
        values.update({name: getattr(self, name) for name in names})
        return json.dumps(values, default=lambda o: None)

    def infotext(self, p: StableDiffusionProcessing, index: int) -> str:
        """The infotext of image `index` of the job."""
        return create_infotext(
            p,
            self.all_prompts,
            self.all_seeds,
            self.all_subseeds,
            comments=[],
            position_in_batch=index % self.batch_size,
            iteration=index // self.batch_size,
        )

    def get_token_merging_ratio(self, for_hr: bool = False) -> float:
        return self.token_merging_ratio_hr if for_hr else self.token_merging_ratio
