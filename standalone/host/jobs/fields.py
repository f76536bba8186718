"""The fields of a job: the request, in the WebUI's order, and what is filled in on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNSET: Any = None  # for fields that are filled in before anyone reads them


@dataclass(repr=False)
class ProcessingFields:
    """The request; with `init=False`, what becomes known of it."""

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
