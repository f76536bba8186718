"""The result of a job: its images, and the infotext of each."""

from __future__ import annotations

import json
from typing import Any

from standalone.host import errors
from standalone.host.jobs.job import StableDiffusionProcessing
from standalone.host.sampling.registry import is_sampler_using_eta_noise_seed_delta
from standalone.host.shared import opts, state
from standalone.infotext import text

VERSION = "steer-0.1.0"


def program_version() -> str | None:
    """What "Version" in the infotext says."""
    return VERSION


def create_infotext(
    p: Any,
    all_prompts: list[str],
    all_seeds: list[int],
    all_subseeds: list[int],
    comments: Any = None,
    iteration: int = 0,
    position_in_batch: int = 0,
    use_main_prompt: bool = False,
    index: int | None = None,
    all_negative_prompts: list[str] | None = None,
) -> str:
    """The infotext of the image number `index` of the given lists.

    Entries of `p.extra_generation_params` may be text, a list with an entry per image, or a function, called with what
    is known here (p, index, prompt_text, negative_prompt ...); None leaves an entry out.
    """
    if use_main_prompt:
        index = 0
    elif index is None:
        index = position_in_batch + iteration * p.batch_size
    if all_negative_prompts is None:
        all_negative_prompts = p.all_negative_prompts

    clip_skip = getattr(p, "clip_skip", opts.CLIP_stop_at_last_layers)
    prompt_text = p.main_prompt if use_main_prompt else all_prompts[index]
    negative_prompt = p.main_negative_prompt if use_main_prompt else all_negative_prompts[index]
    delta = (
        opts.eta_noise_seed_delta if opts.eta_noise_seed_delta and is_sampler_using_eta_noise_seed_delta(p) else None
    )
    varied = p.subseed_strength != 0
    resized = p.seed_resize_from_w > 0 and p.seed_resize_from_h > 0

    params: dict[str, Any] = {
        "Steps": p.steps,
        "Sampler": p.sampler_name,
        "Schedule type": p.scheduler,
        "CFG scale": p.cfg_scale,
        "Image CFG scale": getattr(p, "image_cfg_scale", None),
        "Seed": p.all_seeds[0] if use_main_prompt else all_seeds[index],
        "Size": f"{p.width}x{p.height}",
        "Model hash": p.sd_model_hash if opts.add_model_hash_to_info else None,
        "Model": p.sd_model_name if opts.add_model_name_to_info else None,
        "Variation seed": (p.all_subseeds[0] if use_main_prompt else all_subseeds[index]) if varied else None,
        "Variation seed strength": p.subseed_strength if varied else None,
        "Seed resize from": f"{p.seed_resize_from_w}x{p.seed_resize_from_h}" if resized else None,
        "Denoising strength": p.extra_generation_params.get("Denoising strength"),
        "Conditional mask weight": getattr(p, "inpainting_mask_weight", opts.inpainting_mask_weight)
        if p.is_using_inpainting_conditioning
        else None,
        "Clip skip": None if clip_skip <= 1 else clip_skip,
        "Clip skip SDXL": True if opts.sdxl_clip_l_skip and getattr(p.sd_model, "is_sdxl", False) else None,
        "ENSD": delta,
        "Init image hash": getattr(p, "init_img_hash", None),
        "RNG": opts.randn_source if opts.randn_source != "GPU" else None,
        "Emphasis": opts.emphasis if opts.emphasis != "Original" else None,
        **p.extra_generation_params,
        "Version": program_version() if opts.add_version_to_infotext else None,
        "User": p.user if opts.add_user_name_to_info else None,
    }
    known = locals().copy()
    for key, value in params.items():
        try:
            if isinstance(value, list):
                params[key] = value[index]
            elif callable(value):
                params[key] = value(**known)
        except Exception:
            errors.report(f'Error creating infotext for key "{key}"', exc_info=True)
            params[key] = None
    return text.write(prompt_text, negative_prompt, params)


# the fields of a result that the API shows, and others that scripts look at; most are the job's
_SHOWN = (
    "all_prompts all_negative_prompts seed all_seeds subseed all_subseeds subseed_strength width height sampler_name "
    "cfg_scale steps batch_size restore_faces face_restoration_model sd_model_name sd_model_hash sd_vae_name "
    "sd_vae_hash seed_resize_from_w seed_resize_from_h denoising_strength extra_generation_params "
    "index_of_first_image infotexts styles job_timestamp clip_skip is_using_inpainting_conditioning version comments"
).split()
_KEPT = (
    "image_cfg_scale token_merging_ratio token_merging_ratio_hr eta ddim_discretize s_churn s_tmin s_tmax s_noise "
    "s_min_uncond sampler_noise_scheduler_override"
).split()


class Processed:
    """Images and their infotexts, in step; a grid may come first."""

    batch_size: int
    token_merging_ratio: float
    token_merging_ratio_hr: float

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

        for name in (*_SHOWN, *_KEPT):
            setattr(self, name, getattr(p, name, None))
        self.images = images_list
        self.prompt, self.negative_prompt = first(p.prompt), first(p.negative_prompt)
        self.seed = int(first(seed)) if seed is not None else -1
        self.subseed = int(first(subseed)) if subseed is not None else -1
        self.info = info
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.face_restoration_model = None
        self.index_of_first_image = index_of_first_image
        self.job_timestamp = state.job_timestamp
        self.clip_skip = opts.CLIP_stop_at_last_layers
        self.all_prompts = all_prompts or p.all_prompts or [self.prompt]
        self.all_negative_prompts = all_negative_prompts or p.all_negative_prompts or [self.negative_prompt]
        self.all_seeds = all_seeds or p.all_seeds or [self.seed]
        self.all_subseeds = all_subseeds or p.all_subseeds or [self.subseed]
        self.infotexts = infotexts or [info] * len(images_list)
        self.version = program_version()

    def js(self) -> str:
        """The result without its images, as JSON."""
        values = {"prompt": self.all_prompts[0], "negative_prompt": self.all_negative_prompts[0]}
        values.update({name: getattr(self, name) for name in _SHOWN})
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
