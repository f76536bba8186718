"""pix2pix-zero on `shapes`: `python run.py evaluate pix2pix_zero --out DIR [--quick]`.

One attribute of an image is changed: kind to kind, colour to colour, texture to texture. Half of the images are
rendered, half are drawn by the model. The parser counts whether the asked attribute is there and whether all others
are as they were, next to how far the background and the objects' places have changed. Baselines go through the same
edits: plain img2img with the words swapped (SDEdit, arXiv 2108.01073) at its best strength, DDIM inversion decoded with
the words swapped from full noise at the model's own CFG scale, and the method without its guidance, with the paper's
regularisation of the inverted noise, with the exact inversion, with a direction of many captions, and with the paper's
settings. The pattern is table 1 of Parmar et al. 2023 (arXiv 2302.03027).

On `shapes` the regularisation costs accuracy and structure, so ours goes without, and is its own baseline in that: the
figures `no_regularisation_` are ours again. The settings were chosen on other edits than those counted here.

Captions name kind, colour and texture and leave open how large the objects are, where they stand and on what: the
method is to keep what nobody says. The text encoder of `shapes` knows the captions of its world and nothing else, so
directions come from those: from the image's own with either word, and for comparison the mean over many.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.studio import CFG, SAMPLER, STEPS, Pictures, Report, Requests, Studio, line_of, sheet, studio
from lib_methods.pix2pix_zero.directions import Direction, Origin
from lib_methods.pix2pix_zero.library import DirectionLibrary
from lib_methods.pix2pix_zero.settings import CONTROLS
from standalone.instruct import edits
from standalone.instruct.edits import BATCH, FIGURES, TASKS, Edit, measure, short_caption

SEED = 700_000
SDEDIT_STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6)
OURS, SDEDIT, SWAP = "", "sdedit_", "ddim_swap_"
PSNR = "reconstruction_psnr"
SHOWN = (*FIGURES, "product", PSNR)


@dataclass(frozen=True)
class Form:
    """A way to edit with the method.

    averaged: the direction is that of many captions of the world about both words. Otherwise it is the difference of
    the image's caption with the one word and with the other; at strength 1 the prompt is then the caption with the
    words swapped. cfg_scale, denoising: of the tab; how much noise the images are inverted to.
    """

    label: str
    request: dict[str, Any]
    averaged: bool = False
    cfg_scale: float = 3.0
    denoising: float = 0.6


_TAKEN = {"inversion": "ddim", "regularisation": "off", "caption_as_negative": False, "structure": 1.0}
_PAPER = {"inversion": "ddim", "regularisation": "paper", "caption_as_negative": True, "structure": 0.1}
FORMS = {
    OURS: Form("pix2pix-zero", _TAKEN),
    "no_guidance_": Form("without guidance", {**_TAKEN, "guidance": "off"}),
    "regularised_": Form("with regularisation", {**_TAKEN, "regularisation": "paper"}),
    "direct_": Form("direct inversion", {**_TAKEN, "inversion": "direct"}),
    "averaged_": Form("direction of many captions", _TAKEN, averaged=True),
    "paper_": Form("the paper's settings", _PAPER),
    SWAP: Form("DDIM inversion, words swapped", {**_TAKEN, "guidance": "off"}, cfg_scale=CFG, denoising=1.0),
}
SDEDIT_LABEL = "img2img, words swapped"


class Editor:
    """Runs edits on a host with `shapes`, an edit per row of a batch."""

    def __init__(self, maker: Studio) -> None:
        from modules import paths

        self.maker = maker
        self.library = DirectionLibrary(Path(paths.data_path) / "feedback" / "directions")
        self.known = edits.directions(self.embed)

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts as the host embeds prompts, (n, 77, dim)."""
        from modules import shared

        found: torch.Tensor = self.maker.run(lambda: shared.sd_model.get_learned_conditioning(list(texts)).float())
        return found

    def edit(self, asked: Sequence[Edit], form: Form, **changed: Any) -> Pictures:
        """All edits in one form. changed: fields of the request that are other than the form's."""
        found: Pictures = []
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            names = [f"edit {place}" for place in range(len(batch))]
            for name, edit in zip(names, batch):
                before, after = self.embed([short_caption(edit.before), short_caption(edit.after)])
                swap = Direction(after - before, Origin(*edit.words))
                self.library.save(name, self.known[edit.name] if form.averaged else swap)
            request = {"directions": " | ".join(names), "show": False, **form.request, **changed}
            scripts = {CONTROLS.title: request}
            found += self._img2img(batch, start, form.denoising, False, scripts, cfg_scale=form.cfg_scale)
        return found

    def reconstruct(self, asked: Sequence[Edit], form: Form) -> Pictures:
        """What the form's inversion gives back with nothing to change."""
        return self.edit(asked, form, strength=0.0, guidance="off", caption_as_negative=True)

    def img2img(self, asked: Sequence[Edit], strength: float, swapped: bool = True) -> Pictures:
        """Plain img2img with the edited caption, or with the image's own."""
        found: Pictures = []
        for start in range(0, len(asked), BATCH):
            found += self._img2img(asked[start : start + BATCH], start, strength, swapped)
        return found

    def _img2img(
        self,
        batch: Sequence[Edit],
        start: int,
        strength: float,
        swapped: bool,
        scripts: Requests | None = None,
        **fields: Any,
    ) -> Pictures:
        prompts = [short_caption(edit.after if swapped else edit.before) for edit in batch]
        images = [Image.fromarray(edit.source) for edit in batch]
        return self.maker.make(
            prompts, SEED + start, scripts, init_images=images, denoising_strength=strength, **fields
        )


def both_kinds(editor: Editor, count: int) -> tuple[list[Edit], dict[str, float]]:
    """`count` edits, of rendered and of generated images in equal parts; and the share of either that was kept."""
    half = count // 2
    ours, share = edits.rendered(count - half, editor.maker.autoencoder)
    drawn, share_drawn = edits.generated(half, editor.maker.make)
    return ours + drawn, {"rendered": share, "generated": share_drawn}


def evaluate(editor: Editor, asked: Sequence[Edit]) -> tuple[dict[str, Any], dict[str, Pictures]]:
    """The report's metrics, and the edited images by the prefix of their form."""
    made: dict[str, Pictures] = {}
    metrics: dict[str, Any] = {}
    again: dict[str, float] = {}
    for prefix, form in FORMS.items():
        started = time.monotonic()
        made[prefix] = editor.edit(asked, form)
        # the same inversion as ours, in which neither guidance nor direction has anything to do
        source = OURS if prefix in ("no_guidance_", "averaged_", SWAP) else prefix
        if source not in again:
            again[source] = mean_psnr(editor.reconstruct(asked, form), asked)
        figures = {**measure(asked, made[prefix]), PSNR: again[source]}
        metrics |= {prefix + name: value for name, value in figures.items()}
        print(f"  {form.label}: {line_of(figures)} ({time.monotonic() - started:.0f} s)", flush=True)
    for name in SHOWN:  # ours is without regularisation
        metrics["no_regularisation_" + name] = metrics[OURS + name]
    curve: list[dict[str, float]] = []
    for strength in SDEDIT_STRENGTHS:
        pictures = editor.img2img(asked, strength)
        figures = measure(asked, pictures)
        if figures["product"] >= max((entry["product"] for entry in curve), default=0.0):
            made[SDEDIT] = pictures
            metrics["sdedit_strength"] = strength
            metrics |= {SDEDIT + name: value for name, value in figures.items()}
        curve.append({"strength": strength, **figures})
        print(f"  {SDEDIT_LABEL}, strength {strength:g}: {figures['product']:.3f}", flush=True)
    plain = editor.img2img(asked, metrics["sdedit_strength"], swapped=False)
    metrics[SDEDIT + PSNR] = mean_psnr(plain, asked)
    metrics["sdedit_curve"] = curve
    metrics["by_task"] = _parts(asked, made, {task: [edit.task == task for edit in asked] for task in TASKS})
    is_rendered = [edit.wanted is not None for edit in asked]
    kinds = {"rendered": is_rendered, "generated": [not is_it for is_it in is_rendered]}
    metrics["by_picture"] = _parts(asked, made, kinds)
    metrics.update(ceiling(editor, asked))
    return metrics, made


def ceiling(editor: Editor, asked: Sequence[Edit]) -> dict[str, float]:
    """What the perfect edits of the rendered images reach, and what they reach after the autoencoder alone."""
    known = [edit for edit in asked if edit.wanted is not None]
    wanted = [edit.wanted for edit in known if edit.wanted is not None]
    found: dict[str, float] = {}
    for prefix, pictures in (("perfect_", wanted), ("autoencoder_", editor.maker.autoencoder(wanted))):
        found |= {prefix + name: value for name, value in measure(known, pictures).items()}
    sources = editor.maker.autoencoder([edit.source for edit in asked])
    return {**found, "autoencoder_" + PSNR: mean_psnr(sources, asked)}


def mean_psnr(pictures: Pictures, asked: Sequence[Edit]) -> float:
    """How close reconstructions come to the images, in decibels over the pixels' range, the mean over images."""
    return float(np.mean([edits.psnr(picture, edit.source) for picture, edit in zip(pictures, asked, strict=True)]))


def _parts(
    asked: Sequence[Edit], made: dict[str, Pictures], groups: dict[str, list[bool]]
) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of every form over parts of the edits: form, part, figure."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for prefix, pictures in made.items():
        of_form = found[prefix.rstrip("_") or "pix2pix_zero"] = {}
        for name, chosen in groups.items():
            if any(chosen):
                taken = [i for i, is_in in enumerate(chosen) if is_in]
                of_form[name] = measure([asked[i] for i in taken], [pictures[i] for i in taken])
    return found


def examples(asked: Sequence[Edit], made: dict[str, Pictures], labels: dict[str, str]) -> Image.Image:
    """Four edits of each task, rendered and generated: what is asked over the source, the edit in every form, and the
    perfect edit where it is known."""
    chosen: list[int] = []
    for task in TASKS:
        for is_rendered in (True, False):
            fit = [i for i, edit in enumerate(asked) if edit.task == task and (edit.wanted is not None) == is_rendered]
            chosen += fit[:2]
    rows = []
    for i in chosen:
        wanted = asked[i].wanted
        rows.append(
            [asked[i].source, *(pictures[i] for pictures in made.values()), *([] if wanted is None else [wanted])]
        )
    columns = ["image", *(labels[prefix] for prefix in made), "perfect"]
    return sheet(rows, [asked[i].name for i in chosen], columns)


def plot(report: Report, metrics: dict[str, Any], labels: dict[str, str]) -> None:
    """Target accuracy against what is kept: the other attributes, and the objects' places."""
    with report.plot(2, (11, 4.2)) as axes:
        for axis, across in zip(axes, ("preserved_accuracy", "structure_iou")):
            curve = metrics["sdedit_curve"]
            axis.plot(
                [e[across] for e in curve], [e["target_accuracy"] for e in curve], ".-", color="grey", linewidth=1
            )
            for entry in curve:
                axis.annotate(f"{entry['strength']:g}", (entry[across], entry["target_accuracy"]), fontsize=7)
            for prefix, label in labels.items():
                place = metrics[prefix + across], metrics[prefix + "target_accuracy"]
                axis.plot(*place, "o" if prefix else "*", markersize=7 if prefix else 14, label=label)
            axis.set(xlabel=across.replace("_", " "), ylabel="target accuracy", xlim=(None, 1.02), ylim=(None, 1.02))
        axes[0].legend(fontsize=8, loc="lower left")


def main(out: Path, quick: bool) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done."""
    report = Report(out, "pix2pix-zero on shapes")
    with studio() as maker:
        editor = Editor(maker)
        asked, kept = both_kinds(editor, 24 if quick else 200)
        metrics, made = evaluate(editor, asked)
    labels = {**{prefix: form.label for prefix, form in FORMS.items()}, SDEDIT: SDEDIT_LABEL}
    examples(asked, made, labels).save(out / "examples.png")
    plot(report, metrics, labels)
    report.say(
        f"{len(asked)} edits behind each figure, half of rendered and half of generated images; {SAMPLER}, "
        f"{STEPS} steps. {kept['rendered']:.0%} of the rendered images were kept, those that the autoencoder leaves "
        f"readable, and {kept['generated']:.0%} of the generated ones, those that show what their prompt asked for."
    )
    ceilings = {"autoencoder_": "perfect edits after the autoencoder (rendered)"}
    rows = [[label, *(metrics.get(p + name) for name in SHOWN)] for p, label in {**labels, **ceilings}.items()]
    report.table(["", *SHOWN], rows)
    both = ("target_accuracy", "preserved_accuracy")
    across = ("strength", *both, "product")
    report.say(f"Plain img2img is at its best strength, {metrics['sdedit_strength']:g}:")
    report.table(across, [[entry[name] for name in across] for entry in metrics["sdedit_curve"]])
    for name, title in (("by_task", "By task"), ("by_picture", "By image")):
        parts = list(next(iter(metrics[name].values())))
        rows = []
        for form, found in metrics[name].items():
            pairs = [", ".join(f"{found[part][figure]:.3f}" for figure in both) for part in parts]
            rows.append([form.replace("_", " "), *pairs])
        report.say(f"{title}, target accuracy and preserved accuracy:")
        report.table(["", *parts], rows)
    report.show("report.png", "trade-off")
    report.show("examples.png", "examples")
    return report.write(
        metrics,
        edits_per_figure=len(asked),
        share_of_pictures_kept=kept,
        forms={form.label: asdict(form) for form in FORMS.values()},
        sdedit_cfg_scale=CFG,
    )
