"""The report of `evaluate dreambooth`: a table, a plot and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.shape_subjects import Drawn, Subject, photos, prompt_of
from benchmarks.studio import sheet

_SHOWN = 4  # pictures of each kind
_LINE = 18


def examples(
    subjects: Sequence[Subject], drawn: Mapping[str, Mapping[str, Drawn]], labels: Mapping[str, str]
) -> Image.Image:
    """For each subject its photos, and for each model a row: the subject, the subject in new settings, the class."""
    parts = []
    for subject in subjects:
        parts.append(_titled(f"{subject.name}: the photos", sheet([photos(subject)])))
        for prefix, label in labels.items():
            found = drawn[prefix][subject.name]
            rows = [*found.plain[:_SHOWN], *found.varied[:_SHOWN], *found.of_class[:_SHOWN]]
            prompt = prompt_of(subject.noun, subject.noun)
            parts.append(_titled(f'{label}: the subject, at new places, and "{prompt}"', sheet([rows])))
    canvas = Image.new("RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white")
    y = 0
    for part in parts:
        canvas.paste(part, (0, y))
        y += part.height
    return canvas


def _titled(title: str, picture: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + _LINE), "white")
    ImageDraw.Draw(canvas).text((6, 4), title, fill="black")
    canvas.paste(picture, (0, _LINE))
    return canvas


def plot(metrics: Mapping[str, Any], labels: Mapping[str, str], path: Path) -> None:
    """The four main figures side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("subject_fidelity", "prompt_fidelity", "prior_preserved", "prior_diversity")
    figure, axis = plt.subplots(figsize=(10, 4))
    width = 0.8 / len(labels)
    for place, (prefix, label) in enumerate(labels.items()):
        values = [metrics[prefix + name] for name in names]
        bars = axis.bar([i + (place - len(labels) / 2 + 0.5) * width for i in range(len(names))], values, width)
        bars.set_label(label)
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(
    metrics: Mapping[str, Any], labels: Mapping[str, str], figures: Sequence[str], settings: Mapping[str, Any]
) -> list[str]:
    """The lines of the report before its pictures."""
    lines = [
        "# DreamBooth on shapes",
        "",
        f"{len(settings['subjects'])} subjects of {settings['photos']} pictures each, "
        f"{settings['pictures_per_figure']} pictures behind each figure; {settings['sampler']}, {settings['steps']} "
        f"steps, CFG {settings['cfg_scale']:g}.",
        "",
        f"| | {' | '.join(name.replace('_', ' ') for name in figures)} | seconds of training |",
        "|---|" + "---|" * (len(figures) + 1),
    ]
    for prefix, label in labels.items():
        values = " | ".join(f"{metrics[prefix + name]:.3f}" for name in figures)
        seconds = metrics.get(f"{prefix}seconds")
        lines.append(f"| {label} | {values} | {'' if seconds is None else f'{seconds:.0f}'} |")
    lines += ["", "By subject, subject fidelity and the share of class pictures that are not the subject:", ""]
    lines += [f"| | {' | '.join(settings['subjects'])} |", "|---|" + "---|" * len(settings["subjects"])]
    for prefix, of_form in metrics["by_subject"].items():
        pairs = [
            f"{of_form[name]['subject_fidelity']:.3f}, {of_form[name]['prior_preserved']:.3f}"
            for name in settings["subjects"]
        ]
        lines.append(f"| {labels[prefix]} | {' | '.join(pairs)} |")
    lines += ["", "Trained with:", ""]
    for form, given in settings["training"].items():
        lines.append(f"- {labels[form]}: " + ", ".join(f"{name} {value}" for name, value in given.items()))
    return lines
