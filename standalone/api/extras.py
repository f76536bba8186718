"""Extras: images changed by the postprocessing scripts, one or several at once; and captions."""

from __future__ import annotations

import html
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from standalone.host import extras, images, pasting
from standalone.host.scripts import loading
from standalone.host.scripts.upscale import MOST_TIMES, find_upscaler, upscale_of
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, Scene, caption

from .checks import LARGEST, naming
from .codec import check_encoded, decode_opened, encode_image, open_encoded
from .errors import BadRequest
from .models import Number, Whole, without_nulls

MOST_IMAGES = 64


class ExtrasRequest(BaseModel):
    """What both routes have in common."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    _nulls = model_validator(mode="before")(without_nulls)

    resize_mode: Whole = Field(default=0, ge=0, le=1)
    show_extras_results: bool = True
    gfpgan_visibility: Number = Field(default=0, ge=0, le=1)
    codeformer_visibility: Number = Field(default=0, ge=0, le=1)
    codeformer_weight: Number = Field(default=0, ge=0, le=1)
    upscaling_resize: Number = Field(default=2, gt=0, le=MOST_TIMES)
    upscaling_resize_w: Whole = Field(default=512, ge=1, le=2 * LARGEST)
    upscaling_resize_h: Whole = Field(default=512, ge=1, le=2 * LARGEST)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: Number = Field(default=0, ge=0, le=1)
    upscale_first: bool = False


class ExtrasSingleImageRequest(ExtrasRequest):
    """POST /sdapi/v1/extra-single-image."""

    image: str = ""


class NamedImage(BaseModel):
    """An image as base64 text."""

    data: str
    name: str = ""


class ExtrasBatchImagesRequest(ExtrasRequest):
    """POST /sdapi/v1/extra-batch-images."""

    imageList: list[NamedImage]


class ExtrasSingleImageResponse(BaseModel):
    html_info: str
    image: str


class ExtrasBatchImagesResponse(BaseModel):
    html_info: str
    images: list[str]


_RESTORERS = {"GFPGAN": "gfpgan_visibility", "CodeFormer": "codeformer_visibility"}


class Extras:
    """A checked request, ready to run on the job queue's thread. BadRequest if it cannot be done."""

    def __init__(self, request: ExtrasSingleImageRequest | ExtrasBatchImagesRequest) -> None:
        known = {script.name for script in loading.scripts_postproc.scripts_in_preferred_order()}
        for title, field in _RESTORERS.items():
            if getattr(request, field) > 0 and title not in known:
                raise BadRequest(f"{field}: this host has no {title}. Set it to 0.")
        arguments: dict[str, Any] = {
            "upscale_enabled": True,
            "upscale_mode": request.resize_mode,
            "upscale_by": request.upscaling_resize,
            "max_side_length": 0,
            "upscale_to_width": request.upscaling_resize_w,
            "upscale_to_height": request.upscaling_resize_h,
            "upscale_crop": request.upscaling_crop,
            "upscaler_1_name": request.upscaler_1,
            "upscaler_2_name": request.upscaler_2,
            "upscaler_2_visibility": request.extras_upscaler_2_visibility,
        }
        for number in (1, 2):
            with naming(f"upscaler_{number}"):
                find_upscaler(arguments[f"upscaler_{number}_name"])
        upscale = upscale_of(arguments)
        self._arguments: dict[str, dict[str, Any]] = {
            "Upscale": arguments,
            "GFPGAN": {"enable": True, "gfpgan_visibility": request.gfpgan_visibility},
            "CodeFormer": {
                "enable": True,
                "codeformer_visibility": request.codeformer_visibility,
                "codeformer_weight": request.codeformer_weight,
            },
        }
        if isinstance(request, ExtrasSingleImageRequest):
            texts = {"image": request.image}
        else:
            texts = {f"imageList[{number}]": image.data for number, image in enumerate(request.imageList)}
        if len(texts) > MOST_IMAGES:
            raise BadRequest(f"imageList: {len(texts)} images are too many; send at most {MOST_IMAGES} at once.")
        self._images = check_encoded(texts)
        for name, image in self._images.items():
            if upscale.first is not None:
                with naming(name):
                    upscale.size(image.size)

    def run(self) -> tuple[list[str], str]:
        """The results as base64 text, and what was done to the last one as HTML."""
        sources = [extras.Source(partial(decode_opened, image, name), name) for name, image in self._images.items()]
        run = extras.Extras(sources, loading.scripts_postproc.create_args_for_run(self._arguments))
        found, done = [], ""
        for result in run.results():
            found.append(encode_image(result.image))
            done = result.done
        if run.problems:
            raise BadRequest(" ".join(run.problems))
        if not found and sources:
            raise BadRequest("The job was interrupted.", 503)
        return found, f"<p>{html.escape(done)}</p>"


_FIT, _SATURATION = 0.65, 0.5  # below these it is not an image of the world that `shapes` knows


class InterrogateRequest(BaseModel):
    """POST /sdapi/v1/interrogate."""

    image: str = ""
    model: str = "clip"


class InterrogateResponse(BaseModel):
    caption: str


def interrogate(request: InterrogateRequest) -> InterrogateResponse:
    """The prompt that the image carries, else what the parser of `shapes` sees in it. BadRequest for other images."""
    if request.model.strip().lower() not in ("", "clip"):
        raise BadRequest("model: this host has no tagger; leave the field out, or send 'clip'.", 404)
    opened = open_encoded({"image": request.image})["image"]
    text, _ = images.read_info_from_image(opened)
    prompt = str(pasting.parse_generation_parameters(text or "").get("Prompt") or "").strip()
    found = prompt or seen(decode_opened(opened, "image"))
    if not found:
        raise BadRequest(
            "This host has no captioning model: it knows the prompt of images that carry one, and coloured shapes. "
            "Describe the image yourself, or interrogate it in AUTOMATIC1111's WebUI.",
            404,
        )
    return InterrogateResponse(caption=found)


def seen(image: Image.Image) -> str:
    """A caption of coloured shapes in `image`; "" when there are none."""
    image = image.convert("RGB")
    image.thumbnail((256, 256))
    picture = parse(np.asarray(image))
    sure = [found.fit >= _FIT and found.saturation >= _SATURATION for found in picture.objects]
    attributes: dict[str, Any] = picture.attributes
    return "" if not sure or not all(sure) else caption(Scene(**{name: attributes[name] for name in ATTRIBUTES}))
