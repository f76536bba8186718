"""What Guidance costs on a full-size UNet: `python run.py bench guidance --out DIR [--quick]
[--size sd15|sdxl]`.

The standalone host runs with a UNet of SD1.5's geometry (random weights, and the context width of `shapes`, whose text
encoder and VAE are used). What is timed are whole jobs of 20 steps at 512x512 (`--quick`: 8 steps at 256x256). Every
figure is a ratio to plain sampling at the same CFG scale, measured in turn in the same run; the median of the rounds
counts. bench.json is written after every round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness.full_size import PIXELS, Rounds, Watch, environment, put_full_size
from benchmarks.harness.studio import Studio, studio
from lib_methods.guiders.settings import CONTROLS, OFF, SEG

CFG = 15.0
_PERTURBED: dict[str, Any] = {"method": OFF, "highest_sigma": 0, "lowest_sigma": 0, "perturbation_scale": 3}
FORMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "default": {},
    "interval_to_1": {"outside_scale": 1},
    "pag": _PERTURBED,
    "seg": {**_PERTURBED, "perturbation": SEG},
}


def job(maker: Studio, form: str, size: int, steps: int) -> Watch:
    """A job of one image with Guidance in this form."""
    request = FORMS[form]
    scripts = None if request is None else {CONTROLS.title: request}
    with Watch() as watch:
        maker.make(["a red circle"], 1, scripts, size, steps=steps, cfg_scale=CFG)
    return watch


def main(out: Path, quick: bool, size: str = "sd15") -> int:
    """Write bench.json into `out`; 0 when done."""
    pixels, steps, count = (PIXELS[size] // 2, 8, 1) if quick else (PIXELS[size], 20, 3)
    rounds = Rounds(out)
    with studio() as maker:
        put_full_size(maker.host.model, size)
        job(maker, "plain", pixels, 1)  # warm-up
        for turn in range(count):
            forms = list(FORMS) if turn % 2 == 0 else list(reversed(FORMS))
            found = {form: job(maker, form, pixels, steps) for form in forms}
            plain = found["plain"].seconds
            rounds.once = {f"rows_{form}": watch.sampling for form, watch in found.items()}
            figures = {f"job_{form}": watch.seconds / plain for form, watch in found.items() if form != "plain"}
            settings = environment(maker.host.model.dtype, size=pixels, unet=size, steps=steps, batch=1)
            rounds.add(f"round {turn + 1}", {**figures, "seconds_plain": plain}, settings)
    print(f"Written to {out.name}: bench.json.")
    return 0
