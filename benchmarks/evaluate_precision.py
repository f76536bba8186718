"""Half precision against fp32: `python run.py evaluate precision --out DIR [--quick] [--images N]`.

The same images of each method twice: in fp32 on the CPU, and in fp16 on the GPU. Without a GPU the second run is on the
pretended accelerator of the tests, which computes in fp16 on the CPU and refuses to mix devices. Differences are in
values from 0 to 255; `same` is the share of attributes that the parser reads alike in both images. The cascade's second
stage gets the same images of its first. DreamBooth: images in fp32 with a LoRA after one step of training in each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import evaluate_cascade as cascade
from benchmarks import evaluate_dreambooth as dreambooth
from benchmarks.harness.report import Report
from benchmarks.harness.studio import (
    CHECKPOINT,
    INSTRUCT_CHECKPOINT,
    SAMPLER,
    STEPS,
    Around,
    Pictures,
    Requests,
    as_request,
    sheet,
    studio,
)
from lib_methods.device import CPU
from standalone.shapes.figures import mean
from standalone.shapes.parser import parse
from standalone.shapes.styles import STYLES, styled_caption
from standalone.shapes.subjects import SUBJECTS
from standalone.shapes.world import ATTRIBUTES, caption, random_scene, render

BATCH = 8
SHOWN = 4


class Machine:
    """A device and its precision. around: a context that every thread needs which uses it."""

    def __init__(self, half: bool) -> None:
        self.precision, self.dtype = ("fp16", torch.float16) if half else ("fp32", torch.float32)
        self.device, self.name = CPU, "cpu"
        self.around: Around = nullcontext
        if half and torch.cuda.is_available():
            self.device, self.name = torch.device("cuda"), torch.cuda.get_device_name()
        elif half:
            from tests.shared import pretend_device as pretended

            self.device, self.name = torch.device(pretended.NAME, 0), "pretended accelerator"
            self.around = pretended.on_this_thread


def jobs(count: int) -> dict[str, tuple[Path, str, dict[str, Any], dict[str, Any]]]:
    """Of each method in the host: checkpoint, title, request, and fields of a job of `count` images."""
    rng = np.random.default_rng(600)
    likes = [as_request(render(random_scene(rng, colour="red"), rng)) for _ in range(2)]
    circles = [render(random_scene(rng, kind="circle"), rng) for _ in range(count)]
    swap = {"source": "circle", "target": "square", "show": False}
    edited = {"init_images": [Image.fromarray(p) for p in circles], "denoising_strength": 0.6, "cfg_scale": 3.0}
    return {
        "plain": (CHECKPOINT, "", {}, {}),
        "FABRIC": (CHECKPOINT, "FABRIC", {"likes": likes}, {}),
        "Guidance": (CHECKPOINT, "Guidance", {}, {"cfg_scale": 15.0}),
        "NAG": (CHECKPOINT, "NAG", {"negative_prompt": "on a white background"}, {}),
        "InstructPix2Pix": (INSTRUCT_CHECKPOINT, "InstructPix2Pix", {"image": [as_request(p) for p in circles]}, {}),
        "pix2pix-zero": (CHECKPOINT, "pix2pix-zero", swap, edited),
    }


def in_the_host(name: str, count: int, machine: Machine) -> Pictures:
    checkpoint, *_ = jobs(0)[name]
    pictures = Pictures()
    with machine.around(), studio(checkpoint, machine.device, machine.dtype, machine.around) as maker:
        for start in range(0, count, BATCH):
            rng, size = np.random.default_rng(610 + start), min(BATCH, count - start)
            scenes = [random_scene(rng) for _ in range(size)]
            _, title, request, fields = jobs(size)[name]
            scripts: Requests | None = {title: request} if title else None
            prompts = [f"make it {s.colour}" if title == "InstructPix2Pix" else caption(s, ATTRIBUTES) for s in scenes]
            pictures += maker.make(prompts, 600_000 + start, scripts, **fields)
    return pictures


def in_the_cascade(number: int, count: int, machine: Machine) -> Pictures:
    """Images of a stage; those of stage 2 are made of rendered ones."""
    rng = np.random.default_rng(620)
    scenes = [random_scene(rng) for _ in range(count)]
    small = [cascade.reduced(cascade.paint_aligned(scene, rng)) for scene in scenes] if number == 2 else None
    prompts = [styled_caption(scene, STYLES[number - 1]) for scene in scenes]
    with machine.around(), tempfile.TemporaryDirectory() as folder:
        maker = cascade.Maker([cascade.FOLDER], Path(folder), cascade.STEPS, machine.device, machine.precision)
        return maker.make(number, prompts, small)


def after_training(count: int, machine: Machine) -> Pictures:
    """Images of a subject with its LoRA after one step."""
    subject = SUBJECTS[0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with machine.around():
            changes = {"precision": machine.precision, "prior": "off"}
            file = dreambooth.train(subject, "lora_", Path(folder), 1, machine.device, **changes)
        return dreambooth.draw_with(file, "lora_", subject, count).plain


def compare(make: Callable[[Machine], Pictures]) -> tuple[dict[str, float], Pictures]:
    """The differences of a method's images, and some of them in pairs."""
    exact, half = make(Machine(half=False)), make(Machine(half=True))
    apart = [np.abs(a.astype(np.int16) - b) for a, b in zip(exact, half, strict=True)]
    small = [cascade.fitted(picture, 64) for picture in (*exact, *half)]
    read = [parse(picture).attributes for picture in small]
    pairs = list(zip(read[: len(exact)], read[len(exact) :]))
    figures = {
        "largest": float(max(difference.max() for difference in apart)),
        "mean": mean(float(difference.mean()) for difference in apart),
        "same": mean([a[name] == b[name] for name in ATTRIBUTES] for a, b in pairs),
    }
    return figures, [
        picture for pair in list(zip(small[: len(exact)], small[len(exact) :]))[:SHOWN] for picture in pair
    ]


def main(out: Path, quick: bool, images: int) -> int:
    """Write report.json, report.md and examples.png into `out`; 0 when done."""
    half = Machine(half=True)
    report = Report(out, "Half precision against fp32", pictures_per_figure=images, device=half.name, dtype="fp16")
    makers: dict[str, Callable[[Machine], Pictures]] = {name: partial(in_the_host, name, images) for name in jobs(0)}
    makers |= {f"cascade stage {number}": partial(in_the_cascade, number, images) for number in (1, 2)}
    makers["DreamBooth LoRA"] = partial(after_training, images)
    metrics, shown = {}, []
    for name, make in makers.items():
        metrics[name], examples = report.part(name, partial(compare, make))
        shown.append(examples)
    sheet(shown, list(makers), ["fp32", "fp16"] * min(SHOWN, images)).save(out / "examples.png")
    report.say(f"{images} images of each method; {SAMPLER}, {STEPS} steps. fp16 on: {half.name}.")
    report.table(
        ["difference, of 255", "largest", "mean", "attributes read alike"],
        [[n, *m.values()] for n, m in metrics.items()],
    )
    report.show("examples.png", "examples")
    return report.write(metrics)
