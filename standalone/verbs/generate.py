"""The command generate: images as PNGs with infotext."""

from __future__ import annotations

import argparse
import base64
import sys
import threading
from pathlib import Path
from typing import Any

from lib_methods.errors import UserError, reason
from lib_methods.webui.api_guard import own_title
from standalone.setup.environment import stay_local

from . import arguments
from .serve import data_folder, find_checkpoint, say


def check(options: argparse.Namespace) -> None:
    """UserError for what cannot be done whatever the checkpoint, said before torch is imported."""
    for option, value in (("the prompt", options.prompt), ("--negative", options.negative)):
        arguments.text(value, option)
    for name in ("like", "dislike"):
        for path in getattr(options, name):
            arguments.image_file(path, f"--{name}")
    for name in ("init_image", "mask"):
        if getattr(options, name) is not None:
            arguments.image_file(getattr(options, name), f"--{name.replace('_', '-')}")
    if options.sampler is not None:
        arguments.sampler(options.sampler, "--sampler")
    arguments.schedule(options.scheduler, "--scheduler")
    arguments.hires_upscaler(options.hires_upscaler, "--hires-upscaler")
    arguments.writable_folder(options.out, "--out")
    if options.mask is not None and options.init_image is None:
        raise UserError("--mask needs --init-image, the image it belongs to.")
    if options.hires and options.init_image is not None:
        raise UserError("--hires works only without --init-image. Leave one of them out.")
    if options.denoising_strength is not None and not options.hires and options.init_image is None:
        raise UserError("--denoising-strength needs --init-image or --hires.")
    if options.fabric_consistent_batch and options.batch_size == 1:
        raise UserError("--fabric-consistent-batch needs --batch-size above 1.")
    if (given := fabric_settings(options)) and not fabric_args(options):
        raise UserError(f"--fabric-{next(iter(given)).replace('_', '-')} needs --like or --dislike with a file.")


def fabric_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options `--fabric-...` set, by the API's names."""
    named = {name.partition("fabric_")[2]: value for name, value in vars(options).items()}
    return {name: value for name, value in named.items() if name and value is not None}


def read_picture(path: Path, option: str = "file") -> str:
    """The image's bytes as base64 text. UserError if it cannot be read."""
    return base64.b64encode(arguments.image_file(path, option)).decode("ascii")


def fabric_args(options: argparse.Namespace) -> dict[str, Any]:
    """The entry of `alwayson_scripts` for FABRIC; {} when there is nothing to look at."""
    if not options.like and not options.dislike and not options.fabric_consistent_batch:
        return {}
    named: dict[str, Any] = {
        "enabled": True,
        "likes": [read_picture(path, "--like") for path in options.like],
        "dislikes": [read_picture(path, "--dislike") for path in options.dislike],
        **fabric_settings(options),
    }
    return {own_title("FABRIC"): {"args": [named]}}


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
        fields["init_images"] = [read_picture(options.init_image, "--init-image")]
        fields["denoising_strength"] = 0.75 if options.denoising_strength is None else options.denoising_strength
        if options.mask is not None:
            fields |= {"mask": read_picture(options.mask, "--mask"), "inpainting_fill": 1, "inpaint_full_res": False}
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
        raise UserError(f"The images cannot be written to {folder.name}. {reason(error)}") from error
    return written


def _show_progress(stop: threading.Event) -> None:
    from standalone.host import shared

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


def failed_methods(processed: Any) -> list[str]:
    """The sentences of methods that the images were made without, as their infotexts tell them."""
    from standalone.host.pasting import parse_generation_parameters

    found: dict[str, None] = {}
    for text in processed.infotexts:
        for key, value in parse_generation_parameters(text).items():
            if key.endswith(" error"):
                found[f"{key.removesuffix(' error')}: {value}"] = None
    return list(found)


def make(options: argparse.Namespace, host: Any) -> tuple[list[Path], list[str]]:
    """Does the job on a started host; the files, and why methods could not run.

    Raises errors that `sentence_for` explains.
    """
    from pydantic import ValidationError

    from standalone.api.errors import BadRequest, field_sentence
    from standalone.api.generation import Generation
    from standalone.api.models import GenerationRequest, ImageToImageRequest, TextToImageRequest
    from standalone.host import shared
    from standalone.host.checkpoints import defaults_of

    fields = request_fields(options, defaults_of(shared.sd_model))
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
    files = write_pictures(processed, options.out.expanduser().resolve())
    if not files:
        raise UserError("No image was generated: the job was stopped.")
    return files, failed_methods(processed)


def run(options: argparse.Namespace) -> int:
    """Loads the checkpoint, makes the images, and says where they are. 1 when a method could not run, too."""
    host = None
    try:
        check(options)
        checkpoint = find_checkpoint(options.checkpoint)
        data_dir = data_folder(options)
        stay_local(data_dir)
        from standalone import host as standalone_host

        host = standalone_host.start(checkpoint=checkpoint, data_dir=data_dir, progress=say)
        files, problems = make(options, host)
        for path in files:
            say(str(path))
    except Exception as error:
        if host is None:
            raise
        from standalone.api.errors import sentence_for

        raise UserError(sentence_for(error)[0]) from None
    finally:
        if host is not None:
            host.close()
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0
