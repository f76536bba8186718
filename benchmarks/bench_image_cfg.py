"""What two guidance scales cost on a full-size UNet: `python run.py bench image_cfg --out DIR [--quick]
[--size sd15|sdxl]`.

The standalone host runs with a UNet of InstructPix2Pix's geometry (SD1.5's with 8 input channels; random weights, and
the context width of `shapes`, whose text encoder and VAE are used) at 512x512 (`--quick`: 256x256). What is timed are
the host's denoiser calls with everything that stands in front of them. Every figure is a ratio to plain sampling,
measured in turn in the same run; the median of the rounds counts. bench.json is written after every round.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.full_size import PIXELS, Rounds, Watch, environment, put_full_size
from benchmarks.harness.studio import INSTRUCT_CHECKPOINT, Studio, as_request, studio
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


class Bench:
    """Jobs of one denoiser call each on one host."""

    def __init__(self, maker: Studio, size: int) -> None:
        self.maker, self.size = maker, size
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        self.picture, self.image = as_request(noise), Image.fromarray(noise)

    def run(self, request: dict[str, Any] | None, **fields: Any) -> Watch:
        """A job with the method as requested."""
        scripts = None if request is None else {CONTROLS.title: request}
        with Watch() as watch:
            self.maker.make(["make it red"], 1, scripts, self.size, **{"steps": 1, "cfg_scale": TEXT, **fields})
        return watch

    def in_txt2img(self, form: str) -> Watch:
        request = FORMS[form]
        return self.run(None if request is None else {"image": self.picture, **request})


def main(out: Path, quick: bool, size: str = "sd15") -> int:
    """Write bench.json into `out`; 0 when done."""
    pixels, count = (PIXELS[size] // 2, 2) if quick else (PIXELS[size], 3)
    rounds = Rounds(out)
    with studio(INSTRUCT_CHECKPOINT) as maker:
        model = maker.host.model
        put_full_size(model, size, channels=8)
        bench = Bench(maker, pixels)
        bench.in_txt2img("plain")  # warm-up
        for turn in range(count):
            forms = list(FORMS) if turn % 2 == 0 else list(reversed(FORMS))
            found = {form: bench.in_txt2img(form) for form in forms}
            plain = found["plain"].seconds
            figures = {f"ratio_{form}": watch.seconds / plain for form, watch in found.items() if form != "plain"}
            # the host's own way with three rows, and this pack's at the same settings
            fields: dict[str, Any] = {"init_images": [bench.image], "denoising_strength": 1.0}
            own = bench.run(None, image_cfg_scale=IMAGE, **fields)
            figures["ratio_over_hosts_own"] = bench.run({"image_scale": IMAGE}, **fields).seconds / own.seconds
            rows = {form: watch.sampling for form, watch in {**found, "hosts_own": own}.items()}
            rounds.once = {**{f"rows_{form}": number for form, number in rows.items()}, "wanted_full": WANTED_FULL}
            settings = environment(model.dtype, size=pixels, unet=size, batch=1)
            rounds.add(f"round {turn + 1}", {**figures, "seconds_plain": plain}, settings)
    print(f"Written to {out.name}: bench.json.")
    return 0
