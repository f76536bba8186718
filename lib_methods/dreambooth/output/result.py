"""The result of a training run: the file a WebUI loads, its card and its preview.

A checkpoint is built on the source's own weights. What was not trained has the source's bytes and precision, also what
this pack knows nothing about. What was trained is found by comparing with what the source holds, in the precision that
the model has in memory. Moving averages that the source keeps of its UNet (`model_ema.*`) become the trained weights,
too: a program that prefers them would otherwise draw with the model as it was before.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import torch
from PIL import Image
from torch import Tensor

from lib_methods.checkpoints.kinds import EMA_PREFIX
from lib_methods.checkpoints.ldm_names import shared_text_name
from lib_methods.checkpoints.schedule import V_MARK, ZERO_SNR_MARK
from lib_methods.device import DTYPES
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.output.lora_file import save_lora, tag_frequency
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.processes import Processes, gathered
from lib_methods.dreambooth.training.samples import Viewer
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.errors import CheckpointError, UserError, reason
from lib_methods.files import replacing, write_whole
from lib_methods.jobs.files import read_json
from lib_methods.jobs.log import Report
from lib_methods.safetensors import NAMES, TYPES, Copied, TensorHead, TensorSource, read_header, rounded, write_tensors

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

    def write_all(self, path: Path, facts: Mapping[str, str], viewer: Viewer | None, note: str) -> tuple[Path, ...]:
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
            preview=None if viewer is None else viewer.preview(),
        )
        try:
            self.write(path, facts)
            return self.processes.on_main(lambda: (path, *card()), ())
        except (OSError, UserError) as error:
            what = error if isinstance(error, UserError) else f"{path.name} cannot be written."
            raise UserError(f"{what} The run is saved: fix that, then continue with --resume.") from error


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


# -- a checkpoint

Progress = Callable[[int, int], None]
# fewer bits cannot hold what was learnt
_FLOATS = {NAMES[dtype]: dtype for dtype in (*DTYPES.values(), torch.float64)}
_STALE = ("modelspec.hash_sha256", "modelspec.thumbnail", "sshs_model_hash", "sshs_legacy_hash")
_PIECE = 16 << 20


def save_checkpoint(
    path: Path,
    source: Path,
    model: TrainingModel,
    saved_as: str = "fp16",
    progress: Progress | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes `model`, which was loaded from `source`, to `path`, whole or not at all, and the source's yaml beside it.

    saved_as: the precision of what was trained, "fp16", "bf16", "fp32" or the "source"'s own. progress: told the
    tensors done and all of them. weights: the model's `file_weights`, where they had to be gathered. A diffusers folder
    becomes one file in LDM's names. Raises UserError when the weights are not finite, when the disk is full, or
    when the source has changed meanwhile; `path` is then as before.
    """
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{path.name} is the base model itself; give the result another name.")
    dtype = None if saved_as == "source" else DTYPES[saved_as]
    weights = model.file_weights() if weights is None else weights
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            tensors = _from_memory(model.source_weights(source), weights, dtype)
            write_tensors(path, *_marked(tensors, {"format": "pt"}, model), progress=progress)
            return
        yaml = source.with_suffix(".yaml")
        with _Source(source) as opened:
            tensors = dict(opened.tensors(weights, dtype))
            metadata = {key: value for key, value in opened.metadata.items() if key not in _STALE}
            if "modelspec.title" in metadata:
                metadata["modelspec.title"] = path.stem
            if yaml.is_file():
                with replacing(path.with_suffix(".yaml")) as file:
                    file.write(yaml.read_bytes())
            write_tensors(path, *_marked(tensors, {"format": "pt", **metadata}, model), progress=progress)
    except CheckpointError as problem:
        raise UserError(f"The result cannot be saved: {problem}") from problem
    except OSError as error:
        raise UserError(f"{path.name} cannot be written. {reason(error)}") from error


def _marked(
    tensors: Mapping[str, TensorSource], metadata: Mapping[str, str], model: TrainingModel
) -> tuple[dict[str, TensorSource], dict[str, str]]:
    """With what other programs recognise v-prediction and a zero terminal SNR by, whatever told it of the source."""
    marks: dict[str, TensorSource] = {}
    told = dict(metadata)
    if model.parameterization == "v":
        marks[V_MARK] = torch.empty(0)
        told["modelspec.prediction_type"] = "v"
    if model.zero_terminal_snr:
        marks[ZERO_SNR_MARK] = torch.empty(0)
        told["ss_zero_terminal_snr"] = "True"
    return {**marks, **tensors}, told


# -- the source


class _Source:
    """A .safetensors file: its tensors as numbers, and as the bytes that they are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Source:
        if not self.path.exists():
            raise UserError(f"The base model {self.path.name} no longer exists, and the result needs it.")
        header = read_header(self.path)
        self.metadata, self._heads, self._start = header.metadata, header.tensors, header.data
        self._bytes: IO[bytes] = self.path.open("rb")
        return self

    def __exit__(self, *exception: object) -> None:
        self._bytes.close()

    def tensors(self, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[tuple[str, TensorSource]]:
        names = {shared_text_name(name): name for name in self._heads}
        missing = [name for name in weights if name not in names]
        if missing:
            raise UserError(f"The base model {self.path.name} has changed since the start: '{missing[0]}' is missing.")
        averages = {EMA_PREFIX + name.removeprefix("model.").replace(".", ""): name for name in weights}
        for name, own in names.items():
            head = self._heads[own]
            weight = weights.get(name, weights.get(averages.get(name, "")))
            source = self._heads[names[averages.get(name, name)]]
            trained = None if weight is None else _trained(name, weight, self._read(source))
            if trained is None:
                yield name, Copied(head.dtype, head.shape, head.size, self._piecewise(head.start, head.size))
            else:
                yield name, _source(name, trained, dtype or _FLOATS.get(head.dtype, torch.float16))

    def _read(self, head: TensorHead) -> Tensor:
        data = b"".join(self._piecewise(head.start, head.size)())
        return torch.frombuffer(bytearray(data), dtype=TYPES[head.dtype]).reshape(head.shape)

    def _piecewise(self, first: int, size: int) -> Callable[[], Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            self._bytes.seek(self._start + first)
            left = size
            while left:
                piece = self._bytes.read(min(left, _PIECE))
                if not piece:
                    raise UserError(f"The base model {self.path.name} has become shorter since the start.")
                left -= len(piece)
                yield piece

        return pieces


# -- what was trained


def _trained(name: str, weight: Tensor, source: Tensor) -> Tensor | None:
    """The weight in the source's shape if it is another than the source's; None if it is the same."""
    if weight.numel() != source.numel():
        raise UserError(f"The base model has changed since the start: '{name}' has another size.")
    own = weight.detach().reshape(source.shape)
    if torch.equal(source.to(own.dtype), own.to("cpu")):
        return None
    if not bool(torch.isfinite(own).all()):
        raise UserError(
            f"The trained weights are not finite (NaN or infinite, in '{name}'), so nothing was written. The learning "
            "rate was too high: train again with a lower one."
        )
    return own


def _source(name: str, tensor: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The tensor in the result's precision, made when its turn comes; NotFinite, before anything is written, when it
    is too large for that."""
    if tensor.numel() and float(tensor.abs().max()) > torch.finfo(dtype).max:
        rounded(name, tensor, dtype)
    return lambda: rounded(name, tensor, dtype)


def _from_memory(
    source: Mapping[str, Tensor], weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> dict[str, TensorSource]:
    """The tensors when the source's weights are in memory, under the result's names."""
    found: dict[str, TensorSource] = {}
    for name, own in source.items():
        trained = _trained(name, weights[name], own) if name in weights else None
        kept = dtype or _FLOATS.get(NAMES[own.dtype], torch.float16)
        found[name] = own if trained is None else _source(name, trained, kept)
    return found
