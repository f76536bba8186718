"""What two guidance scales cost on a full-size UNet: `python run.py bench image_cfg --out DIR [--quick]`.

The standalone host runs with a UNet of InstructPix2Pix's geometry (SD1.5's with 8 input channels; random weights, and
the context width of `shapes`, whose text encoder and VAE are used) at 512x512 (`--quick`: 256x256). What is timed are
the host's denoiser calls with everything that stands in front of them. Every figure is a ratio to plain sampling,
measured in turn in the same run; the median of the rounds counts. bench.json is written after every round.
"""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from benchmarks.full_size import environment, put_full_size, settle, watching
from benchmarks.report import write_json
from benchmarks.studio import INSTRUCT_CHECKPOINT, Studio, as_request, studio
from lib_methods.image_cfg.settings import CONTROLS

TEXT, IMAGE = 7.5, 1.5
WANTED_FULL = 1.55
FORMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "full": {"image_scale": IMAGE},
    "image_scale_1": {"image_scale": 1.0},
    "equal_scales": {"image_scale": TEXT, "text_scale": TEXT},
    "both_1": {"image_scale": 1.0, "text_scale": 1.0},
}


class Clock:
    """Seconds in the host's denoiser and rows of its UNet, while it is watched."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rows: list[int] = []
        self._started = 0.0

    def watching(self) -> AbstractContextManager[None]:
        from modules.sd_samplers_cfg_denoiser import CFGDenoiser

        def begin(module: torch.nn.Module, inputs: Any) -> None:
            if isinstance(module, CFGDenoiser):
                settle()
                self._started = time.perf_counter()
                self.rows.append(0)
            elif isinstance(module, UNet2DConditionModel):
                self.rows[-1] += len(inputs[0])

        def end(module: torch.nn.Module) -> None:
            if isinstance(module, CFGDenoiser):
                settle()
                self.seconds.append(time.perf_counter() - self._started)

        return watching(begin, end)


class Bench:
    """Jobs of one denoiser call each on one host."""

    def __init__(self, maker: Studio, size: int) -> None:
        self.maker, self.size = maker, size
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        self.picture, self.image = as_request(noise), Image.fromarray(noise)

    def run(self, request: dict[str, Any] | None, **fields: Any) -> tuple[float, int]:
        """Seconds of one denoiser call, and the rows that the UNet ran in it."""
        clock = Clock()
        asked = None if request is None else {CONTROLS.title: request}
        settings = {"steps": 1, "cfg_scale": TEXT, **fields}
        with clock.watching():
            self.maker.make(["make it red"], 1, size=self.size, scripts=asked, **settings)
        return sum(clock.seconds) / len(clock.seconds), clock.rows[-1]

    def in_txt2img(self, form: str) -> tuple[float, int]:
        request = FORMS[form]
        return self.run(None if request is None else {"image": self.picture, **request})

    def in_img2img(self, own: bool) -> tuple[float, int]:
        """The host's own way with three rows, or this pack's at the same settings."""
        fields: dict[str, Any] = {"init_images": [self.image], "denoising_strength": 1.0}
        if own:
            return self.run(None, image_cfg_scale=IMAGE, **fields)
        return self.run({"image_scale": IMAGE}, **fields)


def main(out: Path, quick: bool) -> int:
    """Write bench.json into `out`; 0 when done."""
    collected: dict[str, list[float]] = {}
    rows: dict[str, int] = {}
    size, rounds = (256, 2) if quick else (512, 3)
    with studio(INSTRUCT_CHECKPOINT) as maker:
        model = maker.host.model
        print("Building a UNet of InstructPix2Pix's size with random weights ...", flush=True)
        put_full_size(model, channels=8)
        bench = Bench(maker, size)
        bench.in_txt2img("plain")  # warm-up
        for turn in range(rounds):
            forms = list(FORMS) if turn % 2 == 0 else list(reversed(FORMS))
            found = {form: bench.in_txt2img(form) for form in forms}
            for form, (seconds, count) in found.items():
                rows[f"rows_{form}"] = count
                if form != "plain":
                    collected.setdefault(f"ratio_{form}", []).append(seconds / found["plain"][0])
            collected.setdefault("seconds_plain", []).append(found["plain"][0])
            own, ours = bench.in_img2img(True), bench.in_img2img(False)
            collected.setdefault("ratio_over_hosts_own", []).append(ours[0] / own[0])
            rows["rows_hosts_own"] = own[1]
            line = ", ".join(f"{name} {values[-1]:.2f}" for name, values in collected.items())
            print(f"  round {turn + 1}: {line}", flush=True)
            _write(out, collected, rows, size, model.dtype)
    print(f"Written to {out.name}: bench.json.")
    return 0


def _write(out: Path, collected: dict[str, list[float]], rows: dict[str, int], size: int, dtype: torch.dtype) -> None:
    metrics = {
        **{name: round(statistics.median(values), 3) for name, values in collected.items()},
        **rows,
        "wanted_full": WANTED_FULL,
    }
    settings = {
        **environment(dtype),
        "size": size,
        "batch": 1,
        "rounds": {name: len(values) for name, values in collected.items()},
    }
    write_json(out / "bench.json", metrics, settings)
