"""Write `shapes-cascade` as it ships: `python -m standalone.shapes.release_cascade --from TRAINING_DIR [--out DIR]`.

Two folders in diffusers' layout, in half precision, as IFPipeline and IFSuperResolutionPipeline load them; and the
model card, with what the parser finds in images that both stages made. Without `--from`, the stages that are in the
folder are measured again, and the card gets the new figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline
from torch import Tensor

from standalone.engine.text import clip_tokenizer
from standalone.shapes import cascade, train, train_cascade
from standalone.shapes.release import millions, read_log
from standalone.shapes.styles import CELL, SIDE, STYLES, ParsedStyle, parse_styled, render_styled, styled_caption
from standalone.shapes.world import ATTRIBUTES, VALUES, Scene, random_scene

FOLDER = Path(__file__).resolve().parents[2] / "models" / "shapes-cascade"
STAGES = ("stage-1", "stage-2")
GUIDANCE, STEPS, NOISE_LEVEL = (5.0, 4.0), (50, 25), 250
_BATCH = 16
_NONE: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "watermarker": None}


def export(training: Path, out: Path) -> None:
    """Write both stages, with the averaged weights, as folders `stage-1` and `stage-2` of `out`."""
    for stage, name in enumerate(STAGES, 1):
        export_stage(training, stage, out / name)


def export_stage(training: Path, stage: int, folder: Path) -> tuple[str, int]:
    """Write stage 1 or 2 as a folder; the kind of its text encoder, and how many steps it was trained for."""
    state = torch.load(training / f"stage{stage}.pt", weights_only=True)
    kind: str = state.get("text", "t5")
    unet, text = cascade.unet(stage), cascade.text_encoder(kind)
    for part, module in enumerate((unet, text)):
        module.load_state_dict({k[2:]: v for k, v in state["average"].items() if k.startswith(f"{part}.")})
        module.half()
    write_stage(stage, folder, unet, text, cascade.tokenizer() if kind == "t5" else clip_tokenizer())
    return kind, int(state["step"])


def write_stage(stage: int, folder: Path, unet: Any, text: Any, tokenizer: Any) -> None:
    """Write networks as stage 1, or as stage 2, which has no text encoder."""
    parts: dict[str, Any] = {"unet": unet, "scheduler": cascade.schedule(stage), **_NONE}
    if stage == 1:
        pipe = IFPipeline(tokenizer=tokenizer, text_encoder=text, requires_safety_checker=False, **parts)
    else:
        pipe = IFSuperResolutionPipeline(
            tokenizer=None,
            text_encoder=None,
            image_noising_scheduler=cascade.noising_schedule(),
            requires_safety_checker=False,
            **parts,
        )
    pipe.save_pretrained(folder)
    _name_fast_tokenizer(folder / "model_index.json")


def _name_fast_tokenizer(index: Path) -> None:
    """Before transformers 5, only T5TokenizerFast reads a tokenizer.json."""
    text = index.read_text(encoding="utf-8").replace('"T5Tokenizer"', '"T5TokenizerFast"')
    index.write_text(text, encoding="utf-8")


class Cascade:
    """Both stages as diffusers runs them."""

    def __init__(self, folder: Path) -> None:
        self.first = IFPipeline.from_pretrained(folder / STAGES[0], torch_dtype=torch.float32, **_NONE)
        self.second = IFSuperResolutionPipeline.from_pretrained(folder / STAGES[1], torch_dtype=torch.float32, **_NONE)
        for pipe in (self.first, self.second):
            pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def small(self, prompts: list[str], seed: int, steps: int = STEPS[0]) -> Tensor:
        """Stage I's images in [-1, 1], of shape (prompts, 3, 32, 32)."""
        noise = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        return self.first(
            prompts,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE[0],
            generator=noise,
            clean_caption=False,
            output_type="pt",
        ).images

    @torch.no_grad()
    def large(self, small: Tensor, prompts: list[str], seed: int, steps: int = STEPS[1]) -> list[np.ndarray]:
        """Stage II's images of stage I's: uint8 of shape (128, 128, 3)."""
        noise = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        context, empty = self.first.encode_prompt(prompts)
        made = self.second(
            image=small,
            prompt_embeds=context,
            negative_prompt_embeds=empty,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE[1],
            noise_level=NOISE_LEVEL,
            generator=noise,
            output_type="pt",
        )
        return as_pictures(made.images)


def as_pictures(images: Tensor) -> list[np.ndarray]:
    """Images in [-1, 1] as uint8 of shape (height, width, 3)."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return list(pixels)


def shares(scenes: list[Scene], styles: list[str], found: list[ParsedStyle]) -> dict[str, float]:
    """By attribute and for the style, in how many of the images it was found; `accuracy` is the attributes' mean."""
    hits = [parsed.picture.matches(scene, ATTRIBUTES) for scene, parsed in zip(scenes, found)]
    result = {name: float(np.mean([hit[name] for hit in hits])) for name in ATTRIBUTES}
    result["accuracy"] = float(np.mean(list(result.values())))
    return result | {"style": float(np.mean([p.style == style for p, style in zip(found, styles)]))}


def measure(folder: Path, count: int) -> tuple[dict[str, dict[str, float]], list[list[np.ndarray]]]:
    """What is found in `count` images, an equal number in each style; and rows of examples, one for each style.

    The prompts name all attributes and the style. cascade: of both stages; small: of stage I, attributes alone;
    enlarged: stage II's of small images that were rendered; restyled: where stage I was asked for a photo; rendered: of
    images that no model made.
    """
    rng, cascade_ = np.random.default_rng(42), Cascade(folder)
    scenes = [random_scene(rng) for _ in range(count)]
    styles = [STYLES[i % len(STYLES)] for i in range(count)]
    made: dict[str, list[np.ndarray]] = {name: [] for name in ("cascade", "small", "enlarged", "restyled", "rendered")}
    for start in range(0, count, _BATCH):
        part, names = scenes[start : start + _BATCH], styles[start : start + _BATCH]
        prompts = [styled_caption(scene, style) for scene, style in zip(part, names)]
        photos = [styled_caption(scene, STYLES[0]) for scene in part]
        pictures = [render_styled(scene, style, rng) for scene, style in zip(part, names)]
        small = cascade_.small(prompts, 1_000_000 + start)
        made["rendered"] += pictures
        made["small"] += [picture.repeat(CELL, 0).repeat(CELL, 1) for picture in as_pictures(small)]
        made["cascade"] += cascade_.large(small, prompts, 2_000_000 + start)
        small = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        small = torch.nn.functional.avg_pool2d(small, CELL)
        made["enlarged"] += cascade_.large(small, prompts, 3_000_000 + start)
        small = cascade_.small(photos, 4_000_000 + start)
        made["restyled"] += cascade_.large(small, prompts, 5_000_000 + start)
    figures = {name: shares(scenes, styles, [parse_styled(p) for p in pictures]) for name, pictures in made.items()}
    return figures, [made["cascade"][i :: len(STYLES)][:8] for i in range(len(STYLES))]


def loss_curves(training: Path, target: Path) -> None:
    """Plot the logs of both stages."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for stage, axis in enumerate(axes, 1):
        log = read_log(training / f"stage{stage}_log.jsonl")
        axis.plot([entry["step"] for entry in log], [entry["loss"] for entry in log])
        axis.set(title=f"stage {'I' * stage}: weighted loss", xlabel="step", yscale="log")
    figure.tight_layout()
    figure.savefig(target, dpi=100)
    plt.close(figure)


def write_card(figures: dict[str, dict[str, float]], count: int, training: Path, folder: Path) -> None:
    """Write README.md and its images beside the stages."""
    steps = [int(read_log(training / f"stage{stage}_log.jsonl")[-1]["step"]) for stage in (1, 2)]
    sizes = {"T5 encoder": cascade.text_encoder(), "stage I": cascade.unet(1), "stage II": cascade.unet(2)}
    parts = ", ".join(f"{name} {millions(module):.1f} M" for name, module in sizes.items())
    world = "; ".join(f"{name}: {', '.join(values)}" for name, values in {**VALUES, "style": STYLES}.items())
    lines = [
        "# shapes-cascade",
        "",
        "A pixel cascade in the layout of DeepFloyd IF, small enough to ship and to run anywhere. Stage I generates",
        f"two to five matching shapes at {cascade.SMALL}x{cascade.SMALL}, stage II brings them to {SIDE}x{SIDE}. Made",
        "for measuring: a parser reads attributes and style back.",
        "",
        "![samples](samples.png)",
        "",
        f"- **Parts:** {parts} parameters, in half precision, as two folders that diffusers' `IFPipeline` and",
        "  `IFSuperResolutionPipeline` load. Pass stage I's embeddings to stage II, which has no text encoder.",
        "- **Data:** images rendered and captioned by `standalone/shapes/styles.py`, without end; nothing from",
        f"  anywhere else. {world}.",
        f"- **Training:** stage I {steps[0]} steps of {train_cascade.BATCH[1]} images, stage II {steps[1]} of",
        f"  {train_cascade.BATCH[2]}. T5 learned with stage I for its first {train_cascade.TEXT_STEPS} steps and was",
        f"  frozen then. {train.NO_CAPTION:.0%} without caption, {train_cascade.NO_STYLE:.0%} without style;",
        "  velocity as the target, in stage I weighted by the SNR and with half of a batch in the last",
        f"  {train_cascade.NOISIEST} timesteps; the variational bound at a weight of",
        f"  {train_cascade.VARIANCE_WEIGHT:g} for the variance;",
        "  averaged weights; Muon for the matrices, Adam for the rest. Stage II's small images get noise of level 0 to",
        f"  999; {train_cascade.OTHER_STYLE:.0%} of them show the scene in another style than the caption names.",
        "  `python -m standalone.shapes.train_cascade --out DIR --stage 1`, then `--stage 2`,",
        "  `python -m standalone.shapes.release_cascade --from DIR`.",
        "- **Licence:** MIT.",
        "",
        *figures_lines(figures, count),
        "![loss](loss.png)",
    ]
    first = read_log(training / "stage1_log.jsonl")
    jumps = [str(b["step"]) for a, b in zip(first, first[1:]) if a.get("noisiest") != b.get("noisiest")]
    if jumps:
        lines += [
            "",
            "The recipe changed during training, where the losses jump; the settings above are the final ones.",
            f"Stage I: from steps {' and '.join(jumps)} on, more of each batch is in the noisiest timesteps, and more",
            "captions name everything. Stage II: its first 5,500 steps were weighted by the SNR, too. Both: the",
            "variational bound had a weight of 0.001 until the last few hundred steps, which left too much noise.",
        ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    loss_curves(training, folder / "loss.png")


def figures_lines(figures: dict[str, dict[str, float]], count: int) -> list[str]:
    """The card's section of what was measured."""
    reached = figures["cascade"]
    lines = [
        f"## Found when the prompt names them: attributes {reached['accuracy']:.3f}, style {reached['style']:.3f}",
        "",
        f"{count} images; the prompt names all six attributes and a style. Stage I: {STEPS[0]} steps at guidance",
        f"{GUIDANCE[0]:g}; stage II: {STEPS[1]} steps at guidance {GUIDANCE[1]:g}, noise level {NOISE_LEVEL}.",
        "*Restyled*: stage I was asked for a photo, stage II for the style. *Stage II alone* enlarges small images",
        "that were rendered. *Rendered*: no model, the best that can be reached.",
        "",
        "| | cascade | restyled | stage I | stage II alone | rendered |",
        "|---|---|---|---|---|---|",
    ]
    columns = [figures[name] for name in ("cascade", "restyled", "small", "enlarged", "rendered")]
    for name in (*ATTRIBUTES, "style"):
        cells = ["" if name == "style" and i == 2 else f"{column[name]:.3f}" for i, column in enumerate(columns)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def renew_card(figures: dict[str, dict[str, float]], count: int, folder: Path) -> None:
    """Put new figures into a card that is there."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("## Found"))
    end = lines.index("![loss](loss.png)")
    card.write_text("\n".join([*lines[:start], *figures_lines(figures, count), *lines[end:]]) + "\n", encoding="utf-8")


def main() -> None:
    """Write, measure and describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="training", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    if options.training:
        export(options.training, options.out)
    from benchmarks.harness.studio import sheet

    figures, examples = measure(options.out, options.images)
    sheet(examples, STYLES, scale=1).save(options.out / "samples.png")
    if options.training:
        write_card(figures, options.images, options.training, options.out)
    else:
        renew_card(figures, options.images, options.out)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
