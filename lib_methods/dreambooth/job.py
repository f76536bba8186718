"""The training run of one model, from the folder of photos to the file that a WebUI loads."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib_methods.device import CPU, DTYPES, device_words, release_memory
from lib_methods.dreambooth.model.base import BaseModel, prediction_told, read_base
from lib_methods.dreambooth.model.identifier import named
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TrainingModel, check_weights
from lib_methods.dreambooth.output.lora_file import LoraStart, read_lora
from lib_methods.dreambooth.output.result import ENDING, Export, Result, activation_of, facts_of
from lib_methods.dreambooth.photos.image import Photo, photos_digest
from lib_methods.dreambooth.photos.subjects import Subject, companions_told, counted, find_subjects, with_identifiers
from lib_methods.dreambooth.settings import PATHS, TrainingSettings, resolved, to_json
from lib_methods.dreambooth.training.data import Maker, class_texts
from lib_methods.dreambooth.training.duration import plan_fields, seconds_needed
from lib_methods.dreambooth.training.optimizers import check_available
from lib_methods.dreambooth.training.plan import PLAN_FIELDS, TrainingPlan, plan_training
from lib_methods.dreambooth.training.processes import Processes
from lib_methods.dreambooth.training.sampler import generation_parts
from lib_methods.dreambooth.training.samples import Judge, Viewer, best_weights
from lib_methods.dreambooth.training.state import (
    ANOTHER,
    digest,
    going_on,
    planned,
    read_record,
    steps_depend_on,
    write_record,
)
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.errors import UserError
from lib_methods.jobs.log import Report, duration

KEPT = "saved"  # the folder of the results that save_every keeps
LoadModel = Callable[[Path, torch.device, torch.dtype], TrainingModel]
FindJudge = Callable[[Sequence[Photo], TrainingSettings, torch.device], Judge | None]


class Run:
    """One model's run. `prepare` sets model, settings (with nothing left open), subjects and plan."""

    model: TrainingModel
    settings: TrainingSettings
    subjects: Sequence[Subject]
    plan: TrainingPlan
    is_last = True
    """Whether the job ends with this run."""
    viewer = Viewer

    def __init__(
        self, asked: TrainingSettings, folder: Path, report: Report, processes: Processes, cancelled: Callable[[], bool]
    ) -> None:
        self.asked, self.folder, self.report, self.processes = asked, folder, report, processes
        self.cancelled, self.device = cancelled, processes.device
        self.started = time.monotonic()
        self.record: dict[str, Any] | None = None
        self.resume = False
        self.start: LoraStart | None = None

    @property
    def base(self) -> BaseModel:
        """The base model by its headers."""
        return read_base(self.asked.base)

    def prepare(self, load_model: LoadModel, resume: bool) -> None:
        """Loads the model, finds the photos, chooses what was left open and plans; tells all of it."""
        self.resume = resume
        self.record = record = read_record(self.folder) if resume else None
        settings = going_on(self.asked, record) if record else self.asked
        check_available(settings.optimizer)
        # resolved settings name every subject, asked ones leave that to the folders
        subjects, notes = find_subjects(self.asked)
        if settings.select_best and len(subjects) > 1:
            raise UserError("The best weights can be chosen for one subject only. Turn that off.")
        for note in notes:
            self.report.warning(note)
        self.report.say(f"Loading {settings.base.name}")
        # a LoRA does not change the model, and most files are in half precision anyway
        half = settings.kind == "LoRA" and self.device.type == "cuda"
        self.model = model = load_model(settings.base, CPU, torch.float16 if half else torch.float32)
        check_weights(model)
        model.vae.float()
        sizes = replace(self.base.sizes, resolution=model.resolution)  # of SD2 a header may only guess
        if settings.continue_from is not None:
            self.start = read_lora(settings.continue_from, model)
            settings = self.start.shaping(settings)
        if record is None:
            counts = [len(subject.photos) for subject in subjects]
            settings = resolved(settings, photos=counts, resolution=model.resolution, unet_parameters=sizes.unet)
            subjects = named(subjects, settings.seed, model, self.report.warning)
            first, *more = (subject.concept for subject in subjects)
            settings = replace(settings, class_noun=first.class_noun, identifier=first.identifier, concepts=tuple(more))
        elif len(subjects) == len(settings.all_concepts):
            subjects = with_identifiers(subjects, [concept.identifier for concept in settings.all_concepts])
        else:
            raise UserError(f"The folders of the photos have changed: put them back, or {ANOTHER}.")
        self.settings, self.subjects = settings, subjects
        count, sharded = self.processes.count, self.processes.is_sharded
        plan = plan_training(settings, sizes, self.device, processes=count, sharded=sharded)
        if record is not None:
            plan = replace(plan, **planned(record, PLAN_FIELDS))
        told = *companions_told(subjects, settings), *prediction_told(model.parameterization, model.zero_terminal_snr)
        self.plan = replace(plan, notes=(*told, *plan.notes, *self.processes.notes))
        self._tell()

    def train(self, find_judge: FindJudge | None) -> Result:
        self._keep_record()
        trainer, export = self._trainer(find_judge)
        if self.resume:
            there = trainer.restore()
            self.report.say(f"Resuming after step {trainer.position}." if there else "Starting from the beginning.")
        trainer.train()
        return self._finish(trainer, export)

    @property
    def _photos(self) -> list[Photo]:
        """With the user's own images of the classes."""
        return [photo for subject in self.subjects for photo in (*subject.photos, *subject.class_photos)]

    @property
    def _begun_from(self) -> str:
        return "" if self.start is None else self.start.sha256

    def _tell(self) -> None:
        """The start, in the log, and the plan on the console."""
        settings, plan = self.settings, self.plan
        photos = sum(len(subject.photos) for subject in self.subjects)
        self.report.event(
            "start",
            name=settings.name,
            kind=settings.kind,
            base=self.model.name,
            photos=photos,
            identifier=settings.identifier,
            subject=settings.subjects,
            resumed=self.resume,
            pid=os.getpid(),
        )
        what = "A LoRA" if settings.kind == "LoRA" else "Full training"
        names = " and ".join(f'"{concept.subject}"' for concept in settings.all_concepts)
        self.report.say(
            f"{what} of {names} from {counted(photos, 'photo')}: {settings.steps} steps with {plan.optimizer} in "
            f"{plan.precision} on {device_words(self.device)}."
        )
        for note in plan.notes:
            self.report.say(note)
        self._plan_event(None)

    def _plan_event(self, seconds: float | None) -> None:
        words = device_words(self.device)
        self.report.event("plan", **plan_fields(self.settings, self.plan, self.base, words, seconds))

    def _keep_record(self) -> None:
        """Keeps what the run is, or compares it with what was kept. UserError when base or photos differ."""
        content = {"base": self.model.sha256, "photos": photos_digest(self._photos), "continue_from": self._begun_from}
        asked = to_json(self.asked)
        if self.record is not None:
            if self.record.get("base") != content["base"]:
                raise UserError(f"This run was started with another base model. Use the same, or {ANOTHER}.")
            if self.record.get("photos") != content["photos"]:
                raise UserError(f"The photos have changed since this run started. Restore them, or {ANOTHER}.")
            if self.record.get("continue_from", "") != content["continue_from"]:
                raise UserError(f"This run was started from another LoRA. Use the same, or {ANOTHER}.")
            asked = {**self.record["asked"], **{name: asked[name] for name in (*PATHS, "concepts", "steps")}}
        told = {"asked": asked, "resolved": to_json(self.settings), "plan": self.plan.fields, **content}
        self.processes.on_main(lambda: write_record(self.folder, told), None)

    def _trainer(self, find_judge: FindJudge | None) -> tuple[Trainer, Export]:
        """The trainer, with the model on the device and the photos encoded."""
        model, settings, plan, processes = self.model, self.settings, self.plan, self.processes
        nn.Module.to(model.unet, self.device, DTYPES[plan.weights])  # diffusers' own warns without a reason
        if settings.train_text:
            # fp16, as a LoRA's base is loaded, is for runs only that scale their loss
            dtype = DTYPES[plan.weights] if settings.kind == "LoRA" else torch.float32
            for encoder in model.encoders:
                encoder.to(self.device, dtype)
        if self.record is None:
            seconds = seconds_needed(model, settings, plan)
            self._plan_event(seconds)
            self.report.say(f"It will take about {duration(seconds)}.")
        maker = Maker(model, settings, plan, self.folder, self.report, self.cancelled)
        data = processes.main_first(lambda: maker.data(self.subjects))
        model.vae.to(CPU)
        release_memory(self.device)
        if plan.checkpointing:
            unet: Any = model.unet  # diffusers'
            unet.enable_gradient_checkpointing()
        judge = None
        if settings.select_best:
            judge = find_judge(self.subjects[0].photos, settings, self.device) if find_judge else None
            if judge is None:
                self.report.warning(
                    "There is no CLIP model to score samples (see docs/dreambooth.md), so the last weights are kept."
                )
        for photo in self._photos:
            photo.let_go()
        lora = None
        if settings.kind == "LoRA":
            layers = {} if self.start is None else self.start.layers
            shape = (settings.rank, settings.true_alpha, settings.convolutions, settings.train_text)
            lora = LoraSet(model, *shape, settings.seed, layers).inject()
        processes.spread(model.unet)
        export = self._export(lora)
        trainer = Trainer(
            model,
            data,
            settings,
            plan,
            self.folder,
            self.report,
            self.cancelled,
            lora=lora,
            identity=self._identity(data.fingerprint()),
            older=self._identity(data.fingerprint(bits=True)),
            class_texts=class_texts(self.subjects, settings),
            processes=processes,
            viewer=self._viewer(lora, judge),
            keep=lambda step: export.write(
                self.folder / KEPT / f"{settings.name}-{step:06d}{ENDING}", facts_of(trainer, step)
            ),
            **self._more(),
        )
        return trainer, export

    # -- what a stage of a cascade has in another way

    def _export(self, lora: LoraSet | None) -> Export:
        return Export(self.model, self.settings, lora, self.report, self.processes)

    def _viewer(self, lora: LoraSet | None, judge: Judge | None) -> Viewer:
        follow, movable = None if lora is None else lora.move, not self.processes.is_sharded
        parts = generation_parts(self.plan, self.model, follow, movable=movable)
        return self.viewer(
            self.model,
            self.settings,
            self.folder,
            self.report,
            judge,
            parts=parts,
            cancelled=self.cancelled,
            processes=self.processes,
        )

    def _more(self) -> dict[str, Any]:
        """More arguments of the trainer."""
        return {}

    def _identity(self, data: str) -> str:
        """Names all that the steps depend on."""
        return digest(
            {
                "settings": steps_depend_on(self.settings),
                "plan": self.plan.fields,
                "base": self.model.sha256,
                "data": data,
                "processes": self.processes.count,
                **({"continue_from": self._begun_from} if self._begun_from else {}),
            }
        )

    def _finish(self, trainer: Trainer, export: Export) -> Result:
        settings = self.settings
        best = trainer.best.step or None

        def write() -> tuple[Path, ...]:
            if best is not None:
                trainer.trained.load_state_dict(best_weights(self.folder, best))
            step = best or trainer.position
            with contextlib.nullcontext() if best is not None else trainer.averaged():
                path = settings.out / f"{settings.name}{ENDING}"
                note = f"{step} steps, rate {settings.rate:g}, seed {settings.seed}, from {self.model.name}"
                return export.write_all(path, facts_of(trainer, step), trainer.viewer, note)

        files: tuple[Path, ...] = self.processes.once(write, ())
        result = Result(files, settings.subjects, best)
        if not self.is_last:
            return result
        seconds = time.monotonic() - self.started
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
        return result
