"""What a training step costs: `python run.py bench dreambooth --out DIR [--quick]`.

The pack's trainer against a plain loop written as diffusers' example has it (see `plain`), at SD1.5's size
with random weights, 512x512, a photo and a class image each step (`--quick`: the same layers at three tenths of the
width, 256x256, where the gains have the same direction and are smaller). The loops take turns, each in its own process
so that one's memory does not count for the other; ours has a real training run's environment.
The figures are medians over the rounds, written after each.
`speedup`: the plain loop's seconds a step over ours; without a GPU `speedup_of_cpu_seconds` is the same of the
processes' own seconds, which other programs on the machine disturb less. `memory_ratio`: our peak over the plain
loop's; on a GPU torch's count, elsewhere the process's resident size. `counted_gib`: what the plan expected at full
size. VAE and text encoder run once for each image in ours, before the training: `speedup_whole` has that in it, for
800 steps with 4 photos and 100 class images.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.harness.full_size import PeakMemory, apart, environment, full_unet, settle
from benchmarks.harness.report import write_json
from lib_methods.checkpoints.layout import clip_shapes, unet_shapes
from lib_methods.device import CPU, DTYPES, GIB, half_precision, release_memory
from lib_methods.dreambooth.model.base import ModelSizes
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TextEmbedding
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.batches import Example, TrainingData
from lib_methods.dreambooth.training.plan import plan_training
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.jobs.log import Report
from standalone.verbs.train_dreambooth import ENVIRONMENT

STEPS, PICTURES = 800, 104
LOOPS = ("plain", "full", "lora")
MEMORY = 8 * GIB  # what the plan of the pack's own loops must fit into
_CPU_INFO = Path("/proc/cpuinfo")


def half_of(device: torch.device) -> str:
    """What the device computes quickly in; some CPUs have instructions for bfloat16."""
    if device.type == "cpu" and _CPU_INFO.exists():
        words = set(_CPU_INFO.read_text(encoding="utf-8").split())
        return "bf16" if words & {"avx512_bf16", "amx_bf16"} else "fp32"
    return half_precision(device)


class Stage:
    """SD1.5 with random weights, or the same with narrower layers, as what `Trainer` wants of a model."""

    name, sha256, family, parameterization = "bench", "0" * 64, "sd1", "eps"
    zero_terminal_snr = False
    pixels_per_latent, latent_channels = 8, 4

    def __init__(self, device: torch.device, quick: bool) -> None:
        torch.manual_seed(0)
        self.device, self.resolution = device, 256 if quick else 512
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device="cpu") ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0).float()
        text, unet, first = (256, 96, 32) if quick else (768, 320, 128)
        self.unet: Any = full_unet(device, torch.float32, width=unet, cross_attention_dim=text)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            block_out_channels=(first, 2 * first, 4 * first, 4 * first),
            layers_per_block=2,
        )
        self.vae: Any = nn.Module.to(vae, device)
        config = CLIPTextConfig(
            hidden_size=text, intermediate_size=4 * text, num_hidden_layers=12, num_attention_heads=text // 64
        )
        self.encoders: list[nn.Module] = [CLIPTextModel(config).to(device)]

    def ids(self, count: int) -> Tensor:
        return (torch.arange(77, device=self.device) * 300).repeat(count, 1)

    def pictures(self, count: int) -> Tensor:
        return torch.rand(count, 3, self.resolution, self.resolution, device=self.device) * 2 - 1

    def embed(self, texts: Sequence[str]) -> TextEmbedding:
        return TextEmbedding(self.encoders[0](self.ids(len(texts)))[0])

    def predict(self, latents: Tensor, timesteps: Tensor, text: TextEmbedding, sizes: Tensor | None = None) -> Tensor:
        weight = next(self.unet.parameters())
        return self.unet(latents.to(weight), timesteps, text.hidden.to(weight), return_dict=False)[0].to(latents.dtype)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.vae.encode(pixels.to(next(self.vae.parameters()))).latent_dist
        factor = self.vae.config.scaling_factor
        return found.mean * factor, found.std * factor


def full_sizes() -> ModelSizes:
    """Those of SD1.5, so that the narrower one is trained in the same way."""
    text = clip_shapes(vocab=49408, positions=77, hidden=768, intermediate=3072, layers=12)
    config: Any = full_unet(torch.device("meta"), torch.float32).config
    return ModelSizes.of("sd1", unet_shapes(config), [text], 512)


def plain(stage: Stage, half: str) -> Callable[[], None]:
    """A step as in diffusers' train_dreambooth.py with prior preservation: fp32 weights in the UNet, autocast, AdamW,
    a photo and a class image through VAE and text encoder each time."""
    dtype, device = DTYPES[half], stage.device
    nn.Module.to(stage.vae.requires_grad_(False), dtype=dtype)  # diffusers' own warns without a reason
    stage.encoders[0].requires_grad_(False).to(dtype=dtype)
    unet: Any = stage.unet.train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-6, weight_decay=1e-2)
    scaler = torch.amp.GradScaler(device.type, enabled=half == "fp16")
    alphas = stage.alphas_cumprod.to(device)
    pixels, ids = stage.pictures(2), stage.ids(2)

    def step() -> None:
        latents = stage.vae.encode(pixels.to(dtype)).latent_dist.sample() * stage.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (2,), device=device)
        kept = alphas[timesteps].view(-1, 1, 1, 1).to(latents)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        hidden = stage.encoders[0](ids)[0]
        with torch.autocast(device.type, dtype=dtype if half != "fp32" else torch.bfloat16, enabled=half != "fp32"):
            out = unet(noisy, timesteps, hidden, return_dict=False)[0]
        errors = [nn.functional.mse_loss(a.float(), b.float()) for a, b in zip(out.chunk(2), noise.chunk(2))]
        scaler.scale(errors[0] + 1.0 * errors[1]).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def ours(stage: Stage, half: str, kind: str, folder: Path, found: dict[str, Any]) -> Callable[[], None]:
    """A step of the pack's trainer, as the plan for `MEMORY` has it; what was prepared before is timed."""
    settings = TrainingSettings(
        photos=folder,
        base=folder / "base",
        out=folder,
        name="bench",
        class_noun="dog",
        kind=kind,
        identifier="ohwx",
        steps=1000,
        rate=5e-6,
        text_rate=5e-6,
        prior="images",
        precision=half,
    )
    model: Any = stage
    plan = plan_training(settings, full_sizes(), stage.device, MEMORY)
    found["plan"] = {name: value for name, value in asdict(plan).items() if name not in ("notes", "memory")}
    found["counted"] = sum(plan.memory.values())
    started = time.perf_counter()
    examples = [_example(stage) for _ in range(8)]
    found["seconds_a_picture"] = (time.perf_counter() - started) / len(examples)
    stage.vae.to(CPU)
    nn.Module.to(stage.unet, stage.device, DTYPES[plan.weights])
    if plan.checkpointing:
        stage.unet.enable_gradient_checkpointing()
    release_memory(stage.device)
    lora = LoraSet(model, settings.rank, settings.true_alpha).inject() if kind == "LoRA" else None
    report = Report(folder, lambda text: None, tensorboard=False)
    trainer = Trainer(model, TrainingData(examples[:4], examples[4:]), settings, plan, folder, report, lora=lora)

    def step() -> None:
        trainer.step()
        if stage.device.type == "cpu":
            # with a GPU they would by now be in the other memory, which is not counted
            stage.vae, stage.encoders = nn.Identity(), []

    return step


@torch.no_grad()
def _example(stage: Stage) -> Example:
    mean, std = (part[0].float().cpu() for part in stage.moments(stage.pictures(1)))
    side = float(stage.resolution)
    return Example(mean, std, None, torch.tensor([side, side, 0, 0, side, side]), "a ohwx dog")


def measure(loop: str, quick: bool) -> dict[str, Any]:
    """Seconds of each step and peak memory of a loop, the first step left out of the seconds; without a GPU the
    process's own seconds on the CPU as well, which other programs disturb less."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = half_of(device)
    found: dict[str, Any] = {"loop": loop, "half": half}
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(device, quick)
        kind = "LoRA" if loop == "lora" else "full"
        step = plain(stage, half) if loop == "plain" else ours(stage, half, kind, Path(name), found)
        seconds, busy = [], []
        with PeakMemory(device) as memory:
            for _ in range(1 + (10 if device.type == "cuda" else 2)):
                settle()
                started, started_cpu = time.perf_counter(), time.process_time()
                step()
                settle()
                seconds.append(time.perf_counter() - started)
                busy.append(time.process_time() - started_cpu)
    if device.type == "cpu":
        found["cpu_seconds"] = busy[1:]
    return {**found, "seconds": seconds[1:], "peak": memory.peak}


def main(out: Path, quick: bool) -> int:
    """Write bench.json into `out`; 0 when done, 1 when a loop failed."""
    rounds = 3 if torch.cuda.is_available() else 1
    if quick:
        print("Three tenths of SD1.5's width, at 256x256: expect smaller gains than at full size.", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {loop: [] for loop in LOOPS}
    for turn in range(rounds):
        for loop in LOOPS:
            variables = {} if loop == "plain" else ENVIRONMENT
            options = [loop, "--quick" if quick else ""]
            found = apart("benchmarks.bench_dreambooth", options, out / f"{loop}.json", variables)
            if found is None:
                print(f"The loop '{loop}' failed, most likely for want of memory.", file=sys.stderr)
                return 1
            runs[loop].append(found)
            peak = "" if found["peak"] is None else f", {found['peak'] / GIB:.2f} GiB"
            seconds = statistics.median(found["seconds"])
            print(f"  round {turn + 1}, {loop}: {seconds:.2f} s a step{peak}", flush=True)
            _write(out, runs, quick)
    print(f"Written to {out.name}: bench.json.")
    return 0


def figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The metrics of the loops that were run; ratios only where both sides are there."""
    found: dict[str, float] = {}
    seconds: dict[str, float] = {}
    busy: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for loop, done in runs.items():
        if not done:
            continue
        seconds[loop] = statistics.median(second for one in done for second in one["seconds"])
        found[f"steps_per_second_{loop}"] = 1 / seconds[loop]
        if "cpu_seconds" in done[0]:
            busy[loop] = statistics.median(second for one in done for second in one["cpu_seconds"])
            found[f"cpu_seconds_a_step_{loop}"] = busy[loop]
        if done[0]["peak"] is not None:
            peaks[loop] = statistics.median(one["peak"] for one in done)
            found[f"peak_gib_{loop}"] = peaks[loop] / GIB
        if "counted" in done[0]:
            found[f"counted_gib_{loop}"] = done[0]["counted"] / GIB
    for loop, mark in (("full", ""), ("lora", "_lora")):
        if loop not in seconds or "plain" not in seconds:
            continue
        found[f"speedup{mark}"] = seconds["plain"] / seconds[loop]
        if loop in busy and "plain" in busy:
            found[f"speedup_of_cpu_seconds{mark}"] = busy["plain"] / busy[loop]
        before = PICTURES * statistics.median(one["seconds_a_picture"] for one in runs[loop])
        found[f"speedup_whole{mark}"] = STEPS * seconds["plain"] / (STEPS * seconds[loop] + before)
        if loop in peaks and "plain" in peaks:
            found[f"memory_ratio{mark}"] = peaks[loop] / peaks["plain"]
    return found


def _write(out: Path, runs: dict[str, list[dict[str, Any]]], quick: bool) -> None:
    plans = {loop: done[0]["plan"] for loop, done in runs.items() if done and "plan" in done[0]}
    settings = {
        **environment(torch.float32),
        "dtype": runs["plain"][0]["half"],
        "size": 256 if quick else 512,
        "width": 96 if quick else 320,
        "planned_for_gib": MEMORY / GIB,
        "plans": plans,
        "rounds": len(runs["plain"]),
    }
    write_json(out / "bench.json", figures(runs), settings)


if __name__ == "__main__":
    name, flag, report = sys.argv[1:]
    Path(report).write_text(json.dumps(measure(name, flag == "--quick")), encoding="utf-8")
