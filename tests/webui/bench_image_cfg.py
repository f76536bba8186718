"""The real WebUI's own way to edit an image and this pack's, timed in turn: `python -m tests.webui.bench_image_cfg
CHECKPOINT`, with SD_WEBUI_DIR as for the tests. CHECKPOINT has 8 input channels, and its yaml beside it."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

from .client import JSON
from .jobs import picture
from .server import PACK_NAME, REPO, Installation, WebUI, serving

ROUNDS = 5
SCALE = 1.5
JOB: JSON = {
    "prompt": "make it red",
    "negative_prompt": "",
    "seed": 1,
    "steps": 12,
    "sampler_name": "Euler",
    "cfg_scale": 5.0,
    "width": 256,
    "height": 256,
    "batch_size": 4,
    "init_images": [picture("green")],
    "denoising_strength": 1.0,
}
OWN: JSON = {"image_cfg_scale": SCALE}
OURS: JSON = {"alwayson_scripts": {"InstructPix2Pix": {"args": [{"image_scale": SCALE}]}}}


def seconds(server: WebUI, fields: JSON) -> float:
    """How long a job takes."""
    started = time.perf_counter()
    server.client.post("/sdapi/v1/img2img", {**JOB, **fields})
    return time.perf_counter() - started


def main(checkpoint: Path) -> None:
    """Print the ratio of every round, and their median."""
    installation = dataclasses.replace(Installation.of(), checkpoint=checkpoint.resolve())
    with tempfile.TemporaryDirectory() as folder:
        with serving(installation, Path(folder), {PACK_NAME: REPO}) as server:
            seconds(server, OWN)  # warm-up
            ratios = []
            for turn in range(ROUNDS):
                own = seconds(server, OWN)
                ratios.append(seconds(server, OURS) / own)
                print(f"round {turn + 1}: {own:.2f} s its own way, this pack's {ratios[-1]:.3f} times that", flush=True)
            print(f"median: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
