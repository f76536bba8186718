"""The report of `evaluate pix2pix_zero`: a table, a plot and examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.shape_edits import FIGURES, TASKS, Edit, Pictures, product
from benchmarks.studio import SAMPLER, STEPS, sheet

SHOWN = (*FIGURES, "product", "reconstruction_psnr")


def examples(asked: Sequence[Edit], made: dict[str, Pictures], labels: dict[str, str]) -> Image.Image:
    """Four edits of each task, rendered and generated: what is asked over the source, the edit in every form, and the
    perfect edit where it is known."""
    chosen: list[int] = []
    for task in TASKS:
        for is_rendered in (True, False):
            fit = [i for i, edit in enumerate(asked) if edit.task == task and (edit.wanted is not None) == is_rendered]
            chosen += fit[:2]
    columns = ["picture", *(labels[prefix] for prefix in made), "perfect"]
    rows = []
    for i in chosen:
        wanted = asked[i].wanted
        rows.append([asked[i].source, *(pictures[i] for pictures in made.values())])
        rows[-1] += [] if wanted is None else [wanted]
    width = sheet([rows[0][:1] * len(columns)]).width
    line = 18
    parts = [sheet([row]) for row in rows]
    canvas = Image.new("RGB", (width, sum(part.height + line for part in parts) + 2 * line), "white")
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(columns):
        first, _, second = label.partition(", ")
        draw.multiline_text((column * width / len(columns) + 6, 4), f"{first}\n{second}".strip(), fill="black")
    y = 2 * line
    for i, part in zip(chosen, parts):
        draw.text((6, y + 4), asked[i].name, fill="black")
        canvas.paste(part, (0, y + line))
        y += part.height + line
    return canvas


def plot(metrics: dict[str, Any], labels: dict[str, str], path: Path) -> None:
    """Target accuracy against what is kept: the other attributes, and the objects' places."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, across in zip(axes, ("preserved_accuracy", "structure_iou")):
        curve = metrics["sdedit_curve"]
        axis.plot([e[across] for e in curve], [e["target_accuracy"] for e in curve], ".-", color="grey", linewidth=1)
        for entry in curve:
            axis.annotate(f"{entry['strength']:g}", (entry[across], entry["target_accuracy"]), fontsize=7)
        for prefix, label in labels.items():
            mark = "*" if not prefix else "o"
            place = metrics[prefix + across], metrics[prefix + "target_accuracy"]
            axis.plot(*place, mark, markersize=14 if not prefix else 7, label=label)
        axis.set(xlabel=across.replace("_", " "), ylabel="target accuracy", xlim=(None, 1.02), ylim=(None, 1.02))
    axes[0].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(metrics: dict[str, Any], labels: dict[str, str], count: int, kept: dict[str, float]) -> list[str]:
    """The lines of the report before its pictures. kept: the share of pictures that could be taken, by their kind."""
    head = " | ".join(name.replace("_", " ") for name in SHOWN)
    lines = [
        "# pix2pix-zero on shapes",
        "",
        f"{count} edits behind each figure, half of rendered and half of generated pictures; {SAMPLER}, {STEPS} steps. "
        f"Taken were {kept['rendered']:.0%} of the rendered ones, those that the autoencoder leaves readable, and "
        f"{kept['generated']:.0%} of the generated ones, those that show what their prompt asked for.",
        "",
        f"| | {head} |",
        "|---|" + "---|" * len(SHOWN),
    ]
    for prefix, label in {**labels, "autoencoder_": "perfect edits after the autoencoder (rendered)"}.items():
        values = [metrics.get(prefix + name) for name in SHOWN]
        lines.append(f"| {label} | " + " | ".join("" if v is None else f"{v:.3f}" for v in values) + " |")
    lines += ["", f"Plain img2img is at its best strength, {metrics['sdedit_strength']:g}:", ""]
    lines += ["| strength | target accuracy | preserved accuracy | product |", "|---|---|---|---|"]
    for entry in metrics["sdedit_curve"]:
        values = [entry["strength"], entry["target_accuracy"], entry["preserved_accuracy"], product(entry)]
        lines.append("| " + " | ".join(f"{value:.3g}" for value in values) + " |")
    for name, title in (("by_task", "By task"), ("by_picture", "By picture")):
        parts = list(next(iter(metrics[name].values())))
        lines += ["", f"{title}, target accuracy and preserved accuracy:", ""]
        lines += [f"| | {' | '.join(parts)} |", "|---|" + "---|" * len(parts)]
        for form, found in metrics[name].items():
            pairs = [f"{found[part]['target_accuracy']:.3f}, {found[part]['preserved_accuracy']:.3f}" for part in parts]
            lines.append(f"| {form.replace('_', ' ')} | {' | '.join(pairs)} |")
    return lines
