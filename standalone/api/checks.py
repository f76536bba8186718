"""Says what is wrong with a request before a job is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lib_methods.checks import SettingsError
from lib_methods.errors import UserError
from standalone.host import checkpoints, shared, upscalers
from standalone.host.sampling import registry

from .errors import BadRequest
from .models import GenerationRequest, ImageToImageRequest, TextToImageRequest

SMALLEST, LARGEST = 16, 4096
MAX_PIXELS_AT_ONCE = 64 * 1024 * 1024
MAX_PROMPT = 100_000
INT64 = 2**63
_LIMITS: dict[str, tuple[float, float]] = {
    "batch_size": (1, 64),
    "n_iter": (1, 1000),
    "steps": (1, 1000),
    "cfg_scale": (0, 100),
    "denoising_strength": (0, 1),
    "subseed_strength": (0, 1),
    "seed": (-INT64, INT64 - 1),
    "subseed": (-INT64, INT64 - 1),
    "eta": (0, 10),
    "s_churn": (0, 1000),
    "s_tmin": (0, 1e6),
    "s_tmax": (0, 1e6),
    "s_noise": (0, 10),
    "s_min_uncond": (0, 1000),
    "seed_resize_from_w": (-LARGEST, LARGEST),
    "seed_resize_from_h": (-LARGEST, LARGEST),
    "refiner_switch_at": (0, 1),
    "resize_mode": (0, 3),
    "inpainting_fill": (0, 3),
    "inpainting_mask_invert": (0, 1),
    "inpaint_full_res_padding": (0, LARGEST),
    "image_cfg_scale": (0, 100),
    "initial_noise_multiplier": (0, 10),
    **dict.fromkeys(("mask_blur", "mask_blur_x", "mask_blur_y"), (0, 256)),
}


def _between(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name}: {value:g} is not between {low:g} and {high:g}.")


@contextmanager
def naming(field: str, status: int = 422) -> Iterator[None]:
    """Makes the job's own error about a name a refusal of the request's `field`."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise BadRequest(f"{field}: {text[:1].lower()}{text[1:]}", status) from None


def check_names(request: GenerationRequest) -> None:
    """BadRequest unless the job's own resolvers know every name in `request`."""
    with naming("sampler_name", 400):
        registry.resolve(request.sampler_name or request.sampler_index)
    with naming("scheduler", 400):
        registry.resolve(None, request.scheduler)
    with naming("refiner_checkpoint", 404):
        checkpoints.find_checkpoint(request.refiner_checkpoint)
    if not isinstance(request, TextToImageRequest) or not request.enable_hr:
        return
    with naming("hr_upscaler"):
        if request.hr_upscaler:
            upscalers.find_hires_upscaler(request.hr_upscaler)
    with naming("hr_sampler_name", 400):
        registry.resolve_hires(request.hr_sampler_name, None)
    with naming("hr_scheduler", 400):
        registry.resolve_hires(None, request.hr_scheduler)
    with naming("hr_checkpoint_name", 404):
        checkpoints.find_checkpoint(request.hr_checkpoint_name)


def check_setting(key: str, value: object, field: str) -> object:
    """`value` as the setting `key` keeps it. BadRequest when it cannot be its value."""
    if key == "sd_model_checkpoint" and isinstance(value, str):
        with naming(field, 404):
            checkpoints.find_checkpoint(value)
    try:
        return shared.opts.checked(key, value)
    except SettingsError as error:
        raise BadRequest(f"{field}: {error}") from None


def rounded(size: int) -> int:
    """A width or height as the model can make it: a multiple of 8, as the WebUI rounds."""
    return size - size % 8


def check_request(request: GenerationRequest) -> None:
    """BadRequest with a sentence for the first thing in `request` that cannot be done."""
    for name in ("width", "height"):
        size = getattr(request, name)
        if size is None or not SMALLEST <= size <= LARGEST:
            raise BadRequest(f"{name}: {size} is not a size between {SMALLEST} and {LARGEST}.")
    for name in ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"):
        if len(getattr(request, name, None) or "") > MAX_PROMPT:
            raise BadRequest(f"{name}: longer than {MAX_PROMPT} characters.")
    for name, limits in _LIMITS.items():
        _between(name, getattr(request, name, None), *limits)
    width, height = request.width or 0, request.height or 0
    if width * height * (request.batch_size or 1) > MAX_PIXELS_AT_ONCE:
        raise BadRequest(f"batch_size: {request.batch_size} images of {width}x{height} at once are too many.")
    check_names(request)
    for name in ("s_churn", "s_tmin", "s_tmax", "s_noise", "s_min_uncond"):
        if getattr(request, name, None) is not None:
            check_setting(name, getattr(request, name), name)
    for key, value in (request.override_settings or {}).items():
        if key in shared.opts.data_labels:  # the job leaves unknown ones out
            check_setting(key, value, "override_settings")
    if isinstance(request, TextToImageRequest) and request.enable_hr:
        _check_hires(request)
    if isinstance(request, ImageToImageRequest):
        images, most = len(request.init_images or []), request.batch_size or 1
        if images == 0:
            raise BadRequest("init_images: there is no image to start from.", 404)
        if 1 < images > most:
            raise BadRequest(f"init_images: {images} images for a batch of {most}. Send 1 or as many.")


def _check_hires(request: TextToImageRequest) -> None:
    _between("hr_scale", request.hr_scale, 1, 8)
    _between("hr_cfg", request.hr_cfg, 0, 100)
    _between("hr_second_pass_steps", request.hr_second_pass_steps, 0, 1000)
    for name in ("hr_resize_x", "hr_resize_y"):
        _between(name, getattr(request, name) or None, SMALLEST, LARGEST)
    scale = request.hr_scale or 1.0
    longest = max(request.width or 0, request.height or 0)
    if longest * scale > LARGEST and not (request.hr_resize_x or request.hr_resize_y):
        raise BadRequest(f"hr_scale: {scale:g} times this size is more than {LARGEST} pixels.")
