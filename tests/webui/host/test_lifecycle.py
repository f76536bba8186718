"""The order in which the hosts call a script, written down by an extension (`probe/scripts/lifecycle_probe.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.webui.client import encode_image
from tests.webui.server import WebUI

BASE = {"prompt": "a red circle", "seed": 3, "width": 64, "height": 64, "sampler_name": "Euler", "cfg_scale": 5}
STEP = ["cfg_denoiser", "cfg_denoised", "cfg_after_cfg"]
START = ["setup", "before_process", "process"]
BATCH = ["before_process_batch", "after_extra_networks_activate", "process_batch", "process_before_every_sampling"]
IMAGE = ["postprocess_image", "postprocess_maskoverlay", "postprocess_image_after_composite"]
DECODED = ["post_sample", "postprocess_batch", "postprocess_batch_list"]


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The calls that the probe wrote to `path`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def traced(server: WebUI, payload: dict[str, Any]) -> list[dict[str, Any]]:
    """Generates with the probe listening; returns its calls."""
    server.trace_path.unlink(missing_ok=True)
    server.client.generate(payload)
    return read_trace(server.trace_path)


def hooks(trace: list[dict[str, Any]]) -> list[str]:
    """Names of the calls, in order."""
    return [entry["hook"] for entry in trace]


def test_two_batches_of_two(without_pack: WebUI) -> None:
    trace = traced(without_pack, {**BASE, "steps": 2, "batch_size": 2, "n_iter": 2})
    assert hooks(trace) == [*START, *([*BATCH, *STEP, *STEP, *DECODED, *IMAGE, *IMAGE] * 2), "postprocess"]
    denoiser = [entry["kwargs"] for entry in trace if entry["hook"] == "cfg_denoiser"]
    assert [call["x"] for call in denoiser] == [[4, 4, 8, 8]] * 4, "two cond rows, then two uncond rows"
    assert [call["sampling_step"] for call in denoiser] == [0, 0] * 2, "the step lags by one"
    assert all(entry["args"] == [True, 7] for entry in trace if not entry["hook"].startswith("cfg_"))


def test_hires_fix_samples_twice_within_a_batch(without_pack: WebUI) -> None:
    hires = {
        "enable_hr": True,
        "hr_scale": 2,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.5,
        "hr_second_pass_steps": 2,
    }
    trace = traced(without_pack, {**BASE, "steps": 2, **hires})
    samplings = [*BATCH, *STEP, *STEP, "after_extra_networks_activate", "before_hr", BATCH[-1], *STEP, *STEP]
    assert hooks(trace) == [*START, *samplings, *DECODED, *IMAGE, "postprocess"]
    sizes = [entry["kwargs"]["x"][-1] for entry in trace if entry["hook"] == "cfg_denoiser"]
    assert sizes == [8, 8, 16, 16]


def test_img2img(without_pack: WebUI) -> None:
    source = encode_image(Image.new("RGB", (64, 64), (200, 30, 30)))
    trace = traced(without_pack, {**BASE, "steps": 4, "denoising_strength": 0.5, "init_images": [source]})
    assert hooks(trace) == [*START, *BATCH, *(STEP * 3), *DECODED, *IMAGE, "postprocess"], (
        "half of four steps, and one more"
    )


@pytest.mark.parametrize("cfg_scale", [1, 5])
def test_and_has_one_row_for_each_part(without_pack: WebUI, cfg_scale: float) -> None:
    trace = traced(
        without_pack, {**BASE, "prompt": "a circle AND a square AND a star", "steps": 1, "cfg_scale": cfg_scale}
    )
    (call,) = [entry["kwargs"] for entry in trace if entry["hook"] == "cfg_denoiser"]
    assert call["x"] == [4, 4, 8, 8], "three cond rows and one uncond row"
    assert call["text_cond"][0] == 3
    assert call["text_uncond"][0] == 1
