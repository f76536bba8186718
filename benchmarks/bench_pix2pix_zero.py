"""What pix2pix-zero costs: `python run.py bench pix2pix_zero --out DIR [--quick]`.

Forwards are counted on `shapes` over whole samplings: a forward is one row of one image in one run of the UNet, also of
a run that is left early, whose saving the times show. What the gradient's way back costs is counted by itself.

Times and memory are those of an img2img job of one step on a UNet of SD1.5's size with random weights at 512x512
(`--quick`: 128x128), in ratio to the same job without the method, measured in turn in the same run; the median of the
rounds counts. From the inversion's first run of the UNet to the last of the sampler; the autoencoder is not counted.
bench.json is written after every round.
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

from benchmarks.full_size import PeakMemory, environment, put_full_size, settle, watching
from benchmarks.report import write_json
from benchmarks.studio import CFG, STEPS, Studio, studio
from lib_methods.pix2pix_zero.apply import CACHE
from lib_methods.pix2pix_zero.settings import CONTROLS

FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_checkpointing": {"save_memory": False},
    "soft_blend": {"guidance": "soft blend"},
    "no_guidance": {"guidance": "off"},
}
COUNTED: dict[str, dict[str, Any]] = {
    **FORMS,
    "ddim_inversion": {"inversion": "ddim"},
    "direct_inversion": {"inversion": "direct"},
    "half_of_the_steps": {"end": 0.5},
    "direct_half_of_the_steps": {"inversion": "direct", "end": 0.5},
}
WANTED_FORWARDS, WANTED_MEMORY = 5, 3
PROMPT = "small red circles on the left on a white background"


class Watch:
    """The UNet's runs of a job, and the time from the first of them to the last denoiser call's end.

    inversion: rows before the sampler starts. sampling: rows after that. backwards: those of them that gradients are
    taken through.
    """

    def __init__(self) -> None:
        self.inversion = self.sampling = self.backwards = 0
        self.seconds = 0.0

    def watching(self) -> AbstractContextManager[None]:
        from modules.sd_samplers_cfg_denoiser import CFGDenoiser

        started: float | None = None
        is_sampling = False

        def begin(module: torch.nn.Module, inputs: Any) -> None:
            nonlocal started, is_sampling
            if not isinstance(module, CFGDenoiser | UNet2DConditionModel):
                return
            if started is None:
                settle()
                started = time.perf_counter()
            if isinstance(module, CFGDenoiser):
                is_sampling = True
            elif not is_sampling:
                self.inversion += len(inputs[0])
            else:
                self.sampling += len(inputs[0])
                self.backwards += len(inputs[0]) if torch.is_grad_enabled() else 0

        def end(module: torch.nn.Module) -> None:
            if isinstance(module, CFGDenoiser) and started is not None:
                settle()
                self.seconds = time.perf_counter() - started

        return watching(begin, end)


class Bench:
    """Jobs of img2img on one host, all of the same picture."""

    def __init__(self, maker: Studio, size: int) -> None:
        self.maker, self.size = maker, size
        self.image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))

    def run(self, request: dict[str, Any] | None, steps: int = 1) -> Watch:
        """One job, whose inversion is not known from an earlier one."""
        CACHE.clear()
        asked = None
        if request is not None:
            asked = {CONTROLS.title: {"source": "circle", "target": "square", "show": False, **request}}
        watch = Watch()
        fields: dict[str, Any] = {"init_images": [self.image], "denoising_strength": 1.0, "cfg_scale": CFG}
        with watch.watching():
            self.maker.make([PROMPT], 1, size=self.size, scripts=asked, steps=steps, **fields)
        return watch

    def forwards(self, steps: int) -> dict[str, float]:
        """Rows of the UNet for a step of an edit, and what of them the inversion takes, which is kept for the next
        edit of the same picture; and the gradients taken."""
        found: dict[str, float] = {}
        for form, request in COUNTED.items():
            watch = self.run(request, steps)
            mark = "" if form == "default" else f"_{form}"
            found[f"forwards_per_step{mark}"] = (watch.inversion + watch.sampling) / steps
            found[f"forwards_per_step_inversion{mark}"] = watch.inversion / steps
            found[f"backwards_per_step{mark}"] = watch.backwards / steps
        found["forwards_per_step_plain"] = self.run(None, steps).sampling / steps
        return found

    def peak_memory(self, request: dict[str, Any] | None, device: torch.device) -> int | None:
        """Bytes held at most during a job, with the model's weights."""
        with PeakMemory(device) as memory:
            self.run(request)
        return memory.peak


def main(out: Path, quick: bool) -> int:
    """Write bench.json into `out`; 0 when done."""
    size, rounds = (128, 1) if quick else (512, 3)
    collected: dict[str, list[float]] = {}
    with studio() as maker:
        steps = 5 if quick else STEPS
        fixed: dict[str, float] = Bench(maker, 64).forwards(steps)
        print("  " + ", ".join(f"{name} {value:.2f}" for name, value in fixed.items()), flush=True)
        model = maker.host.model
        print("Building a UNet of SD1.5's size with random weights ...", flush=True)
        put_full_size(model)
        bench = Bench(maker, size)
        bench.run(FORMS["default"])  # warm-up
        fixed.update(_memory(bench, model.device))
        for turn in range(rounds):
            forms = list(FORMS) if turn % 2 == 0 else list(reversed(FORMS))
            plain = bench.run(None).seconds
            collected.setdefault("seconds_plain", []).append(plain)
            for form in forms:
                seconds = bench.run(FORMS[form]).seconds
                collected.setdefault(f"ratio_{form}", []).append(seconds / plain)
            line = ", ".join(f"{name} {values[-1]:.2f}" for name, values in collected.items())
            print(f"  round {turn + 1}: {line}", flush=True)
            _write(out, collected, fixed, size, steps, model.dtype)
    print(f"Written to {out.name}: bench.json.")
    return 0


def _memory(bench: Bench, device: torch.device) -> dict[str, float]:
    """Peak memory of every form over plain sampling's; nothing where it cannot be measured."""
    plain = bench.peak_memory(None, device)
    if not plain:
        return {}
    found = {"peak_bytes_plain": float(plain)}
    for form, request in FORMS.items():
        peak = bench.peak_memory(request, device)
        if peak is not None:
            found[f"peak_memory_{form}"] = peak / plain
    print("  " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    return found


def _write(
    out: Path, collected: dict[str, list[float]], fixed: dict[str, float], size: int, steps: int, dtype: torch.dtype
) -> None:
    metrics = {
        **{name: round(value, 3) for name, value in fixed.items()},
        **{name: round(statistics.median(values), 3) for name, values in collected.items()},
        "wanted_forwards_per_step": WANTED_FORWARDS,
        "wanted_peak_memory": WANTED_MEMORY,
    }
    settings = {
        **environment(dtype),
        "size": size,
        "steps_counted": steps,
        "steps_timed": 1,
        "cfg_scale": CFG,
        "rounds": {name: len(values) for name, values in collected.items()},
    }
    write_json(out / "bench.json", metrics, settings)
