"""DreamBooth on `shapes`: `python run.py evaluate dreambooth --out DIR [--quick] [--images N]`.

Subjects that the base model never generates, four images of each with captions that name place and background, trained
in four ways: all of the model, a LoRA, and two ablations of the first: without the prior loss, as in the paper (arXiv
2208.12242, section 4.3), and without the captions. The files that come out are loaded by the pack's host as a user
would load them, and readers of pixels look at what they draw: is it the subject at new places, which is the method's
promise, is it the subject alone, does it follow the prompt, and what has become of the class.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.harness.report import Cell, Report
from benchmarks.harness.studio import CFG, CHECKPOINT, SAMPLER, STEPS, Pictures, Studio, sheet, studio
from lib_methods.dreambooth.run import run_training
from lib_methods.dreambooth.settings import TrainingSettings
from standalone.dreambooth import load_training_model
from standalone.shapes.figures import mean
from standalone.shapes.subjects import (
    FIGURES,
    PHOTOS,
    SUBJECTS,
    Drawn,
    Subject,
    measure,
    new_settings,
    photos,
    prompt_of,
)
from standalone.shapes.subjects import settings as photo_settings

IDENTIFIER = "ohwx"
# the text encoder learns, too: the vocabulary of `shapes` has hardly a trained word but the world's own, so that a rare
# word is told from none by little more than where it stands
TRAINING: dict[str, Any] = {
    "schedule": "cosine",
    "batch_size": 4,
    "train_text": True,
    "class_images": 64,
    "saved_as": "fp32",
    "sample_every": 1_000_000,
}
FULL: dict[str, Any] = {
    **TRAINING,
    "kind": "full",
    "steps": 300,
    "rate": 6e-4,
    "text_rate": 1e-3,
    "prior": "images",
}
FORMS: dict[str, dict[str, Any]] = {
    "full_": FULL,
    "lora_": {
        **TRAINING,
        "kind": "LoRA",
        "rank": 16,
        "steps": 400,
        "rate": 3e-3,
        "text_rate": 3e-3,
        "prior": "images",
    },
    "no_prior_": {**FULL, "prior": "off"},
    "no_captions_": {**FULL, "captions": False},
}
LABELS = {
    "base_": "before training",
    "full_": "all of the model",
    "lora_": "LoRA",
    "no_prior_": "all of the model, no prior loss",
    "no_captions_": "all of the model, no captions",
}
_SEEDS = {"plain": 410_000, "varied": 420_000, "of_class": 430_000}  # no setting was chosen with them


def draw(maker: Studio, subject: Subject, count: int, suffix: str = "") -> Drawn:
    """`count` images of each kind. suffix: goes behind every prompt."""
    words = f"{IDENTIFIER} {subject.noun}"
    settings = new_settings()
    asked = tuple(settings[i % len(settings)] for i in range(count))
    prompts = {
        "plain": [prompt_of(words, subject.noun)] * count,
        "varied": [prompt_of(words, subject.noun, *setting) for setting in asked],
        "of_class": [prompt_of(subject.noun, subject.noun)] * count,
    }
    made = {name: maker.make([text + suffix for text in texts], _SEEDS[name]) for name, texts in prompts.items()}
    return Drawn(made["plain"], made["varied"], made["of_class"], asked)


def train(
    subject: Subject, form: str, folder: Path, steps: int = 0, device: torch.device | None = None, **changes: Any
) -> Path:
    """The result file of a run. folder: shared by all runs, for their class images. steps: 0 for the form's default.
    changes: of the form's settings."""
    pictures = folder / "photos" / subject.name
    pictures.mkdir(parents=True, exist_ok=True)
    words = f"{IDENTIFIER} {subject.noun}"
    for number, (picture, setting) in enumerate(zip(photos(subject), photo_settings())):
        Image.fromarray(picture).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(prompt_of(words, subject.noun, *setting), encoding="utf-8")
    settings = TrainingSettings(
        photos=pictures,
        base=CHECKPOINT,
        out=folder,
        name=f"{form.replace('_', ' ')}{subject.name}",
        class_noun=subject.noun,
        identifier=IDENTIFIER,
        **{**FORMS[form], **({"steps": steps} if steps else {}), **changes},
    )
    return run_training(settings, load_training_model, say=lambda line: None, device=device).files[0]


def draw_with(file: Path, form: str, subject: Subject, count: int) -> Drawn:
    """Images generated with a run's result, loaded as a user would: a checkpoint, or a LoRA named in the prompt."""
    if FORMS[form]["kind"] == "full":
        with studio(file) as maker:
            return draw(maker, subject, count)
    with studio() as maker:
        loras = maker.host.data_dir / "models" / "Lora"
        loras.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, loras / "subject.safetensors")
        return draw(maker, subject, count, " <lora:subject:1>")


def part(
    subject: Subject, form: str, count: int, base: Callable[[], Drawn], folder: Path, steps: int
) -> tuple[dict[str, float], Pictures]:
    """The figures of a form on a subject, with the seconds of training, and examples. base: of the untrained model."""
    started, spent, drawn = time.monotonic(), {}, base()
    if form != "base_":
        file = train(subject, form, folder, steps)
        spent = {"seconds": time.monotonic() - started}
        drawn = draw_with(file, form, subject, count)
    examples = [*drawn.plain[:4], *drawn.varied[:4], *drawn.of_class[:4]]
    return {**measure(subject, drawn, base()), **spent}, examples


def evaluate(
    report: Report, subjects: Sequence[Subject], count: int, folder: Path, steps: int = 0
) -> tuple[dict[str, Any], dict[tuple[str, str], Pictures]]:
    """The report's metrics, and examples by form and subject. steps: of each training, 0 for the forms' own."""
    examples: dict[tuple[str, str], Pictures] = {}
    by_subject: dict[str, dict[str, dict[str, float]]] = {prefix: {} for prefix in LABELS}
    for subject in subjects:

        @cache
        def base(subject: Subject = subject) -> Drawn:
            with studio() as maker:
                return draw(maker, subject, count)

        for form in LABELS:
            measure_it = partial(part, subject, form, count, base, folder, steps)
            found, examples[form, subject.name] = report.part(f"{subject.name}, {LABELS[form]}", measure_it)
            by_subject[form][subject.name] = found
    metrics: dict[str, Any] = {}
    for form, of_form in by_subject.items():
        for name in (*FIGURES, *(() if form == "base_" else ("seconds",))):
            values = [found[name] for found in of_form.values()]
            metrics[form + name] = values[0] if len(values) == 1 else mean(values)
    return {**metrics, "by_subject": by_subject}, examples


def example_sheet(subjects: Sequence[Subject], examples: Mapping[tuple[str, str], Pictures]) -> Image.Image:
    """For each subject its photos, and for each model a row: the subject, the subject in new settings, the class."""
    rows, captions = [], []
    for subject in subjects:
        rows.append(photos(subject))
        captions.append(f"{subject.name}: the photos")
        prompt = prompt_of(subject.noun, subject.noun)
        for form, label in LABELS.items():
            rows.append(examples[form, subject.name])
            captions.append(f'{label}: the subject, at new places, and "{prompt}"')
    return sheet(rows, captions)


def plot(report: Report, metrics: Mapping[str, Any]) -> None:
    """The main figures side by side."""
    names = ("subject_in_new", "subject_fidelity", "prompt_fidelity", "prior_preserved", "prior_diversity")
    width = 0.8 / len(LABELS)
    with report.plot(1, (12, 4)) as (axis,):
        for place, (prefix, label) in enumerate(LABELS.items()):
            values = [metrics[prefix + name] for name in names]
            bars = axis.bar([i + (place - len(LABELS) / 2 + 0.5) * width for i in range(len(names))], values, width)
            bars.set_label(label)
            axis.bar_label(bars, fmt="%.2f", fontsize=8)
        axis.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
        axis.legend(fontsize=8, loc="lower right")


def tables(report: Report, metrics: Mapping[str, Any], subjects: Sequence[Subject], count: int) -> None:
    """The report before its images."""
    rows: list[list[Cell]] = []
    for prefix, label in LABELS.items():
        seconds = metrics.get(f"{prefix}seconds")
        rows.append(
            [label, *(metrics[prefix + name] for name in FIGURES), None if seconds is None else f"{seconds:.0f}"]
        )
    over = f"the {len(subjects)} subjects" if len(subjects) > 1 else "the images of the subject"
    report.say(
        f"Subjects: {', '.join(subject.name for subject in subjects)}; {PHOTOS} photos and {count} images of each kind "
        f"for each; {SAMPLER}, {STEPS} steps, CFG {CFG:g}. Margins are over {over}."
    )
    report.table(["", *FIGURES, "seconds of training"], rows)
    for name in ("subject_in_new", "subject_fidelity", "prior_preserved"):
        report.say(f"By subject, {name.replace('_', ' ')}:")
        names = [subject.name for subject in subjects]
        of_forms = metrics["by_subject"].items()
        report.table(["", *names], [[LABELS[form], *(found[n][name] for n in names)] for form, found in of_forms])


def main(out: Path, quick: bool, images: int) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done. A quick run trains one subject
    for 20 steps: it shows that everything runs, and nothing about the method."""
    subjects = SUBJECTS[:1] if quick else SUBJECTS
    count = -(-images // len(subjects))
    forms = {form: {**FORMS[form], **({"steps": 20} if quick else {})} for form in FORMS}
    report = Report(
        out,
        "DreamBooth on shapes",
        subjects=[subject.name for subject in subjects],
        photos=PHOTOS,
        pictures_per_figure=count * len(subjects),
        cfg_scale=CFG,
        training=forms,
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        metrics, examples = evaluate(report, subjects, count, Path(folder), steps=20 if quick else 0)
    if quick:
        report.say("A quick run: 20 steps of training show that everything runs, and say nothing about the method.")
    example_sheet(subjects, examples).save(out / "examples.png")
    plot(report, metrics)
    tables(report, metrics, subjects, count)
    trained = [
        f"- {LABELS[form]}: " + ", ".join(f"{name} {value}" for name, value in given.items())
        for form, given in forms.items()
    ]
    report.say("Trained with:\n\n" + "\n".join(trained))
    report.show("report.png", "figures")
    report.show("examples.png", "examples")
    return report.write(metrics)
