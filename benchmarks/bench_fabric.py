"""What FABRIC costs on a full-size UNet: `python run.py bench fabric --out DIR [--quick]
[--size sd15|sdxl]`.

The UNet has SD1.5's geometry with random weights, at 512x512, or SDXL's, at 1024x1024 (`--quick`: half of the side,
batch 1, fewer likes). Every figure
is a ratio to plain sampling measured side by side in the same run: all forms are timed in turn, round after round, and
the median of the rounds' ratios is reported; whole jobs of 20 steps with four likes are timed once. bench.json is
written after every line, so you can stop a long run. On a CUDA device it runs in half precision, elsewhere in fp32.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from benchmarks.harness.full_size import PIXELS, PeakMemory, Rounds, environment, full_unet, settle
from lib_methods.fabric.apply import attach
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.reference import FeatureCache
from lib_methods.fabric.settings import EVERY, ONE, SIX, FabricSettings
from lib_methods.hosts.bare import BareSampling, rows_of

STEPS = 20
JOB_LIKES = 4


class Case:
    """One batch size on one UNet, and how long a denoiser call takes with and without FABRIC."""

    def __init__(self, unet: UNet2DConditionModel, side: int, batch: int) -> None:
        self.unet, self.side, self.batch = unet, side, batch
        parameter = next(unet.parameters())
        self.device = parameter.device
        self.x = torch.randn(2 * batch, 4, side, side).to(parameter)
        self.context = torch.randn(2 * batch, 77, int(unet.config.cross_attention_dim)).to(parameter)
        self.level = 1.0

    def sampling(self) -> BareSampling:
        return BareSampling(self.unet, (self.side, self.side), STEPS)

    def call(self, sampling: BareSampling, level: float) -> float:
        """Seconds for one denoiser call over `batch` cond and `batch` uncond rows."""
        settle()
        started = time.perf_counter()
        sampling.denoise(self.x, self.context, rows_of(self.batch, self.batch), level=level)
        settle()
        return time.perf_counter() - started

    def job(self, sampling: BareSampling) -> float:
        """Seconds for the denoiser calls of a whole job, at the noise levels of the WebUI's default schedule."""
        settle()
        started = time.perf_counter()
        for step, timestep in enumerate(np.linspace(sampling.levels.last, 0, STEPS)):
            rows, level = rows_of(self.batch, self.batch), sampling.levels.sigma(float(timestep))
            sampling.denoise(self.x, self.context, rows, level=level, step=step)
        settle()
        return time.perf_counter() - started

    def jobs(self, detail: str, levels: str) -> tuple[float, float]:
        """Seconds of a job of a first round, and of one like it whose features are in the cache."""
        cache = FeatureCache()
        first, again = (self.job(self.with_likes(JOB_LIKES, detail, levels, cache)) for _ in range(2))
        return first, again

    def with_likes(
        self, count: int, detail: str, levels: str = EVERY, cache: FeatureCache | None = None
    ) -> BareSampling:
        """A sampling with FABRIC attached, `count` likes of noise and an empty cache, if none is given."""
        album = {}
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 256, (512, 512, 3), dtype=np.uint8)
            album[f"{number:064x}"] = Image.fromarray(noise)
        sampling = self.sampling()
        images = tuple(FeedbackImage(name) for name in album)
        settings = FabricSettings(likes=images, detail=detail, cache_limit_mb=8192, reference_levels=levels)
        attach(sampling, settings, album.__getitem__, cache or FeatureCache())
        return sampling

    def ratios(self, count: int, level: float) -> dict[str, float]:
        """Time per call over plain sampling, at the first sight of a noise level and from the cache, at full and half
        detail."""
        alone = self.call(self.sampling(), level)
        found = {}
        for detail, mark in (("full", ""), ("half", "half_")):
            guided = self.with_likes(count, detail)
            found[f"ratio_first_{mark}{count}"] = self.call(guided, level) / alone
            found[f"ratio_cached_{mark}{count}"] = self.call(guided, level) / alone
        return found

    def peak_memory(self, count: int) -> float | None:
        """Peak memory over plain sampling, both counted with the model's weights; None where it cannot be measured."""
        peaks = []
        for sampling in (self.with_likes(count, "full"), self.sampling()):
            with PeakMemory(self.device) as memory:
                self.call(sampling, 1.0)
            if memory.peak is None:
                return None
            peaks.append(memory.peak)
        return peaks[0] / peaks[1]


def main(out: Path, quick: bool, size: str = "sd15") -> int:
    """Write bench.json into `out`; 0 when done."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    print(f"Building a UNet of {size}'s size with random weights ...", flush=True)
    unet = full_unet(device, dtype, size).eval()
    counts, batches, part = ((0, 1, 4), (1,), 2) if quick else ((0, 1, 2, 4, 6), (1, 4), 1)
    side = PIXELS[size] // 8 // part
    rounds = Rounds(out)
    case = Case(unet, side, 1)
    case.call(case.sampling(), 1.0)  # warm-up
    alone = case.job(case.sampling())
    for levels, kind in ((SIX, ""), (ONE, "one_"), (EVERY, "every_step_")):
        for detail, mark in (("full", ""), ("half", "half_")):
            first, cached = case.jobs(detail, levels)
            ending = f"{kind}{mark}{JOB_LIKES}"
            figures = {f"job_first_{ending}": first / alone, f"job_cached_{ending}": cached / alone}
            rounds.add(f"jobs, {levels}, {detail} detail", figures, environment(dtype, size=side * 8, unet=size))
    for turn in range(3):
        for batch in batches:
            case = Case(unet, side, batch)
            mark = "" if batch == 1 else f"_batch{batch}"
            if turn == 0:
                case.call(case.sampling(), 1.0)  # warm-up
                rounds.once[f"seconds_plain{mark}"] = case.call(case.sampling(), 1.0)
            for count in counts:
                figures = {name + mark: value for name, value in case.ratios(count, 1.0 + turn).items()}
                if turn == 0:
                    rounds.once[f"wanted_first_{count}{mark}"] = 1.25 * (2 * batch + count) / (2 * batch)
                    memory = case.peak_memory(count)
                    if memory is not None:
                        rounds.once[f"peak_memory_{count}{mark}"] = memory
                rounds.add(f"round {turn + 1}, batch {batch}", figures, environment(dtype, size=side * 8, unet=size))
    print(f"Written to {out.name}: bench.json.")
    return 0
