"""Requests to the WebUI for the end-to-end tests: small, seeded, with images made here."""

from __future__ import annotations

import json
from typing import Any

from PIL import Image, ImageChops, ImageDraw

from .client import JSON, Generation, encode_image
from .server import WebUI

BASE: JSON = {
    "prompt": "a circle on white",
    "negative_prompt": "blurry",
    "seed": 11,
    "steps": 3,
    "width": 128,
    "height": 128,
    "cfg_scale": 5,
    "sampler_name": "Euler a",
}


def picture(colour: str, size: tuple[int, int] = (128, 128), shape: str = "ellipse") -> str:
    """A shape of `colour` on a darker ground, as base64."""
    image = Image.new("RGB", size, "#303030")
    getattr(ImageDraw.Draw(image), shape)([size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4], fill=colour)
    return encode_image(image)


def feedback(*colours: str, weight: float = 1.0, **options: Any) -> list[JSON]:
    """A list of liked or disliked images."""
    return [{"image": picture(colour, **options), "weight": weight} for colour in colours]


def with_fabric(payload: JSON, **settings: Any) -> JSON:
    """`payload` with FABRIC's named fields. On every step unless `end` says otherwise."""
    return {**payload, "alwayson_scripts": {"FABRIC": {"args": [{"strength": 0.8, "end": 1.0, **settings}]}}}


def inpainting(payload: JSON) -> JSON:
    """`payload` as inpainting of the right half of an image."""
    mask = Image.new("L", (128, 128))
    mask.paste(255, (64, 0, 128, 128))
    return {**payload, "init_images": [picture("green")], "mask": encode_image(mask), "denoising_strength": 0.8}


CASES: dict[str, JSON] = {
    "txt2img, Euler a": BASE,
    "txt2img, DDIM": {**BASE, "sampler_name": "DDIM"},
    "txt2img, Heun": {**BASE, "sampler_name": "Heun"},  # second order: two denoiser calls a step
    "txt2img, UniPC": {**BASE, "sampler_name": "UniPC"},
    "txt2img, Euler": {**BASE, "sampler_name": "Euler"},
    "txt2img, DPM++ 2M": {**BASE, "sampler_name": "DPM++ 2M"},
    "512x768": {**BASE, "width": 512, "height": 768, "steps": 2},
    "batch of two": {**BASE, "batch_size": 2, "n_iter": 2},
    "Hires.fix": {**BASE, "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6},
    "img2img": {**BASE, "init_images": [picture("green")], "denoising_strength": 0.7},
    "inpainting": inpainting(BASE),
    "token merging": {**BASE, "override_settings": {"token_merging_ratio": 0.5}},
    "CFG scale 1": {**BASE, "cfg_scale": 1},
}


def generate(server: WebUI, payload: JSON) -> Generation:
    """The answer to `payload`, generated now, with the same outcome whatever job came before.

    The WebUI samples the latent of an init image from PyTorch's global generator, which stands where the last job left
    it; so a job that is always the same goes before. It is edited where `payload` is, as the forks cannot run an
    8-channel checkpoint by themselves.
    """
    if "init_images" in payload:
        before = {"init_images": [picture("gray")], "denoising_strength": 0.5, "steps": 1, "width": 64, "height": 64}
        if "InstructPix2Pix" in payload.get("alwayson_scripts", {}):
            before["alwayson_scripts"] = {"InstructPix2Pix": {"args": [{}]}}
        server.client.generate({**BASE, **before})
    return server.client.generate(payload)


class Runs:
    """Remembers the first answer of a server to each request, as many tests compare with the same image."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], Generation] = {}

    def first(self, server: WebUI, payload: JSON) -> Generation:
        """The answer to `payload`, generated at most once for each server."""
        key = (id(server), json.dumps(payload, sort_keys=True))
        if key not in self._known:
            self._known[key] = generate(server, payload)
        return self._known[key]


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of a channel of a pixel, 0 to 255."""
    return max(ImageChops.difference(one, other).tobytes())
