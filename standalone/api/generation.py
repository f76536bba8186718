"""txt2img and img2img: from a request to a job, and from its result to the answer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from PIL import Image

from modules import infotext_utils, sd_samplers, shared
from modules.processing import (
    Processed,
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
    process_images,
)
from modules.script_runner import ScriptRunner

from .checks import check_request, rounded
from .codec import check_encoded, decode_opened, encode_image
from .errors import BadRequest
from .models import GenerationRequest, GenerationResponse, ImageToImageRequest, TextToImageRequest
from .scripts import build_args, runner_for

# Fields of a request that steer the API itself and are no arguments of the processing classes.
_NOT_FOR_PROCESSING = {
    "sampler_index",
    "script_name",
    "script_args",
    "send_images",
    "save_images",
    "alwayson_scripts",
    "infotext",
    "init_images",
    "mask",
    "latent_mask",
    "firstpass_image",
    "include_init_images",
}
# Infotext names of the fields that an `infotext` in the request may set.
_INFOTEXT_NAMES = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "width": "Size-1",
    "height": "Size-2",
    "batch_size": "Batch size",
    "denoising_strength": "Denoising strength",
    "hr_scale": "Hires upscale",
    "hr_upscaler": "Hires upscaler",
    "hr_second_pass_steps": "Hires steps",
    "hr_resize_x": "Hires resize-1",
    "hr_resize_y": "Hires resize-2",
    "subseed": "Variation seed",
    "subseed_strength": "Variation seed strength",
    "hr_prompt": "Hires prompt",
    "hr_negative_prompt": "Hires negative prompt",
    "mask_blur": "Mask blur",
}
# Old names of samplers carry a schedule: these read both fields of an infotext.
_INFOTEXT_SAMPLERS = {
    "sampler_name": sd_samplers.get_sampler_from_infotext,
    "scheduler": sd_samplers.get_scheduler_from_infotext,
    "hr_sampler_name": sd_samplers.get_hr_sampler_from_infotext,
    "hr_scheduler": sd_samplers.get_hr_scheduler_from_infotext,
}


def apply_infotext(request: GenerationRequest, runner: ScriptRunner) -> tuple[GenerationRequest, dict[int, Any]]:
    """Fills fields that the request leaves open from its `infotext`; also the scripts' arguments that it names."""
    if not request.infotext:
        return request, {}
    params = infotext_utils.parse_generation_parameters(request.infotext)
    found = {
        field: params[name]
        for field, name in _INFOTEXT_NAMES.items()
        if name in params and field in type(request).model_fields and field not in request.model_fields_set
    }
    found |= {
        field: value
        for field, source in _INFOTEXT_SAMPLERS.items()
        if field in type(request).model_fields
        and field not in request.model_fields_set
        and (value := source(params)) is not None
    }
    if isinstance(request, TextToImageRequest) and "enable_hr" not in request.model_fields_set:
        found["enable_hr"] = "Denoising strength" in params and bool({"Hires upscale", "Hires upscaler"} & set(params))
    settings = {name: value for _, name, value in infotext_utils.get_override_settings(params)}
    found["override_settings"] = {**settings, **(request.override_settings or {})}
    try:
        filled = type(request).model_validate({**request.model_dump(exclude_unset=True), **found})
    except ValueError:
        raise BadRequest("infotext: it has a value that does not fit.") from None
    return filled, script_args_from_infotext(params, runner)


def script_args_from_infotext(params: Mapping[str, Any], runner: ScriptRunner) -> dict[int, Any]:
    """Places and values of the scripts' arguments that parsed infotext `params` mention."""
    places = {id(control): index for index, control in enumerate(runner.inputs) if control is not None}
    args: dict[int, Any] = {}
    for field in runner.infotext_fields:
        paste_field = hasattr(field, "component")
        component, source = (field.component, field.function or field.label) if paste_field else field[:2]
        index = places.get(id(component))
        if index is None or index == 0:
            continue
        value = source(params) if callable(source) else params.get(source)
        if isinstance(value, dict) and value.get("__type__") in ("update", "generic_update"):
            value = value.get("value")
        if value is None:
            continue
        default = getattr(component, "value", None)
        if isinstance(default, bool) and isinstance(value, str):
            value = value.strip().lower() not in ("false", "0", "")
        elif isinstance(default, (int, float)) and not isinstance(default, bool) and isinstance(value, str):
            try:
                value = type(default)(float(value))
            except ValueError:
                continue
        args[index] = value
    return args


def _processing_fields(request: GenerationRequest) -> dict[str, Any]:
    fields = request.model_dump(exclude=_NOT_FOR_PROCESSING)
    fields["sampler_name"], fields["scheduler"] = sd_samplers.resolve(
        request.sampler_name or request.sampler_index, request.scheduler
    )
    fields["width"], fields["height"] = rounded(int(request.width or 512)), rounded(int(request.height or 512))
    fields["prompt"], fields["negative_prompt"] = request.prompt or "", request.negative_prompt or ""
    fields["do_not_save_samples"] = fields["do_not_save_grid"] = not request.save_images
    fields["comments"] = None
    return fields


def run_processing(p: Any, args: tuple[Any, ...], *, is_img2img: bool, is_api: bool) -> Processed:
    """Gives `p` its scripts and arguments and does the job. Call it on the job queue's thread."""
    runner = runner_for(is_img2img)
    tab = "img2img" if is_img2img else "txt2img"
    p.is_api = is_api
    p.scripts = runner
    p.outpath_samples = getattr(shared.opts, f"outdir_{tab}_samples")
    p.outpath_grids = getattr(shared.opts, f"outdir_{tab}_grids")
    p.script_args = args
    processed = runner.run(p, *args)
    return process_images(p) if processed is None else processed


def _decoded(given: Any, name: str) -> Any:
    if isinstance(given, list):
        return [_decoded(image, f"{name}[{number}]") for number, image in enumerate(given)]
    return decode_opened(given, name)


class Generation:
    """One job of txt2img or img2img, checked and ready to run. BadRequest if it cannot be done.

    `request` must have passed check_request; `args` are all scripts' arguments in the runner's layout; `init_images`
    and `mask` may be images of which only the header is read.
    """

    def __init__(
        self,
        request: GenerationRequest,
        args: tuple[Any, ...],
        *,
        init_images: list[Image.Image] | None = None,
        mask: Image.Image | None = None,
        is_api: bool = True,
    ) -> None:
        self.is_img2img = isinstance(request, ImageToImageRequest)
        self.request = request
        self.args = args
        self.is_api = is_api
        self.fields = _processing_fields(request)
        if self.is_img2img:
            self.fields |= {"init_images": init_images, "mask": mask}

    @classmethod
    def from_api(cls, given: GenerationRequest) -> Generation:
        """The job that an API request asks for."""
        runner = runner_for(isinstance(given, ImageToImageRequest))
        request, mentioned = apply_infotext(given, runner)
        check_request(request)
        args = build_args(
            runner,
            script_name=request.script_name,
            script_args=request.script_args,
            always_on=request.alwayson_scripts,
            mentioned=mentioned,
        )
        if not isinstance(request, ImageToImageRequest):
            return cls(request, args)
        texts = {f"init_images[{number}]": text for number, text in enumerate(request.init_images or [])}
        opened = check_encoded(texts | ({"mask": request.mask} if request.mask else {}))
        mask = opened.pop("mask", None)
        return cls(request, args, init_images=list(opened.values()), mask=mask)

    def run(self) -> Processed:
        """Does the job on the calling thread."""
        # decoded not before its turn and kept no longer than the job: images are large
        given = {name: self.fields.pop(name) for name in ("init_images", "mask") if self.fields.get(name)}
        decoded = {name: _decoded(value, name) for name, value in given.items()}
        kind = StableDiffusionProcessingImg2Img if self.is_img2img else StableDiffusionProcessingTxt2Img
        with closing(kind(sd_model=shared.sd_model, **self.fields, **decoded)) as p:
            return run_processing(p, self.args, is_img2img=self.is_img2img, is_api=self.is_api)

    def answer(self, processed: Processed) -> GenerationResponse:
        """The API's answer. Input images are sent back only when the request asks for that."""
        parameters = self.request.model_dump()
        if isinstance(self.request, ImageToImageRequest) and not self.request.include_init_images:
            parameters["init_images"] = parameters["mask"] = None
        images = [encode_image(image) for image in processed.images] if self.request.send_images else []
        return GenerationResponse(images=images, parameters=parameters, info=processed.js())
