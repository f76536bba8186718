"""The result of training a cascade's stage: a folder in the base's layout, with the trained UNet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from lib_methods.cascade.folder import NOISE_LEVEL, Stage, read_stage
from lib_methods.checkpoints.folder import UNET_WEIGHTS
from lib_methods.device import DTYPES
from lib_methods.dreambooth.model.stage import StageModel
from lib_methods.dreambooth.output.result import Export, activation_of
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.processes import gathered
from lib_methods.dreambooth.training.samples import Viewer
from lib_methods.errors import UserError, reason
from lib_methods.safetensors import PICKLED, TYPES, rounded, write_tensors


def result_folder(settings: TrainingSettings) -> Path:
    """Where the trained cascade goes."""
    return settings.out / f"{settings.name}-cascade"


@dataclass(frozen=True)
class StageExport(Export):
    """Saves a stage as a folder. A LoRA is added to the weights, so that every program loads the result."""

    model: StageModel

    def write(self, path: Path, facts: Mapping[str, str]) -> None:
        """The stage as a folder, `path` without its ending."""
        self._write(path.with_suffix(""), facts)

    def write_all(self, path: Path, facts: Mapping[str, str], viewer: Viewer | None, note: str) -> tuple[Path, ...]:
        target = result_folder(self.settings) / self.model.stage.folder.name
        try:
            self._write(target, {**facts, "dreambooth": activation_of(self.settings), "notes": note})
        except (OSError, UserError) as error:
            what = error if isinstance(error, UserError) else f"{target.name} cannot be written. {reason(error)}"
            raise UserError(f"{what} The run is saved: fix that, then continue with --resume.") from error
        return (target.parent,)

    def _write(self, target: Path, facts: Mapping[str, str]) -> None:
        weights = {name: gathered(weight) for name, weight in self.model.file_weights().items()}
        if self.lora is not None:
            for place in self.lora.places:
                name = f"{place.name}.weight"
                weights[name] = weights[name].float() + self.lora.layer(place).change().detach()
        progress = partial(self.report.phase, f"Writing {target.name}")
        stage, kind = self.model.stage, self.settings.saved_as
        if stage.number == 2:
            facts = {**facts, NOISE_LEVEL: str(self.model.noise_level)}
        self.processes.on_main(lambda: write_stage(target, stage, weights, kind, facts, progress), None)


def write_stage(
    target: Path,
    stage: Stage,
    weights: Mapping[str, Tensor] | None = None,
    saved_as: str = "source",
    facts: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a stage to the folder `target`, whole or not at all. weights: of its UNet, None for those it has.

    Files of untrained parts are hard links to the base's and take no extra space; on another disk they
    are copied. Raises OSError, and CheckpointError for weights that are not finite.
    """
    partial_folder = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    text = read_stage(stage.folder).text
    used = {} if text is None else {"text_encoder": {file.name for file in text.weights.files}}
    if weights is not None:
        used["unet"] = set()
    for file in sorted(path for pattern in ("*", "*/*") for path in stage.folder.glob(pattern) if path.is_file()):
        inside = file.relative_to(stage.folder)
        part = inside.parts[0]
        if part in used and file.suffix not in (".json", ".txt") and file.name not in used[part]:
            continue
        if part == "unet" and weights is not None and file.name.endswith(".json") and "index" in file.name:
            continue
        if file.suffix in PICKLED and next(file.parent.glob("*.safetensors"), None) is not None:
            continue
        _take_over(file, partial_folder / inside)
    if weights is not None:
        heads = stage.unet.weights.heads
        tensors = {
            name: partial(rounded, name, weight, DTYPES.get(saved_as) or TYPES[heads[name].dtype])
            for name, weight in weights.items()
        }
        (partial_folder / "unet").mkdir(parents=True, exist_ok=True)
        source = stage.unet.weights.files[0].name  # keeps its variant, as programs ask for the same one of every part
        variant = next((word for word in DTYPES if f".{word}" in source), "")
        name = f"{UNET_WEIGHTS}.{variant}.safetensors".replace("..", ".")
        write_tensors(partial_folder / "unet" / name, tensors, {"format": "pt", **(facts or {})}, progress=progress)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(partial_folder, target)


def _take_over(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, target)
