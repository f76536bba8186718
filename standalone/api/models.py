"""Requests and answers of the API: the fields and defaults of the WebUI v1.10.1."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from standalone.engine.names import is_text


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "true and false are not numbers")
    return value


def without_nulls(given: Any) -> Any:
    """A field that is null has its default, as one that is left out. Text from a command line is made encodable."""
    if not isinstance(given, dict):
        return given
    return {key: _encodable(value) for key, value in given.items() if value is not None}


def _encodable(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) and not is_text(value) else value


Whole = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]


class GenerationRequest(BaseModel):
    """What txt2img and img2img have in common."""

    # allow: `left_out` names what this host does not know
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    _nulls = model_validator(mode="before")(without_nulls)

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[str] | None = None
    seed: Whole | None = -1
    subseed: Whole | None = -1
    subseed_strength: Number | None = 0
    seed_resize_from_h: Whole | None = -1
    seed_resize_from_w: Whole | None = -1
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: Whole | None = 1
    n_iter: Whole | None = 1
    steps: Whole | None = 50
    cfg_scale: Number | None = 7.0
    width: Whole | None = 512
    height: Whole | None = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool | None = False
    do_not_save_grid: bool | None = False
    eta: Number | None = None
    denoising_strength: Number | None = 0.75
    s_min_uncond: Number | None = None
    s_churn: Number | None = None
    s_tmax: Number | None = None
    s_tmin: Number | None = None
    s_noise: Number | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: Number | None = None
    disable_extra_networks: bool | None = False
    firstpass_image: str | None = None
    comments: dict[str, Any] | None = None
    sampler_index: str | None = "Euler"
    script_name: str | None = None
    script_args: list[Any] | None = Field(default_factory=list)
    send_images: bool | None = True
    save_images: bool | None = False
    alwayson_scripts: dict[str, Any] | None = Field(default_factory=dict)
    force_task_id: str | None = None
    infotext: str | None = None

    def known(self) -> dict[str, Any]:
        """The fields that this host knows, and their values."""
        return self.model_dump(include=set(type(self).model_fields))

    def left_out(self) -> dict[str, Any]:
        """What the request has that this host does not know or does not do; see `note_ignored` of the job."""
        undone = {name: getattr(self, name, None) for name in ("firstpass_image", "latent_mask")}
        return {**undone, **(self.model_extra or {})}


class TextToImageRequest(GenerationRequest):
    """POST /sdapi/v1/txt2img."""

    enable_hr: bool | None = False
    firstphase_width: Whole | None = 0
    firstphase_height: Whole | None = 0
    hr_scale: Number | None = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: Whole | None = 0
    hr_resize_x: Whole | None = 0
    hr_resize_y: Whole | None = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    hr_cfg: Number | None = None


class ImageToImageRequest(GenerationRequest):
    """POST /sdapi/v1/img2img."""

    init_images: list[str] | None = None
    resize_mode: Whole | None = 0
    image_cfg_scale: Number | None = None
    mask: str | None = None
    mask_blur_x: Whole | None = 4
    mask_blur_y: Whole | None = 4
    mask_blur: Whole | None = None
    mask_round: bool | None = True
    inpainting_fill: Whole | None = 0
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: Whole | None = 0
    inpainting_mask_invert: int | None = 0  # true is 1: what else could it mean
    initial_noise_multiplier: Number | None = None
    latent_mask: str | None = None
    include_init_images: bool | None = Field(default=False, exclude=True)


class GenerationResponse(BaseModel):
    """Images as base64, the request as it was understood, and the result's description as JSON text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PNGInfoRequest(BaseModel):
    image: str


class PNGInfoResponse(BaseModel):
    info: str
    items: dict[str, Any]
    parameters: dict[str, Any]


class ProgressResponse(BaseModel):
    progress: float
    eta_relative: float
    state: dict[str, Any]
    current_image: str | None = None
    textinfo: str | None = None
    current_task: str | None = None


class TaskRequest(BaseModel):
    """POST /internal/interrupt and /internal/skip: the page stops its own job, not another page's."""

    id_task: str


class TaskProgressRequest(BaseModel):
    """POST /internal/progress, what the page asks while it waits."""

    id_task: str | None = None
    id_live_preview: int = -1
    live_preview: bool = True


class TaskProgressResponse(BaseModel):
    active: bool
    queued: bool
    completed: bool
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = None
    id_live_preview: int | None = None
    textinfo: str | None = None
