"""Shared by txt2img and img2img: prompts, seeds and conditioning of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lib_methods.errors import UserError
from standalone.engine.lora import loaded_loras
from standalone.engine.names import shown
from standalone.host import extra_networks, shared
from standalone.host.jobs.fields import ProcessingFields
from standalone.host.jobs.latents import txt2img_image_conditioning
from standalone.host.sampling import prompt_parser, registry
from standalone.host.shared import opts, state


@dataclass(repr=False)
class StableDiffusionProcessing(ProcessingFields):
    """One job, as scripts see it: `p`."""

    # the conditioning of the last job, kept on the class: [what it was made from, the result]
    cached_uc = [None, None]
    cached_c = [None, None]

    def __post_init__(self) -> None:
        self.comments = {}
        self.ignored: list[str] = []
        self.styles = self.styles or []
        self.sampler_noise_scheduler_override: Callable[[int], torch.Tensor] | None = None
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.script_args = self.script_args or {}
        self.refiner_checkpoint_info: Any = None
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

    def note_ignored(self, asked: Mapping[str, object]) -> None:
        """Says in the comments and the infotext which fields and settings were ignored, as this host lacks them.

        Values that mean no choice (False, 0, "", "None", "Automatic" ...) are not mentioned.
        """
        for name, value in asked.items():
            chosen = value not in (None, False, 0, "", [], {}) and str(value).lower() not in ("none", "automatic")
            if chosen and shown(name) not in self.ignored:
                self.ignored.append(shown(name))
                self.comment(f"{shown(name)} was ignored: this host does not have it.")
        if self.ignored:
            self.extra_generation_params["Ignored"] = ", ".join(self.ignored[:20])

    # -- images that condition the model

    def txt2img_image_conditioning(
        self, x: torch.Tensor, width: int | None = None, height: int | None = None
    ) -> torch.Tensor:
        self.is_using_inpainting_conditioning = (
            shared.sd_model.model.conditioning_key in {"hybrid", "concat"} and shared.sd_model.cond_stage_key != "edit"
        )
        return txt2img_image_conditioning(shared.sd_model, x, width or self.width, height or self.height)

    def edit_image_conditioning(self, source_image: torch.Tensor) -> torch.Tensor:
        """InstructPix2Pix: the latents of the image, unscaled."""
        encoded = shared.sd_model.encode_first_stage(source_image)
        # SDXL gives scaled latents instead of the posterior
        return encoded / shared.sd_model.scale_factor if isinstance(encoded, torch.Tensor) else encoded.mode()

    def inpainting_image_conditioning(
        self,
        source_image: torch.Tensor,
        latent_image: torch.Tensor,
        image_mask: Any = None,
        round_image_mask: bool = True,
    ) -> torch.Tensor:
        """Inpainting models: the mask (1 where to paint) and the latents of the image without what it covers."""
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
        """What the model sees of the image besides its latents; `source_image` (B, 3, H, W) in [-1, 1]."""
        if shared.sd_model.cond_stage_key == "edit":
            return self.edit_image_conditioning(source_image)
        if self.sampler.conditioning_key in {"hybrid", "concat"} or shared.sd_model.is_sdxl_inpaint:
            return self.inpainting_image_conditioning(source_image, latent_image, image_mask, round_image_mask)
        return latent_image.new_zeros(latent_image.shape[0], 5, 1, 1)

    # -- the parts that txt2img and img2img fill in

    def init(self, all_prompts: Any, all_seeds: Any, all_subseeds: Any) -> None:
        """Called once, before the first batch."""

    def sample(self, *args: Any, **kwargs: Any) -> Any:
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
            loaded_loras(shared.sd_model),  # the tags alone do not tell: a file may have come or changed since
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
        made = function(shared.sd_model, required_prompts, steps, hires_steps, opts.use_old_scheduling)
        caches[0][:] = key, made  # both at once: a job that is killed here must not leave one without the other
        return made

    def setup_conds(self) -> None:
        """Computes c and uc for the batch."""
        config = registry.find_sampler_config(self.sampler_name)
        total_steps = config.total_steps(self.steps) if config else self.steps
        self.step_multiplier = total_steps // self.steps
        self.firstpass_steps = total_steps
        self.c, self.uc = self.conds_with_caching(
            (self.prompts, self.negative_prompts),
            (self.width, self.height),
            total_steps,
            ([self.cached_c], [self.cached_uc]),
            self.extra_network_data,
        )

    def conds_with_caching(
        self,
        prompts: tuple[list[str], list[str]],
        size: tuple[int, int],
        steps: int,
        caches: tuple[list[list[Any]], list[list[Any]]],
        extra_network_data: Any,
        hires_steps: int | None = None,
    ) -> tuple[Any, Any]:
        """c and uc of the prompts and negative prompts, each from its caches where they have it."""
        width, height = size
        wanted = prompt_parser.SdConditioning(prompts[0], width=width, height=height)
        negative = prompt_parser.SdConditioning(prompts[1], True, width=width, height=height)
        learn, learn_all = prompt_parser.get_learned_conditioning, prompt_parser.get_multicond_learned_conditioning
        uc = self.get_conds_with_caching(learn, negative, steps, caches[1], extra_network_data, hires_steps)
        return self.get_conds_with_caching(learn_all, wanted, steps, caches[0], extra_network_data, hires_steps), uc

    def get_conds(self) -> tuple[Any, Any]:
        return self.c, self.uc

    def parse_extra_network_prompts(self) -> None:
        """Takes the `<...>` tags out of the batch's prompts."""
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)

    def save_samples(self) -> bool:
        """Whether images are written to disk."""
        complete = not state.interrupted and not state.skipped
        return bool(opts.samples_save and not self.do_not_save_samples and (opts.save_incomplete_images or complete))


# after the dataclass is made, so that the field keeps None as its default. The model is always the loaded one; what the
# constructor is given has no effect, as in the WebUI
StableDiffusionProcessing.sd_model = property(lambda self: shared.sd_model, lambda self, value: None)
