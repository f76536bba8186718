"""Write `shapes` as it ships: `python -m standalone.shapes.release --from TRAINING_DIR [--out DIR]`.

One `.safetensors` file in half precision with the original LDM key names, and the yaml with its geometry beside it; and
the model card, with what `python run.py evaluate shapes` measures and how it was trained, from the training's logs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from lib_methods.safetensors import rounded, write_tensors
from standalone.engine.weights import ldm_clip_text, ldm_networks, ldm_unet, ldm_vae
from standalone.shapes import networks, train
from standalone.shapes.world import VALUES

FOLDER = Path(__file__).resolve().parents[2] / "models" / "shapes"


def ldm_config() -> dict[str, Any]:
    """The yaml beside the file. `version` is the folder with the tokenizer and the text encoder's sizes."""
    unet, vae = networks.UNET_CONFIG, networks.VAE_CONFIG
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet["sample_size"],
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "scale_factor": networks.SCALE_FACTOR,
        "use_ema": False,
        **ldm_networks(unet, vae, image_size=unet["sample_size"], resolution=vae["sample_size"]),
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": "text_encoder", **{name: networks.TEXT_CONFIG[name] for name in sizes}},
        },
    }
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"model": {"base_learning_rate": 1e-4, "target": target, "params": params}}


def load_networks(training: Path) -> tuple[Any, Any, Any]:
    """UNet, text encoder and VAE from a training folder, with the averaged weights."""
    unet, text, vae = networks.unet(), networks.text_encoder(), networks.vae()
    both = torch.load(training / "state.pt", weights_only=True)["average"]
    unet.load_state_dict({k[2:]: v for k, v in both.items() if k.startswith("0.")})
    text.load_state_dict({k[2:]: v for k, v in both.items() if k.startswith("1.")})
    vae.load_state_dict(load_file(training / "vae.safetensors"))
    return unet.eval(), text.eval(), vae.eval()


def export(training: Path, out: Path) -> Path:
    """Write `shapes.safetensors` and `shapes.yaml` into `out`; returns the checkpoint's path."""
    unet, text, vae = load_networks(training)
    state: dict[str, Tensor] = {**ldm_unet(unet), **ldm_vae(vae), **ldm_clip_text(text)}
    halves = {key: rounded(key, value, torch.float16) for key, value in state.items() if value.is_floating_point()}
    out.mkdir(parents=True, exist_ok=True)
    target = out / "shapes.safetensors"
    write_tensors(target, halves, {"modelspec.title": "shapes", "modelspec.license": "MIT"})
    target.with_suffix(".yaml").write_text(yaml.safe_dump(ldm_config(), sort_keys=False), encoding="utf-8")
    return target


def read_log(path: Path) -> list[dict[str, float]]:
    """The entries of a training log, one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loss_curves(training: Path, target: Path) -> None:
    """Plot the autoencoder's and the diffusion model's logs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    vae, unet = read_log(training / "vae_log.jsonl"), read_log(training / "train_log.jsonl")
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


def write_card(metrics: dict[str, Any], count: int, training: Path, folder: Path) -> None:
    """Write README.md and its images beside the checkpoint."""
    log = read_log(training / "train_log.jsonl")
    last = log[-1]
    jump = next((int(a["step"]) for a, b in zip(log, log[1:]) if a["snr_floor"] != b["snr_floor"]), None)
    sizes = {"UNet": networks.unet(), "autoencoder": networks.vae(), "text encoder": networks.text_encoder()}
    parts = ", ".join(f"{name} {millions(module):.1f} M" for name, module in sizes.items())
    world = "; ".join(f"{name}: {', '.join(values)}" for name, values in VALUES.items())
    lines = [
        "# shapes",
        "",
        "A latent diffusion model in the layout of Stable Diffusion 1, small enough to ship and to run anywhere. It",
        "generates two to five matching shapes. Made for measuring: a parser reads the attributes back.",
        "",
        "![samples](samples.png)",
        "",
        f"- **Parts:** {parts} parameters, in half precision, in the original LDM key names;",
        "  `shapes.yaml` holds the geometry.",
        "- **Data:** images of 64x64 rendered and captioned by `standalone/shapes/world.py`, without end; nothing from",
        f"  anywhere else. {world}.",
        f"- **Training:** {int(last['step'])} steps of {train.BATCH} images, {train.NO_CAPTION:.0%} without caption,",
        "  loss weighted by the SNR between 0.2 and 5, averaged weights; Muon for the matrices, Adam for the rest.",
        "  `python -m standalone.shapes.train_vae --out DIR`, `python -m standalone.shapes.train --out DIR`,",
        "  `python -m standalone.shapes.release --from DIR`.",
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
    """Write, measure and describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="training", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--images", type=int, default=480)
    options = parser.parse_args()
    print(export(options.training, options.out))
    from benchmarks.evaluate_shapes import measure
    from benchmarks.harness.studio import studio

    with studio(options.out / "shapes.safetensors") as maker:
        metrics = measure(maker, options.images, options.out)
    write_card(metrics, options.images, options.training, options.out)
    print(f"accuracy {metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
