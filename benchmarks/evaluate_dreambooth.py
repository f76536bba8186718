"""DreamBooth on `shapes`: `python run.py evaluate dreambooth --out DIR [--quick]`.

Subjects that the base model never generates, four images of each, trained three ways: all of the model, a LoRA, and all
of the model without the prior loss, which is the paper's ablation (arXiv 2208.12242, section 4.3). The files that come
out are loaded by the pack's host as a user would load them, and readers of pixels look at what they draw: is it the
subject, does it follow the prompt, and what has become of the class.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.studio import CFG, CHECKPOINT, SAMPLER, STEPS, Report, Studio, line_of, sheet, studio
from lib_methods.dreambooth.run import run_training
from lib_methods.dreambooth.settings import TrainingSettings
from standalone.dreambooth import load_training_model
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
}
LABELS = {
    "base_": "before training",
    "full_": "all of the model",
    "lora_": "LoRA",
    "no_prior_": "all of the model, no prior loss",
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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def train(subject: Subject, form: str, folder: Path, steps: int = 0) -> Path:
    """The result file of a run. folder: shared by all runs, for their class images. steps: 0 for the form's default."""
    pictures = folder / "photos" / subject.name
    pictures.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(photos(subject)):
        Image.fromarray(picture).save(pictures / f"{number}.png")
    settings = TrainingSettings(
        photos=pictures,
        base=CHECKPOINT,
        out=folder,
        name=f"{form.replace('_', ' ')}{subject.name}",
        class_noun=subject.noun,
        identifier=IDENTIFIER,
        **{**FORMS[form], **({"steps": steps} if steps else {})},
    )
    return run_training(settings, load_training_model, say=lambda line: None).files[0]


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


def evaluate(
    subjects: Sequence[Subject], count: int, folder: Path, steps: int = 0
) -> tuple[dict[str, Any], dict[str, dict[str, Drawn]]]:
    """The report's metrics and the images, by form and subject. steps: of each training, 0 for the forms' own."""
    drawn: dict[str, dict[str, Drawn]] = {prefix: {} for prefix in LABELS}
    with studio() as maker:
        for subject in subjects:
            drawn["base_"][subject.name] = draw(maker, subject, count)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for subject in subjects:
        for form in FORMS:
            started = time.monotonic()
            file = train(subject, form, folder, steps)
            seconds[form].append(time.monotonic() - started)
            found = drawn[form][subject.name] = draw_with(file, form, subject, count)
            figures = measure(subject, found, drawn["base_"][subject.name])
            spent = f"{seconds[form][-1]:.0f} s of training"
            print(f"  {subject.name}, {LABELS[form]}: {line_of(figures)} ({spent})", flush=True)
    metrics: dict[str, Any] = {}
    by_subject: dict[str, dict[str, dict[str, float]]] = {}
    for prefix, of_form in drawn.items():
        each = {s.name: measure(s, of_form[s.name], drawn["base_"][s.name]) for s in subjects}
        metrics |= {f"{prefix}{name}": _mean([v[name] for v in each.values()]) for name in FIGURES}
        by_subject[prefix] = each
    metrics |= {f"{form}seconds": _mean(spent) for form, spent in seconds.items()}
    metrics["by_subject"] = by_subject
    return metrics, drawn


def examples(
    subjects: Sequence[Subject], drawn: Mapping[str, Mapping[str, Drawn]], labels: Mapping[str, str]
) -> Image.Image:
    """For each subject its photos, and for each model a row: the subject, the subject in new settings, the class."""
    rows, captions = [], []
    for subject in subjects:
        rows.append(photos(subject))
        captions.append(f"{subject.name}: the photos")
        prompt = prompt_of(subject.noun, subject.noun)
        for prefix, label in labels.items():
            found = drawn[prefix][subject.name]
            rows.append([*found.plain[:4], *found.varied[:4], *found.of_class[:4]])
            captions.append(f'{label}: the subject, at new places, and "{prompt}"')
    return sheet(rows, captions)


def plot(report: Report, metrics: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """The four main figures side by side."""
    names = ("subject_fidelity", "prompt_fidelity", "prior_preserved", "prior_diversity")
    width = 0.8 / len(labels)
    with report.plot(1, (10, 4)) as (axis,):
        for place, (prefix, label) in enumerate(labels.items()):
            values = [metrics[prefix + name] for name in names]
            bars = axis.bar([i + (place - len(labels) / 2 + 0.5) * width for i in range(len(names))], values, width)
            bars.set_label(label)
            axis.bar_label(bars, fmt="%.2f", fontsize=8)
        axis.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
        axis.legend(fontsize=8, loc="lower right")


def tables(report: Report, metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """The report before its images."""
    rows: list[list[str | float]] = []
    for prefix, label in LABELS.items():
        seconds = metrics.get(f"{prefix}seconds")
        rows.append([label, *(metrics[prefix + name] for name in FIGURES), "" if seconds is None else f"{seconds:.0f}"])
    by_subject = []
    for prefix, of_form in metrics["by_subject"].items():
        each = [of_form[name] for name in settings["subjects"]]
        pairs = [f"{found['subject_fidelity']:.3f}, {found['prior_preserved']:.3f}" for found in each]
        by_subject.append([LABELS[prefix], *pairs])
    report.say(
        f"{len(settings['subjects'])} subjects of {settings['photos']} photos each, {settings['pictures_per_figure']} "
        f"images behind each figure; {SAMPLER}, {STEPS} steps, CFG {CFG:g}."
    )
    report.table(["", *FIGURES, "seconds of training"], rows)
    report.say("By subject, subject fidelity and the share of class images that are not the subject:")
    report.table(["", *settings["subjects"]], by_subject)
    trained = [
        f"- {LABELS[form]}: " + ", ".join(f"{name} {value}" for name, value in given.items())
        for form, given in settings["training"].items()
    ]
    report.say("Trained with:\n\n" + "\n".join(trained))


def main(out: Path, quick: bool) -> int:
    """Write report.json, report.md, report.png and examples.png into `out`; 0 when done."""
    report = Report(out, "DreamBooth on shapes")
    subjects, count = (SUBJECTS[:1], 4) if quick else (SUBJECTS, 24)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        metrics, drawn = evaluate(subjects, count, Path(folder), steps=20 if quick else 0)
    forms = {form: {**FORMS[form], **({"steps": 20} if quick else {})} for form in FORMS}
    settings = {
        "subjects": [subject.name for subject in subjects],
        "photos": PHOTOS,
        "pictures_per_figure": count * len(subjects),
        "cfg_scale": CFG,
        "training": forms,
    }
    examples(subjects, drawn, LABELS).save(out / "examples.png")
    plot(report, metrics, LABELS)
    tables(report, metrics, settings)
    report.show("report.png", "figures")
    report.show("examples.png", "examples")
    return report.write(metrics, **settings)
