"""Requests to pix2pix-zero for the end-to-end tests, on an image of the procedural world that `shapes` knows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from lib_methods.pix2pix_zero.maps import GAP, LEAST_COLUMN
from standalone.shapes.parser import parse
from standalone.shapes.world import Scene, caption, render

from .client import JSON, Generation, encode_image
from .server import WebUI

TITLE = "pix2pix-zero"
ERROR = f"{TITLE} error: "
SIDE = 64
SCENE = Scene(kind="circle", colour="green", size="large", texture="plain", place="all over", background="white")
CAPTION = caption(SCENE)
SOURCE = Image.fromarray(render(SCENE, np.random.default_rng(5), SIDE, SIDE))
TXT2IMG: JSON = {
    "prompt": CAPTION,
    "negative_prompt": "",
    "seed": 11,
    "steps": 20,
    "width": SIDE,
    "height": SIDE,
    "cfg_scale": 5,
    "sampler_name": "Euler",
    "scheduler": "Automatic",
}
IMG2IMG: JSON = {**TXT2IMG, "init_images": [encode_image(SOURCE)], "denoising_strength": 1.0}
SHORT: JSON = {"steps": 5}
"""For tests that need no good image."""


def edited(payload: JSON, **fields: Any) -> JSON:
    """`payload` with green made red, unless `fields` say otherwise."""
    named = {"source": "green", "target": "red", "words_are": "adjective", **fields}
    return {**payload, "alwayson_scripts": {**payload.get("alwayson_scripts", {}), TITLE: {"args": [named]}}}


def half(left: int, right: int) -> str:
    """A mask of two halves of a brightness each, 0 to 255."""
    image = Image.new("L", (SIDE, SIDE), left)
    image.paste(right, (SIDE // 2, 0, SIDE, SIDE))
    return encode_image(image)


def seen(image: Image.Image) -> dict[str, str | None]:
    """The attributes that the parser reads from an image."""
    return parse(np.asarray(image)).attributes


def psnr(one: Image.Image, other: Image.Image, box: tuple[int, int, int, int] | None = None) -> float:
    """How close two images are, in decibels, in a part of them if `box` says so; infinite where nothing differs."""
    pixels = [np.asarray(image.crop(box) if box else image, dtype=np.float64) for image in (one, other)]
    error = float(np.square(pixels[0] - pixels[1]).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def panels(sheet: Image.Image, width: int = SIDE, height: int = SIDE) -> list[Image.Image]:
    """The images side by side in a sheet, without their names."""
    top, pitch = sheet.height - height, max(width, LEAST_COLUMN) + GAP
    lefts = [i * pitch for i in range((sheet.width + GAP) // pitch)]
    return [sheet.crop((left, top, left + width, top + height)) for left in lefts]


def stopped(server: WebUI, payload: JSON, when: Callable[[JSON], bool], path: str = "interrupt") -> Generation:
    """The answer to a job that is interrupted once `when` is true of its progress."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.client.generate, payload)
        deadline = time.monotonic() + 120
        while not when(server.client.get("/sdapi/v1/progress?skip_current_image=true")):
            assert not answer.done(), "the job was over before it could be stopped"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        server.client.post(f"/sdapi/v1/{path}")
        return answer.result()
