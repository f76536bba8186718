"""What pix2pix-zero costs: `python run.py bench pix2pix_zero --out DIR [--quick]
[--size sd15|sdxl]`.

Forwards are counted on `shapes` over whole samplings: a forward is one row of one image in one run of the UNet, also of
a run that is left early, whose saving the times show. What the gradient's way back costs is counted by itself.

Times and memory are those of an img2img job of one step on a UNet of SD1.5's size with random weights at 512x512
(`--quick`: 128x128), in ratio to the same job without the method, measured in turn in the same run; the median of the
rounds counts. From the inversion's first run of the UNet to the last of the sampler; the autoencoder is not counted.
bench.json is written after every round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness.full_size import PIXELS, PeakMemory, Rounds, Watch, environment, put_full_size
from benchmarks.harness.report import line_of
from benchmarks.harness.studio import CFG, STEPS, Studio, studio
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


class Bench:
    """Jobs of img2img on one host, all of the same image."""

    def __init__(self, maker: Studio, size: int) -> None:
        self.maker, self.size = maker, size
        self.image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))

    def run(self, request: dict[str, Any] | None, steps: int = 1) -> Watch:
        """One job, whose inversion is not known from an earlier one."""
        CACHE.clear()
        scripts = None
        if request is not None:
            scripts = {CONTROLS.title: {"source": "circle", "target": "square", "show": False, **request}}
        fields: dict[str, Any] = {"init_images": [self.image], "denoising_strength": 1.0, "cfg_scale": CFG}
        with Watch() as watch:
            self.maker.make([PROMPT], 1, scripts, self.size, steps=steps, **fields)
        return watch

    def forwards(self, steps: int) -> dict[str, float]:
        """Rows of the UNet for a step of an edit, and what of them the inversion takes, which is kept for the next
        edit of the same image; and the gradients taken."""
        found: dict[str, float] = {}
        for form, request in COUNTED.items():
            watch = self.run(request, steps)
            mark = "" if form == "default" else f"_{form}"
            found[f"forwards_per_step{mark}"] = (watch.inversion + watch.sampling) / steps
            found[f"forwards_per_step_inversion{mark}"] = watch.inversion / steps
            found[f"backwards_per_step{mark}"] = watch.backwards / steps
        return {**found, "forwards_per_step_plain": self.run(None, steps).sampling / steps}

    def memory(self, device: torch.device) -> dict[str, float]:
        """Peak memory of every form over plain sampling's, with the model's weights; nothing where it cannot be
        measured."""
        found: dict[str, float] = {}
        for form, request in {"plain": None, **FORMS}.items():
            with PeakMemory(device) as memory:
                self.run(request)
            if not memory.peak:
                return {}
            if form == "plain":
                found["peak_bytes_plain"] = memory.peak
            else:
                found[f"peak_memory_{form}"] = memory.peak / found["peak_bytes_plain"]
        return found


def main(out: Path, quick: bool, size: str = "sd15") -> int:
    """Write bench.json into `out`; 0 when done."""
    pixels, count, steps = (PIXELS[size] // 4, 1, 5) if quick else (PIXELS[size], 3, STEPS)
    rounds = Rounds(out)
    with studio() as maker:
        rounds.once = Bench(maker, 64).forwards(steps)
        print(f"  {line_of(rounds.once)}", flush=True)
        model = maker.host.model
        put_full_size(model, size)
        bench = Bench(maker, pixels)
        bench.run(FORMS["default"])  # warm-up
        memory = bench.memory(model.device)
        print(f"  {line_of(memory)}", flush=True)
        rounds.once |= {**memory, "wanted_forwards_per_step": WANTED_FORWARDS, "wanted_peak_memory": WANTED_MEMORY}
        settings = environment(model.dtype, size=pixels, unet=size, steps_counted=steps, steps_timed=1, cfg_scale=CFG)
        for turn in range(count):
            forms = list(FORMS) if turn % 2 == 0 else list(reversed(FORMS))
            plain = bench.run(None).seconds
            figures = {f"ratio_{form}": bench.run(FORMS[form]).seconds / plain for form in forms}
            rounds.add(f"round {turn + 1}", {"seconds_plain": plain, **figures}, settings)
    print(f"Written to {out.name}: bench.json.")
    return 0
