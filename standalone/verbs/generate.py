"""The verb generate: pictures from the command line, as PNGs with infotext."""

from __future__ import annotations

import argparse
import base64
import sys
import threading
from pathlib import Path
from typing import Any

from standalone.setup.quiet import stay_local

from .serve import data_folder, find_checkpoint, say

FABRIC_FIELDS = {
    "fabric_strength": "strength",
    "fabric_min_strength": "min_strength",
    "fabric_start": "start",
    "fabric_end": "end",
    "fabric_negative_weight": "negative_weight",
}


def read_picture(path: Path) -> str:
    """The file's bytes as base64 text. UserError if it cannot be read."""
    from standalone.engine.errors import UserError

    try:
        return base64.b64encode(path.expanduser().read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}.") from error


def fabric_args(options: argparse.Namespace) -> dict[str, Any]:
    """The entry of `alwayson_scripts` for FABRIC; {} when there is no feedback image."""
    if not options.like and not options.dislike:
        return {}
    named: dict[str, Any] = {
        "enabled": True,
        "likes": [read_picture(path) for path in options.like],
        "dislikes": [read_picture(path) for path in options.dislike],
    }
    for option, field in FABRIC_FIELDS.items():
        if getattr(options, option) is not None:
            named[field] = getattr(options, option)
    return {"FABRIC": {"args": [named]}}


def request_fields(options: argparse.Namespace, defaults: Any) -> dict[str, Any]:
    """The API request that the options stand for; what is left open is the checkpoint's default."""
    width, height = options.size or (defaults.width, defaults.height)
    fields: dict[str, Any] = {
        "prompt": options.prompt,
        "negative_prompt": options.negative,
        "width": width,
        "height": height,
        "steps": options.steps if options.steps is not None else defaults.steps,
        "cfg_scale": options.cfg_scale if options.cfg_scale is not None else defaults.cfg_scale,
        "sampler_name": options.sampler or defaults.sampler_name,
        "scheduler": options.scheduler,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "n_iter": options.batch_count,
        "alwayson_scripts": fabric_args(options),
        "override_settings": {"return_grid": False},
    }
    if options.init_image is not None:
        fields["init_images"] = [read_picture(options.init_image)]
        fields["denoising_strength"] = 0.75 if options.denoising_strength is None else options.denoising_strength
        if options.mask is not None:
            fields |= {"mask": read_picture(options.mask), "inpainting_fill": 1, "inpaint_full_res": False}
    elif options.hires:
        fields |= {
            "enable_hr": True,
            "hr_scale": options.hires_scale,
            "hr_upscaler": options.hires_upscaler,
            "hr_second_pass_steps": options.hires_steps,
            "denoising_strength": 0.7 if options.denoising_strength is None else options.denoising_strength,
        }
    return fields


def write_pictures(processed: Any, folder: Path) -> list[Path]:
    """Writes the images, never over another file: NUMBER-SEED.png. UserError if the folder cannot be written to."""
    from standalone.api.codec import png_bytes
    from standalone.engine.errors import UserError

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        for index, image in enumerate(processed.images[processed.index_of_first_image :]):
            seed = processed.all_seeds[index] if index < len(processed.all_seeds) else processed.seed
            while (path := folder / f"{number:05d}-{seed}.png").exists():
                number += 1
            image.info["parameters"] = processed.infotexts[index + processed.index_of_first_image]
            path.write_bytes(png_bytes(image))
            written.append(path)
            number += 1
    except OSError as error:
        raise UserError(f"The pictures cannot be written to {folder.name}: {error.strerror}.") from error
    return written


def _show_progress(stop: threading.Event) -> None:
    from modules import shared

    last = -1
    while not stop.wait(0.5):
        percent = int(shared.state.progress() * 100)
        if percent != last and percent > 0:
            last = percent
            eta = shared.state.eta()
            left = f", {eta:.0f} s left" if eta is not None else ""
            print(f"\r  {percent:3d} %{left}      ", end="", flush=True)
    if last >= 0:
        print("\r" + " " * 30 + "\r", end="", flush=True)


def make(options: argparse.Namespace, host: Any) -> list[Path]:
    """Does the job on a started host; the files. Raises errors that `sentence_for` explains."""
    from pydantic import ValidationError

    from modules import shared
    from standalone.api.errors import BadRequest, field_sentence
    from standalone.api.generation import Generation
    from standalone.api.models import GenerationRequest, ImageToImageRequest, TextToImageRequest
    from standalone.page.defaults import for_checkpoint

    fields = request_fields(options, for_checkpoint(shared.sd_model))
    kind: type[GenerationRequest] = ImageToImageRequest if "init_images" in fields else TextToImageRequest
    try:
        request = kind.model_validate(fields)
    except ValidationError as error:
        raise BadRequest(field_sentence(error.errors()[0])) from None
    generation = Generation.from_api(request)
    stop = threading.Event()
    watcher = threading.Thread(target=_show_progress, args=(stop,), daemon=True)
    if sys.stdout.isatty():
        watcher.start()
    try:
        processed = host.queue.run(generation.run, name="generate")
    finally:
        stop.set()
        if watcher.is_alive():
            watcher.join(2)
    if processed.comments.strip():
        say(processed.comments.strip())
    return write_pictures(processed, options.out.expanduser().resolve())


def run(options: argparse.Namespace) -> int:
    """Loads the checkpoint, makes the pictures, and says where they are."""
    data_dir = data_folder(options)
    stay_local(data_dir)
    from standalone import host as standalone_host
    from standalone.engine.errors import UserError

    if options.mask is not None and options.init_image is None:
        print("--mask needs --init-image, the picture that it belongs to.", file=sys.stderr)
        return 2
    host = None
    try:
        host = standalone_host.start(checkpoint=find_checkpoint(options.checkpoint), data_dir=data_dir, progress=say)
        for path in make(options, host):
            say(str(path))
    except UserError as error:
        print(str(error), file=sys.stderr)
        return 1
    except Exception:
        if host is None:
            raise
        from standalone.api.errors import sentence_for

        print(sentence_for(sys.exc_info()[1] or RuntimeError())[0], file=sys.stderr)
        return 1
    finally:
        if host is not None:
            host.close()
    return 0
