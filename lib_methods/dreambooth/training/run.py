"""A whole training, from the folder of photos to the file that a WebUI loads."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.model.base import read_base
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TrainingModel, check_weights
from lib_methods.dreambooth.model.parts import CPU, device_words, release_memory
from lib_methods.dreambooth.output.lora_file import LoraStart, read_lora
from lib_methods.dreambooth.output.result import ENDING, Export, Result, activation_of, facts_of
from lib_methods.dreambooth.output.samples import Judge, Viewer, best_weights
from lib_methods.dreambooth.photos import Photo
from lib_methods.dreambooth.photos.subjects import Subject, companions_told, counted, find_subjects, with_identifiers
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.duration import plan_fields, seconds_needed
from lib_methods.dreambooth.training.frame import LOCK, repeatable, stopper, take_folder, told
from lib_methods.dreambooth.training.latents import photos_digest
from lib_methods.dreambooth.training.optimizers import check_available
from lib_methods.dreambooth.training.plan import PLAN_FIELDS, TrainingPlan, plan_training
from lib_methods.dreambooth.training.prepare import Maker, class_texts, drawing_parts, named
from lib_methods.dreambooth.training.processes import Processes, start_processes
from lib_methods.dreambooth.training.record import ANOTHER, PATHS, going_on, planned, steps_depend_on, to_json
from lib_methods.dreambooth.training.schedule import resolved
from lib_methods.dreambooth.training.state import digest, read_record, write_record
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.jobs.log import Report, Say, duration

KEPT = "saved"  # the folder of the results that save_every keeps
LoadModel = Callable[[Path, torch.device, torch.dtype], TrainingModel]
FindJudge = Callable[[Sequence[Photo], TrainingSettings, torch.device], Judge | None]


def run_training(
    settings: TrainingSettings,
    load_model: LoadModel,
    *,
    resume: bool = False,
    plan_only: bool = False,
    say: Say = print,
    cancelled: Callable[[], bool] = lambda: False,
    find_judge: FindJudge | None = None,
    device: torch.device | None = None,
) -> Result:
    """Trains, and returns what came out.

    resume: go on from the state in the training's folder, from its beginning where there is none yet. plan_only: only
    say what would be done. find_judge: who judges samples for `select_best`. device: None for the GPU if there is one.
    Raises TrainingStopped when cancelled and DreamBoothError, both with a sentence.
    """
    processes = start_processes(device)
    settings = replace(settings, out=Path(settings.out).expanduser().resolve())
    folder = settings.out / settings.name
    lock = FileLock(folder / LOCK)
    try:
        if processes.is_main and not plan_only:
            take_folder(settings, folder, lock, resume)
        processes.wait()
        report = Report(None if plan_only else folder, say, quiet=not processes.is_main)
        with told(report), repeatable(processes.device):
            stop = stopper(folder, cancelled)
            return _Training(settings, folder, report, processes, stop, find_judge).run(load_model, resume, plan_only)
    finally:
        lock.release()
        processes.close()


class _Training:
    """The parts of one training, put together."""

    def __init__(
        self,
        settings: TrainingSettings,
        folder: Path,
        report: Report,
        processes: Processes,
        cancelled: Callable[[], bool],
        find_judge: FindJudge | None,
    ) -> None:
        self.asked, self.folder, self.report, self.processes = settings, folder, report, processes
        self.cancelled, self.find_judge = cancelled, find_judge
        self.device = processes.device
        self.going_on = False

    def run(self, load_model: LoadModel, resume: bool, plan_only: bool) -> Result:
        started = time.monotonic()
        record = read_record(self.folder) if resume else None
        self.going_on = record is not None
        settings = going_on(self.asked, record) if record else self.asked
        check_available(settings.optimizer)
        # resolved settings name every subject, asked ones leave that to the folders
        subjects, notes = find_subjects(self.asked)
        if settings.select_best and len(subjects) > 1:
            raise DreamBoothError("The best weights can be found for one subject only. Turn that off.")
        for note in notes:
            self.report.warning(note)
        self.report.say(f"Loading {settings.base.name}")
        # a LoRA leaves the model as it is, and most files are in half precision anyway
        half = settings.kind == "LoRA" and self.device.type == "cuda"
        model = load_model(settings.base, CPU, torch.float16 if half else torch.float32)
        check_weights(model)
        model.vae.float()
        sizes = replace(read_base(settings.base).sizes, resolution=model.resolution)  # of SD2 a header may only guess
        start = None
        if settings.continue_from is not None:
            start = read_lora(settings.continue_from, model)
            settings = start.shaping(settings)
        if record is None:
            counts = [len(subject.photos) for subject in subjects]
            settings = resolved(settings, photos=counts, resolution=model.resolution, unet_parameters=sizes.unet)
            subjects = named(subjects, settings.seed, model, self.report.warning)
            first, *more = (subject.concept for subject in subjects)
            settings = replace(settings, class_noun=first.class_noun, identifier=first.identifier, concepts=tuple(more))
        elif len(subjects) == len(settings.all_concepts):
            subjects = with_identifiers(subjects, [concept.identifier for concept in settings.all_concepts])
        else:
            raise DreamBoothError(f"The folders of the photos have changed: put them back, or {ANOTHER}.")
        count, sharded = self.processes.count, self.processes.is_sharded
        plan = plan_training(settings, sizes, self.device, processes=count, sharded=sharded)
        if record is not None:
            plan = replace(plan, **planned(record, PLAN_FIELDS))
        plan = replace(plan, notes=(*companions_told(subjects, settings), *plan.notes))
        self._tell(settings, plan, model, subjects, resume)
        self._plan_event(settings, plan, None)
        if plan_only:
            return Result((), settings.subjects)
        self._record(settings, plan, model, subjects, record, start)
        trainer, export = self._trainer(settings, plan, model, subjects, start)
        if resume:
            there = trainer.restore()
            self.report.say(f"Resuming after step {trainer.position}." if there else "Starting from the beginning.")
        trainer.train()
        return self._finish(trainer, export, time.monotonic() - started)

    def _tell(
        self,
        settings: TrainingSettings,
        plan: TrainingPlan,
        model: TrainingModel,
        subjects: Sequence[Subject],
        resume: bool,
    ) -> None:
        """The start, in the log, and the plan on the console."""
        photos = sum(len(subject.photos) for subject in subjects)
        self.report.event(
            "start",
            name=settings.name,
            kind=settings.kind,
            base=model.name,
            photos=photos,
            identifier=settings.identifier,
            subject=settings.subjects,
            resumed=resume,
            pid=os.getpid(),
        )
        what = "A LoRA" if settings.kind == "LoRA" else "Full training"
        names = " and ".join(f'"{concept.subject}"' for concept in settings.all_concepts)
        self.report.say(
            f"{what} of {names} from {counted(photos, 'photo')}: {settings.steps} steps with {plan.optimizer} in "
            f"{plan.precision} on {device_words(self.device)}."
        )
        for note in (*plan.notes, *self.processes.notes):
            self.report.say(note)

    def _plan_event(self, settings: TrainingSettings, plan: TrainingPlan, seconds: float | None) -> None:
        base, words = read_base(settings.base), device_words(self.device)
        self.report.event("plan", **plan_fields(settings, plan, base, words, seconds, self.processes.notes))

    def _record(
        self,
        settings: TrainingSettings,
        plan: TrainingPlan,
        model: TrainingModel,
        subjects: Sequence[Subject],
        record: dict[str, Any] | None,
        start: LoraStart | None,
    ) -> None:
        """Keeps what the training is, or compares it with what was kept. DreamBoothError when base or photos differ."""
        pictures = photos_digest([p for subject in subjects for p in (*subject.photos, *subject.class_photos)])
        begun_from = "" if start is None else start.sha256
        if record is not None:
            if record.get("base") != model.sha256:
                raise DreamBoothError(f"This run was started with another base model. Use the same, or {ANOTHER}.")
            if record.get("photos") != pictures:
                raise DreamBoothError(f"The photos have changed since this run started. Restore them, or {ANOTHER}.")
            if record.get("continue_from", "") != begun_from:
                raise DreamBoothError(f"This run was started from another LoRA. Use the same, or {ANOTHER}.")
        if self.processes.is_main:
            asked = to_json(self.asked)
            if record is not None:
                asked = {**record["asked"], **{name: asked[name] for name in (*PATHS, "concepts", "steps")}}
            plan_values = {name: getattr(plan, name) for name in PLAN_FIELDS}
            kept = {"asked": asked, "resolved": to_json(settings), "plan": plan_values}
            content = {"base": model.sha256, "photos": pictures, "continue_from": begun_from}
            write_record(self.folder, {**kept, **content})

    def _trainer(
        self,
        settings: TrainingSettings,
        plan: TrainingPlan,
        model: TrainingModel,
        subjects: Sequence[Subject],
        start: LoraStart | None,
    ) -> tuple[Trainer, Export]:
        """The trainer, with the model on the device and the photos encoded."""
        nn.Module.to(model.unet, self.device, plan.weight_dtype)  # diffusers' own warns without a reason
        if settings.train_text or plan.text_on_device:
            # fp16, as a LoRA's base is loaded, is for trainings only that scale their loss
            dtype = plan.weight_dtype if settings.kind == "LoRA" else torch.float32
            for encoder in model.encoders:
                encoder.to(self.device, dtype)
        if not self.going_on:
            seconds = seconds_needed(model, settings, plan)
            self._plan_event(settings, plan, seconds)
            self.report.say(f"It will take about {duration(seconds)}.")
        maker = Maker(model, settings, plan, self.folder, self.report, self.cancelled)
        data = self.processes.main_first(lambda: maker.data(subjects))
        model.vae.to(CPU)
        release_memory(self.device)
        if plan.checkpointing:
            unet: Any = model.unet  # diffusers'
            unet.enable_gradient_checkpointing()
        judge = None
        if settings.select_best:
            judge = self.find_judge(subjects[0].photos, settings, self.device) if self.find_judge else None
            if judge is None:
                self.report.warning(
                    "There is no CLIP model to score samples (see docs/dreambooth.md), so the last weights are kept."
                )
        for photo in (photo for subject in subjects for photo in (*subject.photos, *subject.class_photos)):
            photo.let_go()
        lora = None
        if settings.kind == "LoRA":
            text, seed = settings.train_text, settings.seed
            layers = {} if start is None else start.layers
            lora = LoraSet(
                model, settings.rank, settings.true_alpha, settings.convolutions, text, seed, layers
            ).inject()
        if self.processes.is_sharded:
            nn.Module.to(model.unet, CPU)  # whole it need not fit any more
            release_memory(self.device)
        self.processes.spread(model.unet)
        export = Export(model, settings, lora, self.report, self.processes)
        begun_from = "" if start is None else start.sha256
        trainer = Trainer(
            model,
            data,
            settings,
            plan,
            self.folder,
            self.report,
            self.cancelled,
            lora=lora,
            identity=self._identity(settings, plan, model, data.fingerprint(), begun_from),
            older=self._identity(settings, plan, model, data.fingerprint(bits=True), begun_from),
            class_texts=class_texts(subjects, settings),
            processes=self.processes,
            viewer=Viewer(
                model,
                settings,
                self.folder,
                self.report,
                judge,
                parts=drawing_parts(
                    plan, model, None if lora is None else lora.move, movable=not self.processes.is_sharded
                ),
                cancelled=self.cancelled,
                processes=self.processes,
            ),
            keep=lambda step: export.write(
                self.folder / KEPT / f"{settings.name}-{step:06d}{ENDING}", facts_of(trainer, step)
            ),
        )
        return trainer, export

    def _identity(
        self, settings: TrainingSettings, plan: TrainingPlan, model: TrainingModel, data: str, begun_from: str
    ) -> str:
        """Names all that the steps depend on."""
        return digest(
            {
                "settings": steps_depend_on(settings),
                "plan": {name: getattr(plan, name) for name in PLAN_FIELDS},
                "base": model.sha256,
                "data": data,
                "processes": self.processes.count,
                **({"continue_from": begun_from} if begun_from else {}),
            }
        )

    def _finish(self, trainer: Trainer, export: Export, seconds: float) -> Result:
        settings, step = trainer.settings, trainer.position
        best = trainer.best.step or None
        if not self.processes.takes_part:
            self.processes.wait()
            return Result((), settings.subjects, best)
        assert trainer.viewer is not None
        if best is not None:
            step = best
            trainer.trained.load_state_dict(best_weights(self.folder, best))
        with contextlib.nullcontext() if best is not None else trainer.averaged():
            path = settings.out / f"{settings.name}{ENDING}"
            note = f"{step} steps, rate {settings.rate:g}, seed {settings.seed}, from {export.model.name}"
            files = export.write_all(path, facts_of(trainer, step), trainer.viewer, note)
        self.report.event(
            "done",
            files=[file.name for file in files],
            identifier=settings.identifier,
            subject=settings.subjects,
            activation=activation_of(settings),
            seconds=round(seconds, 1),
            best_step=best,
        )
        self.report.say(f"Done after {duration(seconds)}.")
        self.processes.wait()
        return Result(files, settings.subjects, best)
