"""Extras: images enlarged by an upscaler, one or several at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lib_methods.errors import UserError
from standalone.engine import names
from standalone.host import images, pasting, upscalers
from standalone.host.upscalers import UpscalerData
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, Scene, caption

from .checks import LARGEST, MAX_PIXELS_AT_ONCE, naming
from .codec import check_encoded, decode_opened, encode_image, open_encoded
from .errors import BadRequest
from .models import Number, Whole, without_nulls

MOST_IMAGES = 64


class ExtrasRequest(BaseModel):
    """What both routes have in common. This host has no face restorers: their strengths are left out with a word."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    _nulls = model_validator(mode="before")(without_nulls)

    resize_mode: Whole = Field(default=0, ge=0, le=1)
    show_extras_results: bool = True
    gfpgan_visibility: Number = Field(default=0, ge=0, le=1)
    codeformer_visibility: Number = Field(default=0, ge=0, le=1)
    codeformer_weight: Number = Field(default=0, ge=0, le=1)
    upscaling_resize: Number = Field(default=2, gt=0, le=16)
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


def _upscaler(name: str, field: str) -> UpscalerData | None:
    """The upscaler that `name` means; None for "None" and "". BadRequest for an unknown one."""
    if names.folded(name) in ("", "none"):
        return None
    with naming(field):
        found = upscalers.find_upscaler(name)
        if found is None:
            raise names.unknown("upscaler", name, (upscaler.name for upscaler in upscalers.sd_upscalers))
    return found


class Extras:
    """A checked request, ready to run on the job queue's thread. BadRequest if it cannot be done."""

    def __init__(self, request: ExtrasSingleImageRequest | ExtrasBatchImagesRequest) -> None:
        self.request = request
        self.first = _upscaler(request.upscaler_1, "upscaler_1")
        self.second = _upscaler(request.upscaler_2, "upscaler_2")
        if isinstance(request, ExtrasSingleImageRequest):
            texts = {"image": request.image}
        else:
            texts = {f"imageList[{number}]": image.data for number, image in enumerate(request.imageList)}
        if len(texts) > MOST_IMAGES:
            raise BadRequest(f"imageList: {len(texts)} images are too many; send at most {MOST_IMAGES} at once.")
        self.images = check_encoded(texts)
        for name, image in self.images.items():
            if min(image.size) * self._scale(image) < 1:
                raise BadRequest(f"{name}: the result would be smaller than a pixel.")
            if math.prod(image.size) * (self._scale(image) ** 2 if self.first else 1) > MAX_PIXELS_AT_ONCE:
                raise BadRequest(f"{name}: the result would be larger than {MAX_PIXELS_AT_ONCE // 2**20} megapixels.")

    def _scale(self, image: Image.Image) -> float:
        request = self.request
        if request.resize_mode == 0:
            return request.upscaling_resize
        return max(request.upscaling_resize_w / image.width, request.upscaling_resize_h / image.height)

    def run(self) -> tuple[list[str], str]:
        """The results as base64 text, and what was done as HTML."""
        done: dict[str, Any] = {}
        results = [self._one(decode_opened(image, name), done) for name, image in self.images.items()]
        if self.request.gfpgan_visibility or self.request.codeformer_visibility:
            done["Ignored"] = "face restoration, which this host does not have"
        return results, "<p>" + ", ".join(f"{key}: {value}" for key, value in done.items()) + "</p>" if done else ""

    def _one(self, image: Image.Image, done: dict[str, Any]) -> str:
        result = image if self.first is None else self._enlarged(image, self.first, done, "Postprocess upscaler")
        strength = self.request.extras_upscaler_2_visibility
        if self.first is not None and self.second is not None and strength > 0:
            other = self._enlarged(image, self.second, done, "Postprocess upscaler 2")
            result = Image.blend(result, other.convert(result.mode), strength)
        result.info = dict(image.info)
        if done:
            result.info["postprocessing"] = ", ".join(f"{key}: {value}" for key, value in done.items())
        return encode_image(result) if self.request.show_extras_results else ""

    def _enlarged(self, image: Image.Image, upscaler: UpscalerData, done: dict[str, Any], key: str) -> Image.Image:
        request, scale = self.request, self._scale(image)
        if upscaler.scaler is None:
            raise UserError(f"The upscaler {upscaler.name} cannot be used.")
        enlarged = upscaler.scaler.upscale(image, scale, upscaler.data_path)
        if request.resize_mode == 0:
            done["Postprocess upscale by"] = scale
        else:
            width, height = request.upscaling_resize_w, request.upscaling_resize_h
            done["Postprocess upscale to"] = f"{width}x{height}"
            if request.upscaling_crop:
                if enlarged.width < width or enlarged.height < height:  # upscalers round down to multiples of 8
                    enlarged = enlarged.resize((max(enlarged.width, width), max(enlarged.height, height)))
                left, top = (enlarged.width - width) // 2, (enlarged.height - height) // 2
                enlarged = enlarged.crop((left, top, left + width, top + height))
                done["Postprocess crop to"] = f"{width}x{height}"
        done[key] = upscaler.name
        return enlarged


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
