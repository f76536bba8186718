"""The pixel cascade: `python run.py evaluate cascade --out DIR [--quick] [--images N]
[--stages DIR [DIR ...]]`.

Thresholds over guidance scales in stage I (Imagen, arXiv 2205.11487, section 2.3), a change of style between the stages
against the same change before them, and what parts take in memory, all with the pack's own engine on `shapes-cascade`,
whose attributes and style a parser reads back. `--text-encoders` compares stage I as trained with T5 and with CLIP.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.evaluate_guidance import burnt
from benchmarks.harness.full_size import PeakMemory
from benchmarks.harness.report import Cell, Report
from benchmarks.harness.studio import Pictures, sheet
from lib_methods.cascade.candidate import to_images, to_pixels
from lib_methods.cascade.folder import read_cascade
from lib_methods.cascade.parts import Parts
from lib_methods.cascade.plan import CascadePlan, plan_cascade
from lib_methods.cascade.run import run_cascade
from lib_methods.cascade.settings import CascadeRequest, CascadeSettings
from lib_methods.cascade.stages import Texts, generators, pixel_stage
from lib_methods.cascade.text import embeddings
from lib_methods.device import LiveBytes
from standalone import ROOT
from standalone.shapes.figures import mean
from standalone.shapes.parser import ParsedPicture, parse
from standalone.shapes.styles import CELL, SIDE, STYLES, paint_aligned, parse_styled, restyle, styled_caption
from standalone.shapes.world import ATTRIBUTES, Scene, random_named, random_scene

FOLDER = ROOT / "models" / "shapes-cascade"
STEPS = {"steps": 25, "stage2_steps": 25}
BATCH, SEED, MIB = 16, 1_000_000, 2**20
THRESHOLDS = ("none", "static", "dynamic")
GUIDANCE = (5, 10, 20, 30)
PHOTO = STYLES[0]


class Maker:
    """The stages of a cascade with their networks loaded, and the figures' settings. out: keeps text embeddings."""

    def __init__(
        self,
        folders: Sequence[Path],
        out: Path,
        steps: dict[str, int],
        device: torch.device | None = None,
        precision: str = "auto",
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.folders, self.out = tuple(folders), out
        self.fixed = {**steps, "precision": precision, "text_precision": precision}
        self.cascade, self.parts = read_cascade(folders), Parts(keep_all=True)
        self.sizes = {stage.number: (stage.side, stage.side) for stage in self.cascade.stages}
        self.plan = self.planned(BATCH)

    def settings(self, **changes: Any) -> CascadeSettings:
        return CascadeSettings(**{"prompt": "photo", "last_stage": 2, "guidance": 5.0, **self.fixed, **changes})

    def planned(self, count: int, **changes: Any) -> CascadePlan:
        return plan_cascade(self.cascade, self.settings(**changes), self.device, sizes=self.sizes, count=count)

    def make(self, number: int, prompts: Sequence[str], small: Pictures | None = None, **changes: Any) -> Pictures:
        """One image of a stage for each prompt, as the engine makes them; seeds count up. small: of stage I."""
        stage, settings = self.cascade.stage(number), self.settings(**changes)
        assert stage is not None
        told = embeddings(self.plan.encoders[1], [*prompts, ""], self.out / "texts", self.parts)
        made: Pictures = []
        with self.parts.use(stage.unet, self.device, self.plan.dtype) as unet:
            for start in range(0, len(prompts), BATCH):
                some = prompts[start : start + BATCH]
                texts = Texts(torch.cat([told[prompt] for prompt in some]), told[""].expand(len(some), -1, -1))
                chance = generators([settings.seed_of(number, SEED + start + i) for i in range(len(some))])
                seen = None if small is None else to_pixels([Image.fromarray(p) for p in small[start : start + BATCH]])
                pixels = pixel_stage(
                    unet, stage, settings, texts, chance, self.sizes[number], small=seen, device=self.device
                )
                made += [np.asarray(image) for image in to_images(pixels)]
        return made


def fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """An image in the size that the parser knows."""
    image = Image.fromarray(picture)
    return picture if image.size == (side, side) else np.asarray(image.resize((side, side), Image.Resampling.BOX))


def read_small(picture: np.ndarray) -> ParsedPicture:
    """The attributes of an image of stage I: fine patterns, which tell styles apart, are not in it."""
    return parse(fitted(picture, SIDE // CELL).repeat(2, 0).repeat(2, 1))


def reduced(picture: np.ndarray) -> np.ndarray:
    """A rendered image as stage I would make it."""
    cells = picture.reshape(SIDE // CELL, CELL, SIDE // CELL, CELL, 3).mean((1, 3))
    return cells.round().astype(np.uint8)


def accuracy(scenes: Sequence[Scene], small: Pictures) -> float:
    """The share of attributes that are found in images of stage I whose prompts name all of them."""
    return mean(list(read_small(p).matches(s, ATTRIBUTES).values()) for s, p in zip(scenes, small))


def kept(candidates: Pictures, pictures: Pictures, styles: Sequence[str]) -> dict[str, float]:
    """style_changed: the share of images in the style that was asked for. content_kept: the share of attributes that
    are read as in the candidates."""
    found = [parse_styled(fitted(picture, SIDE)) for picture in pictures]
    before = [read_small(candidate).attributes for candidate in candidates]
    after = [parsed.picture.attributes for parsed in found]
    return {
        "style_changed": mean(parsed.style == style for parsed, style in zip(found, styles)),
        "content_kept": mean([b[name] == a[name] for name in ATTRIBUTES] for b, a in zip(before, after)),
    }


def threshold(maker: Maker, scenes: Sequence[Scene], kind: str, guidance: int) -> tuple[dict[str, float], Pictures]:
    """The figures of stage I with a threshold at a guidance scale, such as "burnt_static_20", and three images."""
    prompts = [styled_caption(scene, PHOTO) for scene in scenes]
    pictures = maker.make(1, prompts, thresholding=kind, guidance=float(guidance))
    found = {"accuracy": accuracy(scenes, pictures), "burnt": burnt(pictures)}
    return {f"{name}_{kind}_{guidance}": value for name, value in found.items()}, pictures[:3]


def styles(maker: Maker, scenes: Sequence[Scene]) -> tuple[dict[str, float], Pictures]:
    """A photo in another style: asked for in stage II, or in stage I already ("style_first_..."). Prompts name some
    attributes, so that the others are the candidate's. The images are nine photos, each with both changes."""
    rng = np.random.default_rng(7)
    named, asked = [random_named(rng) for _ in scenes], [STYLES[1 + i % (len(STYLES) - 1)] for i in range(len(scenes))]
    photos = [styled_caption(scene, PHOTO, names) for scene, names in zip(scenes, named)]
    styled = [styled_caption(scene, style, names) for scene, style, names in zip(scenes, asked, named)]
    candidates = maker.make(1, photos)
    between = maker.make(2, styled, candidates)
    first = maker.make(2, styled, maker.make(1, styled))
    plain = [paint_aligned(scene, rng) for scene in scenes]
    drawn = kept([reduced(p) for p in plain], [restyle(p, style, rng) for p, style in zip(plain, asked)], asked)
    metrics = kept(candidates, between, asked)
    metrics |= {f"style_first_{name}": value for name, value in kept(candidates, first, asked).items()}
    rows = list(zip(candidates, between, first))[:9]
    examples = [fitted(picture, SIDE) for row in rows for picture in row]
    return {**metrics, **{f"{name}_rendered": value for name, value in drawn.items()}}, examples


def memory(maker: Maker) -> dict[str, float]:
    """MiB for one image: as planned from headers, and measured in a run. On a GPU by torch, elsewhere by adding up the
    tensors that live, as a process's own size says nothing about networks this small."""
    maker.parts.close()
    plan = maker.planned(1)
    found = {"one_at_a_time": plan.one_at_a_time, "all": plan.together, "largest_part": plan.largest.total}
    few = {"steps": 2, "stage2_steps": 2, "count": 1, "seed": 1}
    for name in ("one at a time", "all"):
        settings = maker.settings(**few, residence=name, prompt=f"a photo, {name}")
        request = CascadeRequest(maker.folders, maker.out, f"memory {name}", settings)

        def run(request: CascadeRequest = request) -> None:
            run_cascade(request, say=lambda text: None, device=maker.device)

        found[f"measured_{name.replace(' ', '_')}"] = peak(maker.device, run)
    metrics = {f"memory_{name}": value / MIB for name, value in found.items()}
    ratio = found["measured_one_at_a_time"] / found["largest_part"]
    return {**metrics, "memory_measured_to_largest_part": ratio}


def peak(device: torch.device, action: Callable[[], None]) -> int:
    """The most bytes that an action holds at once."""
    if device.type == "cuda":
        with PeakMemory(device) as watched:
            action()
        return watched.peak or 0
    with LiveBytes() as live:
        action()
    return live.peak


def with_text(
    folder: Path, scenes: Sequence[Scene], scratch: Path, steps: dict[str, int]
) -> tuple[dict[str, Any], Pictures]:
    """What stage I finds with a text encoder. folder: of a training run, with a stage1.pt."""
    from standalone.shapes.release_cascade import export_stage

    kind, trained = export_stage(folder, 1, scratch / folder.name)
    maker = Maker([scratch / folder.name], scratch, steps)
    prompts = [styled_caption(scene, PHOTO) for scene in scenes]
    return {f"text_{kind}": accuracy(scenes, maker.make(1, prompts)), f"text_{kind}_steps": float(trained)}, []


def main(
    out: Path,
    quick: bool,
    images: int,
    stages: Sequence[Path] | None = None,
    text_encoders: Sequence[Path] | None = None,
) -> int:
    """Write report.json, report.md, report.png, thresholds.png and styles.png into `out`; 0 when done."""
    return evaluate(out, images, stages or [FOLDER], text_encoders or [])


def evaluate(
    out: Path, count: int, stages: Sequence[Path], trained: Sequence[Path] = (), steps: dict[str, int] = STEPS
) -> int:
    """As `main`, with `count` images behind each figure. trained: see `with_text`."""
    rng = np.random.default_rng(42)
    scenes = [random_scene(rng) for _ in range(count)]
    drawn = [reduced(paint_aligned(scene, np.random.default_rng(i))) for i, scene in enumerate(scenes)]
    metrics = {"accuracy_rendered": accuracy(scenes, drawn), "burnt_rendered": burnt(drawn)}
    made: dict[tuple[str, int], Pictures] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        maker = Maker(stages, Path(scratch), steps)
        report = Report(
            out,
            "The pixel cascade on shapes-cascade",
            sampler="DDPM",
            steps=steps,
            size=maker.sizes,
            pictures_per_figure=count,
            stages=[stage.folder.name for stage in maker.cascade.stages],
            device=str(maker.device),
        )
        for folder in trained:
            part = partial(with_text, folder, scenes, Path(scratch), steps)
            metrics |= report.part(f"text encoder of {folder.name}", part)[0]
        for kind in THRESHOLDS:
            for g in GUIDANCE:
                found, made[kind, g] = report.part(f"{kind}, guidance {g}", partial(threshold, maker, scenes, kind, g))
                metrics |= found
        changes, examples = report.part("styles", lambda: styles(maker, scenes))
        metrics |= changes | report.part("memory", lambda: (memory(maker), []))[0]
    captions = [kind for _ in range(3) for kind in THRESHOLDS]
    rows = [[made[kind, g][i] for g in GUIDANCE] for i in range(min(3, count)) for kind in THRESHOLDS]
    sheet(rows, captions, [f"guidance {g}" for g in GUIDANCE], scale=4).save(out / "thresholds.png")
    columns = ["candidate", "style in stage II", "style in stage I"]
    rows = [examples[start : start + 3] for start in range(0, len(examples), 3)]
    sheet(rows, STYLES[1:] * 3, columns, scale=1).save(out / "styles.png")
    with report.plot(2, (9, 3.6)) as axes:
        for axis, (name, title) in zip(axes, {"accuracy": "named attributes found", "burnt": "burnt pixels"}.items()):
            for kind in THRESHOLDS:
                axis.plot(GUIDANCE, [metrics[f"{name}_{kind}_{g}"] for g in GUIDANCE], "o-", label=kind)
            axis.axhline(metrics[f"{name}_rendered"], color="grey", linewidth=0.8, label="rendered")
            axis.set(title=title, xlabel="guidance scale", ylim=(0, 1.02 if name == "accuracy" else None))
            axis.legend()
    report.say(f"{count} images behind each figure; DDPM, {steps['steps']} and {steps['stage2_steps']} steps.")
    table: list[list[Cell]] = []
    for name in ("accuracy", "burnt"):
        for kind in THRESHOLDS:
            table.append([f"{name}, {kind}", *(metrics[f"{name}_{kind}_{g}"] for g in GUIDANCE)])
    report.table(["stage I", *(f"guidance {g}" for g in GUIDANCE)], table)
    in_table = {f"{name}_{kind}_{g}" for name in ("accuracy", "burnt") for kind in THRESHOLDS for g in GUIDANCE}
    report.table(["figure", "value"], [(name, value) for name, value in metrics.items() if name not in in_table])
    for file, alt in (("report.png", "curves"), ("thresholds.png", "thresholds"), ("styles.png", "styles")):
        report.show(file, alt)
    return report.write(metrics)
