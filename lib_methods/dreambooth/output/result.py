"""What comes out of a training: the file that a WebUI loads, its sidecar and its preview."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.output.checkpoint import DTYPES, save_checkpoint
from lib_methods.dreambooth.output.delivery import write_sidecar
from lib_methods.dreambooth.output.lora_file import save_lora, tag_frequency
from lib_methods.dreambooth.output.samples import Viewer
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.processes import Processes, gathered
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.errors import UserError
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
    """Writes the model as it is now. Every process that takes part calls it, the first one writes."""

    model: TrainingModel
    settings: TrainingSettings
    lora: LoraSet | None
    report: Report
    processes: Processes

    def write(self, path: Path, facts: Mapping[str, str]) -> None:
        """The result alone, in place of `path`. facts: of the training, for a LoRA's metadata.

        Raises DreamBoothError when the disk does not take it; `path` is then as before.
        """
        main = self.processes.is_main
        weights = None if self.lora is not None else gathered(self.model.file_weights(), keep=main)
        if not main:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.lora is not None:
            dtype = DTYPES.get(self.settings.saved_as, torch.float16)
            save_lora(path, self.lora, self.model, self.settings, facts, dtype)
            return
        save_checkpoint(
            path,
            self.settings.base,
            self.model,
            self.settings.saved_as,
            lambda done, total: self.report.phase("Writing the checkpoint", done, total),
            weights,
        )

    def write_all(self, path: Path, facts: Mapping[str, str], viewer: Viewer, note: str) -> tuple[Path, ...]:
        """The result with sidecar and preview. DreamBoothError when the disk does not take it."""
        subjects = [concept.subject for concept in self.settings.all_concepts]
        preview = viewer.preview()
        try:
            self.write(path, facts)
            if not self.processes.is_main:
                return ()
            beside = write_sidecar(
                path,
                family=self.model.family,
                activation=activation_of(self.settings),
                description=f"DreamBooth of {' and '.join(subjects)}, from {self.model.name}",
                weight=1.0 if self.lora is not None else 0.0,
                notes=note,
                preview=preview,
            )
        except (OSError, UserError) as error:
            reason = error if isinstance(error, UserError) else f"{path.name} cannot be written."
            raise DreamBoothError(f"{reason} The run is saved: fix that, then continue with --resume.") from error
        return (path, *beside)


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
