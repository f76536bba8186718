"""DreamBooth on a pixel cascade (arXiv 2208.12242, sections 3 and 4): stage I learns the subject, then the upscaler its
fine detail.

The second is trained on pairs of a photo and its small copy, with next to no noise on the copy: as published it invents
detail from what it knows of the class, and noise on the small image blurs it. Each stage is a separate run in the
job's folder, so that both can be stopped and resumed at any step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lib_methods.cascade.folder import NAMES, Cascade, Stage, read_cascade
from lib_methods.device import device_words, release_memory
from lib_methods.dreambooth.job import FindJudge, Run
from lib_methods.dreambooth.model.base import BaseModel
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.stage import StageModel, stage_base
from lib_methods.dreambooth.output.result import Result
from lib_methods.dreambooth.output.stage_folder import StageExport, result_folder, write_stage
from lib_methods.dreambooth.photos.subjects import find_subjects, texts_of
from lib_methods.dreambooth.settings import TrainingSettings, resolved, to_json
from lib_methods.dreambooth.stages import check_stages
from lib_methods.dreambooth.training.batches import Example
from lib_methods.dreambooth.training.data import class_texts
from lib_methods.dreambooth.training.duration import plan_fields
from lib_methods.dreambooth.training.plan import plan_training
from lib_methods.dreambooth.training.processes import Processes
from lib_methods.dreambooth.training.samples import Viewer, prompts_of
from lib_methods.dreambooth.training.state import read_record, write_record
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.errors import UserError
from lib_methods.jobs.log import Report

TEXTS = "text_embeddings"  # in the job's folder
_MOST_ENLARGED = 4  # photos


@dataclass(frozen=True)
class _Phase:
    """A stage to train. settings: as they are for this stage."""

    stage: Stage
    settings: TrainingSettings
    base: BaseModel


class _Enlarger(Viewer):
    """Samples of stage II: small copies of the photos, enlarged."""

    model: StageModel
    cfg_scale = 4.0  # as published

    def show(self, photos: Sequence[Example]) -> None:
        self.photos = photos[:_MOST_ENLARGED]
        self.prompts = [photo.text for photo in self.photos]

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], each_step: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        images = []
        for photo, prompt, seed in zip(self.photos, prompts, seeds):
            with self.model.enlarging(photo.mean[None]):
                images.append(super().generate([prompt], [seed], each_step))
        return torch.cat(images)


class _StageRun(Run):
    """The run of one stage."""

    model: StageModel

    def __init__(self, phase: _Phase, is_last: bool, *arguments: Any) -> None:
        super().__init__(phase.settings, *arguments)
        self.stage, self.is_last, self._base = phase.stage, is_last, phase.base
        self.viewer = Viewer if phase.stage.number == 1 else _Enlarger

    @property
    def base(self) -> BaseModel:
        return self._base

    def _trainer(self, find_judge: FindJudge | None) -> tuple[Trainer, StageExport]:
        about = [(subject, self.settings.about(subject.concept)) for subject in self.subjects]
        captions = [text for subject, told in about for photo in subject.photos for text in texts_of(photo, told)]
        looks = [prompt for template in self.settings.sample_prompts for prompt in prompts_of(template, self.settings)]
        names = [f"a {concept.subject}" for concept in self.settings.all_concepts]
        self.model.expected = ["", *captions, *class_texts(self.subjects, self.settings), *looks, *names]
        self.model.warn = self.report.warning
        trainer, export = super()._trainer(find_judge)
        assert isinstance(export, StageExport)
        if isinstance(trainer.viewer, _Enlarger):
            trainer.viewer.show(trainer.batches.data.photos)
        return trainer, export

    def _export(self, lora: LoraSet | None) -> StageExport:
        return StageExport(self.model, self.settings, lora, self.report, self.processes)

    def _more(self) -> dict[str, Any]:
        condition = self.model.condition if self.stage.number == 2 else None
        return {"condition": condition, "variance": self.model.variance}


class CascadeJob:
    """Trains the stages of a cascade that the settings ask for, one after the other."""

    def __init__(
        self,
        asked: TrainingSettings,
        folder: Path,
        report: Report,
        processes: Processes,
        cancelled: Callable[[], bool],
    ) -> None:
        """Reads and checks all of it from configurations and headers. Raises UserError."""
        self.asked, self.folder, self.report = asked, folder, report
        self.processes, self.cancelled = processes, cancelled
        self.cascade = read_cascade([asked.base])
        self.phases = _phases(asked, self.cascade)
        if asked.stages == "both" and len(self.phases) == 1:
            report.warning(
                f"{asked.base.name} has no stage II, so only stage I is trained. An upscaler that does not know the "
                "subject invents its fine detail: give a folder that holds both stages."
            )

    def run(self, find_judge: FindJudge | None, resume: bool, plan_only: bool) -> Result:
        """Trains; only plans for `plan_only`, which loads nothing."""
        self._plan(tell=plan_only)
        if plan_only:
            return Result((), self.asked.subjects)
        if not resume:
            record = {"asked": to_json(self.asked)}
            self.processes.on_main(lambda: write_record(self.folder, record), None)
        result, subject = result_folder(self.asked), self.asked.subjects
        for phase in self.phases:
            number, is_last = phase.stage.number, phase is self.phases[-1]
            folder = self.folder / f"stage{number}"
            if resume and not is_last and _is_finished(folder, result / phase.stage.folder.name, phase.settings):
                self.report.say(f"Trained already: {NAMES[number]}.")
                continue
            self.processes.on_main(lambda folder=folder: folder.mkdir(exist_ok=True), None)  # type: ignore[misc]
            self.report.say(f"{NAMES[number][:1].upper()}{NAMES[number][1:]}:")
            run = _StageRun(phase, is_last, folder, self.report, self.processes, self.cancelled)
            run.prepare(self._loader(phase.stage), resume)
            subject = run.train(find_judge).subject
            del run
            gc.collect()  # the trainer and its callbacks hold each other
            release_memory(self.processes.device)
        self.processes.once(lambda: self.processes.on_main(lambda: self._complete(result), None), None)
        return Result((result,), subject)

    def _plan(self, tell: bool) -> None:
        """Raises UserError where memory is too small or photos are, before anything is loaded."""
        subjects, _ = find_subjects(self.asked)
        largest = max(phase.stage.side for phase in self.phases)
        small = [p for subject in subjects for p in subject.photos if min(p.width, p.height) < largest]
        if small:
            names = ", ".join(f"{photo.path.name} ({photo.width}x{photo.height})" for photo in small[:3])
            more = f" and {len(small) - 3} more" if len(small) > 3 else ""
            raise UserError(
                f"Photos are smaller than the {largest} pixels of the stage that learns from them: {names}{more}. Use "
                "larger ones" + (", or train stage I alone with --stages 1." if largest > self._side(1) else ".")
            )
        for phase in self.phases:
            sizes = phase.base.sizes
            counts = [len(subject.photos) for subject in subjects]
            chosen = resolved(phase.settings, photos=counts, resolution=sizes.resolution, unet_parameters=sizes.unet)
            processes, sharded = self.processes.count, self.processes.is_sharded
            plan = plan_training(chosen, sizes, self.processes.device, processes=processes, sharded=sharded)
            for note in plan.notes if tell else ():
                self.report.say(note)

    def _side(self, number: int) -> int:
        stage = self.cascade.stage(number)
        return 0 if stage is None else stage.side

    def _loader(self, stage: Stage) -> Callable[[Path, torch.device, torch.dtype], StageModel]:
        options = {"texts": self.folder / TEXTS, "small": self._side(1), "level": self.asked.small_image_noise}
        return lambda path, device, dtype: StageModel(stage, device, dtype, **options)  # type: ignore[arg-type]

    def _complete(self, result: Path) -> None:
        """The stages that were not trained join the others, so that the result is a whole cascade."""
        for stage in self.cascade.stages:
            if not (result / stage.folder.name).is_dir():
                try:
                    write_stage(result / stage.folder.name, stage)
                except OSError as error:
                    self.report.warning(f"{stage.folder.name} could not be added to {result.name}: {error.strerror}.")


def preview_cascade(
    asked: TrainingSettings, photos: Sequence[int], device: torch.device, memory: int | None
) -> dict[str, Any]:
    """As `training.duration.preview`, of all stages that will be trained; no pass is timed. Raises UserError."""
    phases, plans = _phases(asked, read_cascade([asked.base])), []
    for phase in phases:
        sizes = phase.base.sizes
        chosen = resolved(phase.settings, photos=photos, resolution=sizes.resolution, unet_parameters=sizes.unet)
        plan = plan_training(chosen, sizes, device, memory)
        plans.append(plan_fields(chosen, plan, phase.base, device_words(device), None))
    return {
        **plans[0],
        "steps": sum(plan["steps"] for plan in plans),
        "bytes": max(plan["bytes"] for plan in plans),
        "result_bytes": sum(phase.base.size for phase in phases),
        "notes": list(dict.fromkeys(note for plan in plans for note in plan["notes"])),
        "estimated": True,
    }


def _is_finished(folder: Path, result: Path, asked: TrainingSettings) -> bool:
    """Whether a stage's result is there, with as many steps as are asked for now."""
    record = read_record(folder) or {}
    steps = (record.get("resolved") or {}).get("steps")
    return result.is_dir() and asked.steps in (0, steps)


def _phases(asked: TrainingSettings, cascade: Cascade) -> Sequence[_Phase]:
    """The stages to train, with their settings. Raises UserError for what does not apply to a cascade."""
    check_stages(asked, cascade)
    first, second = cascade.stage(1), cascade.stage(2)
    phases = []
    common = replace(asked, buckets=False)  # a cascade makes squares
    if first is not None and asked.stages != "2":
        phases.append(_Phase(first, replace(common, base=first.folder), stage_base(first)))
    if second is not None and asked.stages != "1":
        concepts = tuple(replace(concept, class_folder=None) for concept in asked.concepts)
        # as in the paper, the prior is preserved where the images are composed
        changed: dict[str, Any] = {"base": second.folder, "prior": "off", "class_folder": None, "concepts": concepts}
        phases.append(_Phase(second, replace(common, select_best=False, **changed), stage_base(second)))
    return phases
