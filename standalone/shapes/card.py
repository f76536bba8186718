"""Write the model card of `shapes`: `python -m standalone.shapes.card --from TRAINING_DIR`.

Measures the checkpoint in models/shapes as `python run.py evaluate shapes` does, and adds how it was trained from the
training's logs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torch import nn

from standalone.shapes import networks, train
from standalone.shapes.world import VALUES

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "models" / "shapes"


def _log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss_curves(training: Path, target: Path) -> None:
    """Plot the autoencoder's and the diffusion model's logs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    vae, unet = _log(training / "vae_log.jsonl"), _log(training / "train_log.jsonl")
    left.plot([entry["l1"] for entry in vae])
    left.set(title="autoencoder: L1", xlabel="log entry (every 50 steps, over all runs)", yscale="log")
    right.plot([entry["step"] for entry in unet], [entry["loss"] for entry in unet])
    right.set(title="UNet and text encoder: weighted loss", xlabel="step", yscale="log")
    figure.tight_layout()
    figure.savefig(target, dpi=100)
    plt.close(figure)


def millions(module: nn.Module) -> float:
    """Parameters in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def write(metrics: dict[str, Any], count: int, training: Path, folder: Path = FOLDER) -> None:
    """Write README.md and its images beside the checkpoint."""
    log = _log(training / "train_log.jsonl")
    last = log[-1]
    jump = next((int(a["step"]) for a, b in zip(log, log[1:]) if a["snr_floor"] != b["snr_floor"]), None)
    sizes = {"UNet": networks.unet(), "autoencoder": networks.vae(), "text encoder": networks.text_encoder()}
    parts = ", ".join(f"{name} {millions(module):.1f} M" for name, module in sizes.items())
    world = "; ".join(f"{name}: {', '.join(values)}" for name, values in VALUES.items())
    lines = [
        "# shapes",
        "",
        "A latent diffusion model in the layout of Stable Diffusion 1, small enough to ship and to run anywhere. It",
        "draws two to five shapes that agree in everything. Made for measuring: a parser reads the attributes back.",
        "",
        "![samples](samples.png)",
        "",
        f"- **Parts:** {parts} parameters, in half precision, in the original LDM key names;",
        "  `shapes.yaml` holds the geometry.",
        "- **Data:** images of 64x64 drawn and captioned by `standalone/shapes/world.py`, without end; nothing from",
        f"  anywhere else. {world}.",
        f"- **Training:** {int(last['step'])} steps of {train.BATCH} images, {train.NO_CAPTION:.0%} without caption,",
        "  loss weighted by the SNR between 0.2 and 5, averaged weights; Muon for the matrices, Adam for the rest.",
        "  `python -m standalone.shapes.train_vae --out DIR`, `python -m standalone.shapes.train --out DIR`,",
        "  `python -m standalone.shapes.export --from DIR`, `python -m standalone.shapes.card --from DIR`.",
        "- **Licence:** MIT. CLIP's BPE vocabulary (`models/clip_bpe`) is OpenAI's, MIT.",
        "",
        f"## Attributes found when the prompt names them: {metrics['accuracy']:.3f} on average",
        "",
        f"{count} images, 20 steps of Euler, CFG 5 (`python run.py evaluate shapes --out DIR`). *Autoencoder*:",
        "rendered images that only passed through it, the best that can be reached. *Variety*: how evenly the",
        "values come up when the prompt leaves them open; 1 is even.",
        "",
        "| attribute | found | autoencoder | variety |",
        "|---|---|---|---|",
    ]
    for name in VALUES:
        variety = metrics.get(f"variety_{name}")
        shown = "" if variety is None else f"{variety:.3f}"
        lines.append(f"| {name} | {metrics[f'accuracy_{name}']:.3f} | {metrics[f'autoencoder_{name}']:.3f} | {shown} |")
    lines += ["", "![loss](loss.png)"]
    if jump is not None:
        lines += ["", f"The noisiest steps count since step {jump} (`SNR_FLOOR` in `train.py`), where the loss jumps."]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    loss_curves(training, folder / "loss.png")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="training", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=480)
    options = parser.parse_args()
    from benchmarks.evaluate_shapes import measure
    from benchmarks.studio import studio

    with studio() as maker:
        metrics = measure(maker, options.pictures, FOLDER)
    write(metrics, options.pictures, options.training)
    print(f"accuracy {metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
