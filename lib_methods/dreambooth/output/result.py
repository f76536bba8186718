"""The result of a training run: the file a WebUI loads, its sidecar and its preview."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.output.checkpoint import DTYPES, save_checkpoint
from lib_methods.dreambooth.output.lora_file import save_lora, tag_frequency
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.processes import Processes, gathered
from lib_methods.dreambooth.training.samples import Viewer
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.errors import UserError
from lib_methods.files import write_whole
from lib_methods.jobs.files import JobFiles, load_record, read_json
from lib_methods.jobs.log import Report

ENDING = ".safetensors"


@dataclass(frozen=True)
class Result:
    """files: the result, its sidecar and preview. subject: identifier and noun, of each. best_step: None where the last
    weights were taken."""

    files: tuple[Path, ...]
    subject: str
    best_step: int | None = None


@dataclass(frozen=True)
class Export:
    """Saves the model's current weights. Call it within `Processes.once`; only the main process writes files."""

    model: TrainingModel
    settings: TrainingSettings
    lora: LoraSet | None
    report: Report
    processes: Processes

    def write(self, path: Path, facts: Mapping[str, str]) -> None:
        """The result alone, in place of `path`. facts: of the run, for a LoRA's metadata.

        Raises UserError when the disk does not take it; `path` is then as before.
        """
        if self.lora is not None:
            lora, dtype = self.lora, DTYPES.get(self.settings.saved_as, torch.float16)
            self.processes.on_main(lambda: save_lora(path, lora, self.model, self.settings, facts, dtype), None)
            return
        weights = {name: gathered(weight) for name, weight in self.model.file_weights().items()}

        def write() -> None:
            progress = partial(self.report.phase, "Writing the checkpoint")
            save_checkpoint(path, self.settings.base, self.model, self.settings.saved_as, progress, weights)

        self.processes.on_main(write, None)

    def write_all(self, path: Path, facts: Mapping[str, str], viewer: Viewer, note: str) -> tuple[Path, ...]:
        """The result with sidecar and preview, in the main process. UserError when the disk does not take it."""
        subjects = [concept.subject for concept in self.settings.all_concepts]
        card = partial(
            write_sidecar,
            path,
            family=self.model.family,
            activation=activation_of(self.settings),
            description=f"DreamBooth of {' and '.join(subjects)}, from {self.model.name}",
            weight=1.0 if self.lora is not None else 0.0,
            notes=note,
            preview=viewer.preview(),
        )
        try:
            self.write(path, facts)
            return self.processes.on_main(lambda: (path, *card()), ())
        except (OSError, UserError) as error:
            reason = error if isinstance(error, UserError) else f"{path.name} cannot be written."
            raise UserError(f"{reason} The run is saved: fix that, then continue with --resume.") from error


def activation_of(settings: TrainingSettings) -> str:
    """What brings the subjects into a prompt."""
    return ", ".join(f"a {concept.subject}" for concept in settings.all_concepts)


def facts_of(trainer: Trainer, step: int) -> dict[str, str]:
    """What other programs show of a LoRA's training, under kohya's names."""
    settings, plan = trainer.settings, trainer.plan
    photos = len(trainer.batches.data.photos)
    return {
        "ss_steps": str(step),
        "ss_max_train_steps": str(settings.steps),
        "ss_num_train_images": str(photos),
        "ss_tag_frequency": tag_frequency({settings.subjects: [photo.text for photo in trainer.batches.data.photos]}),
        "ss_num_reg_images": str(len(trainer.batches.data.prior)),
        "ss_num_epochs": str(max(1, step * trainer.batches.count * plan.accumulation // max(1, photos))),
        "ss_batch_size_per_device": str(plan.batch_size),
        "ss_gradient_accumulation_steps": str(plan.accumulation),
        "ss_learning_rate": f"{settings.rate:g}",
        "ss_unet_lr": f"{settings.rate:g}",
        "ss_text_encoder_lr": f"{settings.text_rate:g}" if settings.train_text else "None",
        "ss_lr_scheduler": settings.schedule,
        "ss_lr_warmup_steps": str(settings.warm_up),
        "ss_optimizer": plan.optimizer,
        "ss_mixed_precision": {"fp32": "no"}.get(plan.precision, plan.precision),
        "ss_seed": str(settings.seed),
        "ss_min_snr_gamma": f"{settings.snr_gamma:g}" if settings.snr_gamma else "None",
        "ss_prior_loss_weight": f"{settings.prior_weight:g}" if settings.prior != "off" else "0",
    }


_VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


def write_sidecar(
    result: Path,
    *,
    family: str,
    activation: str,
    description: str = "",
    weight: float = 0.0,
    notes: str = "",
    preview: Image.Image | None = None,
) -> list[Path]:
    """Writes the card of `result`; the files written.

    activation: what brings the subject into a prompt. weight: of the LoRA, 0 for the WebUI's own default. What a card
    of this name says besides (a negative text, a note where `notes` is empty) stays. Raises UserError when the
    disk is full; what was there before is then still there.
    """
    card = {
        **read_json(result.with_suffix(".json")),
        "description": description,
        "sd version": _VERSIONS.get(family, "Unknown"),
        "activation text": activation,
        "preferred weight": weight,
    }
    if notes or "notes" not in card:
        card["notes"] = notes
    written = [write_whole(result.with_suffix(".json"), json.dumps(card, indent=4, ensure_ascii=False).encode("utf-8"))]
    if preview is not None:
        data = io.BytesIO()
        preview.convert("RGB").save(data, "PNG")
        written.append(write_whole(result.with_suffix(".preview.png"), data.getvalue()))
    return written


SIDECARS = (".json", ".preview.png", ".png", ".yaml")


def deliver_to(folder_of: Callable[[str], Path]) -> Callable[[JobFiles, Mapping[str, Any], Sequence[str]], list[str]]:
    """What `Jobs` wants. folder_of: the host's folder for "LoRA" or "full"."""

    def deliver(files: JobFiles, settings: Mapping[str, Any], names: Sequence[str]) -> list[str]:
        return move_results(files, settings, names, folder_of(settings["kind"]))

    return deliver


def move_results(files: JobFiles, settings: Mapping[str, Any], names: Sequence[str], folder: Path) -> list[str]:
    """Moves the model, and what is called like it, into `folder`; returns the new names, the model's first.

    A checkpoint gets its base's `.yaml`, if there is one and the trainer made none: the WebUI tells by it what a model
    is. Raises UserError.
    """
    model = next((files.out / Path(name).name for name in names if name.endswith(".safetensors")), None)
    if model is None or not model.is_file():
        raise UserError("Training ended without a result. Its console file says why.")
    stem = model.name.removesuffix(".safetensors")
    before = load_record(files)
    own = before.result if before is not None else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = _free(folder, stem, own.removesuffix(".safetensors"))
        moved = []
        for ending in (".safetensors", *SIDECARS):
            source = files.out / f"{stem}{ending}"
            if source.is_file():
                _move(source, folder / f"{target}{ending}")
                moved.append(f"{target}{ending}")
        beside = Path(settings["base"]).with_suffix(".yaml")
        if settings["kind"] == "full" and f"{target}.yaml" not in moved and beside.is_file():
            shutil.copyfile(beside, folder / f"{target}.yaml")
            moved.append(f"{target}.yaml")
    except OSError as error:
        full = getattr(error, "errno", None) == 28
        reason = "the disk is full" if full else "its folder cannot be written"
        raise UserError(f"The result could not be moved to the WebUI's models: {reason}.") from None
    return moved


def _free(folder: Path, stem: str, own: str) -> str:
    """The stem, or with a number behind it where another model is called so. own: one that may be written over."""
    number, free = 1, stem
    while free != own and any((folder / f"{free}{ending}").exists() for ending in (".safetensors", ".ckpt", ".pt")):
        number += 1
        free = f"{stem}-{number}"
    return free


def _move(source: Path, target: Path) -> None:
    """Renames; onto another disk it is copied under another name first, so that nobody sees half of it."""
    try:
        os.replace(source, target)
    except OSError:
        part = target.with_name(target.name + ".part")
        try:
            shutil.copyfile(source, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        source.unlink()
