"""Interrogate: a prompt for an image. This host has no captioning model; it answers with what it knows for sure."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from standalone.host import images, pasting
from standalone.shapes.captions import caption
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, Scene

from .codec import decode_opened, open_encoded
from .errors import BadRequest

_FIT, _SATURATION = 0.65, 0.5  # below these it is no drawing of the world that `shapes` knows


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
