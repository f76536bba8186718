"""Seconds and memory of a cascade: `python run.py bench cascade --out DIR [--quick] [--size tiny|full]`.

The pack's cascade, one part in memory at a time and with all parts in memory, against diffusers' IFPipeline and
IFSuperResolutionPipeline with everything on the device: the same folders with random weights, prompt, steps and
precision, each in a separate process, one after the other; medians over the rounds. A stage's seconds are those of
its steps; planning, loading and the text (in ours with loading the encoder) are separate figures, and
`seconds_whole_...` is the sum. full: IF-I-M with T5-base, and IF-II's layers at IF-II-M's 450 M parameters, 64 and 256
pixels; the default on a GPU. tiny: `shapes-cascade`'s networks. Peak memory is torch's on a GPU; at full size on the
CPU it is the process's resident size. `counted_gib_...` is what the plan counts for the published sizes with T5-XXL in
fp16, on any machine.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from benchmarks.harness.full_size import PeakMemory, apart, environment, settle
from benchmarks.harness.report import write_json
from lib_methods.cascade.folder import Cascade, Part, Stage
from lib_methods.cascade.parts import skeleton
from lib_methods.cascade.plan import plan_cascade
from lib_methods.cascade.run import run_cascade
from lib_methods.cascade.settings import CascadeRequest, CascadeSettings
from lib_methods.checkpoints.folder import Weights
from lib_methods.device import DTYPES, GIB, half_precision
from lib_methods.jobs.files import LOG
from lib_methods.safetensors import TensorHead
from standalone.shapes import cascade as shapes
from standalone.shapes.release_cascade import STAGES, write_stage

WAYS = ("diffusers", "one_at_a_time", "all")
PROMPT = "a photo of large red circles"
_COMMON: dict[str, Any] = {
    "out_channels": 6,
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 64,
    "cross_attention_norm": "group_norm",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
}
T5 = {"base": (768, 2048, 12, 12), "xxl": (4096, 10240, 24, 64)}  # width, inner width, layers, heads
# base width of stage I; of stage II base width and layers, at IF-II-M's and IF-II-L's numbers of parameters
SIZES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "M": (192, 128, (2, 4, 6, 6)),
    "L": (320, 192, (2, 4, 8, 8)),
    "XL": (704, 192, (2, 4, 8, 8)),
}


def unet_config(stage: int, size: str, text: int) -> dict[str, Any]:
    """The UNet of IF's stage 1 or 2, for text embeddings of width `text`."""
    first, second, layers = SIZES[size]
    if stage == 1:
        widths, resnets = [first * times for times in (1, 2, 3, 4)], 1
        own: dict[str, Any] = {"sample_size": 64, "in_channels": 3, "layers_per_block": 3}
    else:
        widths, resnets = [second * times for times in (1, 2, 4, 6)], 3
        own = {
            "sample_size": 256,
            "in_channels": 6,
            "layers_per_block": list(layers),
            "class_embed_type": "timestep",
            "time_embedding_act_fn": "gelu",
            "time_embedding_dim": widths[-1],
            "resnet_skip_time_act": True,
            "resnet_out_scale_factor": 2**0.5,
            "mid_block_scale_factor": 2**0.5,
            "only_cross_attention": True,
        }
    attentions = 4 - resnets
    return {
        **_COMMON,
        **own,
        "block_out_channels": widths,
        "cross_attention_dim": widths[-1],
        "encoder_hid_dim": text,
        "down_block_types": ["ResnetDownsampleBlock2D"] * resnets + ["SimpleCrossAttnDownBlock2D"] * attentions,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * attentions + ["ResnetUpsampleBlock2D"] * resnets,
    }


def text_config(size: str) -> T5Config:
    width, inner, layers, heads = T5[size]
    return T5Config(
        d_model=width, d_ff=inner, num_layers=layers, num_heads=heads, d_kv=64, feed_forward_proj="gated-gelu"
    )


def build(folder: Path, full: bool, device: torch.device) -> None:
    """Both stages with random weights in half precision, as they are published."""
    torch.manual_seed(0)
    for stage, name in enumerate(STAGES, 1):
        with device:
            if full:
                unet: nn.Module = UNet2DConditionModel(**unet_config(stage, "M", T5["base"][0]))
                text: nn.Module | None = T5EncoderModel(text_config("base")) if stage == 1 else None
            else:
                unet, text = shapes.unet(stage), shapes.text_encoder()
        write_stage(stage, folder / name, unet.half(), None if text is None else text.half(), shapes.tokenizer())


def counted() -> dict[str, float]:
    """What stages I and II of each published size take with T5-XXL in fp16, in GiB for one image."""
    found: dict[str, float] = {}
    settings = CascadeSettings(prompt=PROMPT, precision="fp16", text_precision="fp16", memory=1000.0)
    width = T5["xxl"][0]
    text = on_paper("text_encoder", {**text_config("xxl").to_dict(), "model_type": "t5"})
    for size in SIZES:
        unets = [on_paper("unet", unet_config(stage, size, width)) for stage in (1, 2)]
        stages = tuple(Stage(number, unet.folder, unet, {}, {}, text) for number, unet in enumerate(unets, 1))
        sizes = {1: (64, 64), 2: (256, 256)}
        plan = plan_cascade(Cascade(stages), settings, torch.device("cuda"), sizes=sizes, count=1)
        found[f"counted_gib_one_at_a_time_{size}"] = plan.one_at_a_time / GIB
        found[f"counted_gib_all_{size}"] = plan.together / GIB
        found |= {f"millions_stage_{number}_{size}": unet.numbers / 1e6 for number, unet in enumerate(unets, 1)}
    return found


def on_paper(name: str, config: Mapping[str, Any]) -> Part:
    """A part that no file holds, to count what it would take."""
    nothing = Weights((), {}, {})
    with torch.device("meta"):
        shapes_of = skeleton(Part(name, Path("IF"), config, nothing)).state_dict()
    heads = {key: TensorHead("F16", tuple(value.shape), 2 * value.numel()) for key, value in shapes_of.items()}
    heads.pop("encoder.embed_tokens.weight", None)  # T5's table under its other name
    return Part(name, Path("IF"), config, Weights((), heads, {}))


def measure(way: str, folder: Path, steps: tuple[int, int], watch_memory: bool) -> dict[str, Any]:
    """Seconds of each part of a job, and its peak memory where that is watched."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    watched = PeakMemory(device) if watch_memory else None
    settle()
    with watched or nullcontext(), tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        if way == "diffusers":
            seconds = theirs(folder, steps, device)
        else:
            seconds = ours(way, folder, steps, device, Path(scratch))
        settle()
        seconds["whole"] = time.perf_counter() - started
    return {"seconds": seconds, "peak": watched.peak if watched else None}


def theirs(folder: Path, steps: tuple[int, int], device: torch.device) -> dict[str, float]:
    """diffusers' pipelines, both on the device from the beginning."""
    moments = [time.perf_counter()]

    def lap() -> None:
        settle()
        moments.append(time.perf_counter())

    needless: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    options: dict[str, Any] = {**needless, "torch_dtype": DTYPES[half_precision(device)], "local_files_only": True}
    first: Any = IFPipeline.from_pretrained(folder / STAGES[0], **options)
    second: Any = IFSuperResolutionPipeline.from_pretrained(folder / STAGES[1], **options)
    for pipe in (first, second):
        pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
    lap()
    with torch.no_grad():
        positive, negative = first.encode_prompt(PROMPT, device=device)
    texts = {"prompt_embeds": positive, "negative_prompt_embeds": negative, "output_type": "pt"}
    lap()
    small = first(num_inference_steps=steps[0], **texts).images
    lap()
    second(image=small, num_inference_steps=steps[1], **texts)
    lap()
    names = ("loading", "text", "stage_1", "stage_2")
    return {name: after - before for name, before, after in zip(names, moments, moments[1:])}


def ours(way: str, folder: Path, steps: tuple[int, int], device: torch.device, out: Path) -> dict[str, float]:
    """The pack's cascade; its log says when each part began and ended."""
    settings = CascadeSettings(
        prompt=PROMPT,
        count=1,
        seed=0,
        last_stage=2,
        steps=steps[0],
        stage2_steps=steps[1],
        residence=way.replace("_", " "),
        text_precision=half_precision(device),
    )
    request = CascadeRequest((folder,), out, settings=settings)
    begun = time.time()
    run_cascade(request, say=lambda text: None, device=device)
    events = [json.loads(line) for line in (request.folder / LOG).read_text("utf-8").splitlines()]
    found = {"planning": events[0]["time"] - begun, "loading": 0.0, "text": 0.0}
    for event in events:
        if event["event"] == "phase":
            if event["done"]:
                found["text" if "text" in event["text"] else "loading"] += event["time"] - begun
            begun = event["time"]
        elif event["event"] == "sample":
            found[f"stage_{event['step']}"] = event["time"] - begun
    return found


def figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Medians by part and way, and each of our ways over diffusers'."""
    found: dict[str, float] = {}
    medians = {
        way: {name: statistics.median(run["seconds"][name] for run in done) for name in done[0]["seconds"]}
        for way, done in runs.items()
        if done
    }
    peaks = {
        way: statistics.median(run["peak"] for run in done) for way, done in runs.items() if done and done[0]["peak"]
    }
    for way, seconds in medians.items():
        found |= {f"seconds_{name}_{way}": value for name, value in seconds.items()}
        if way in peaks:
            found[f"peak_gib_{way}"] = peaks[way] / GIB
        if way != "diffusers" and "diffusers" in medians:
            names = ("stage_1", "stage_2", "whole")
            found |= {f"ratio_{name}_{way}": seconds[name] / medians["diffusers"][name] for name in names}
            if way in peaks and "diffusers" in peaks:
                found[f"memory_ratio_{way}"] = peaks[way] / peaks["diffusers"]
    return found


def main(out: Path, quick: bool, size: str | None = None) -> int:
    """Write bench.json into `out`; 0 when done, 1 when a way failed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = (size or ("full" if device.type == "cuda" else "tiny")) == "full"
    if not full:
        print("These are tiny networks, which say little about seconds. Measure with --size full, or on a GPU.")
    steps = (4, 2) if quick else (50, 25) if device.type == "cuda" else (4, 2) if full else (20, 10)
    watch_memory = full or device.type == "cuda"
    once = counted()
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        print(f"Building stages of {'IF-M' if full else 'shapes-cascade'}'s size with random weights ...", flush=True)
        build(folder, full, device)
        for turn in range(1 if quick or device.type == "cpu" else 3):
            for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
                report = out / f"{way}.json"
                options = [way, name, str(steps[0]), str(steps[1]), "memory" if watch_memory else ""]
                found = apart("benchmarks.bench_cascade", options, report)
                if found is None:
                    print(f"'{way}' failed, probably because memory ran out.", file=sys.stderr)
                    return 1
                runs[way].append(found)
                told = ", ".join(f"{part} {value:.2f} s" for part, value in found["seconds"].items())
                peak = f", {found['peak'] / GIB:.2f} GiB" if found["peak"] else ""
                print(f"  round {turn + 1}, {way}: {told}{peak}", flush=True)
                dtype = DTYPES[half_precision(device)]
                more = {"size": "full" if full else "tiny", "steps": steps, "rounds": len(runs[way])}
                write_json(out / "bench.json", {**figures(runs), **once}, environment(dtype, **more))
    print(f"Written to {out.name}: bench.json.")
    return 0


if __name__ == "__main__":
    way_, folder_, steps_1, steps_2, memory_, report_ = sys.argv[1:]
    result = measure(way_, Path(folder_), (int(steps_1), int(steps_2)), memory_ == "memory")
    Path(report_).write_text(json.dumps(result), encoding="utf-8")
