"""A whole training run, from the folder of photos to the file, or of a cascade the folders, that a WebUI loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock

from lib_methods.cascade.folder import is_cascade
from lib_methods.device import repeatable
from lib_methods.dreambooth.cascade import CascadeJob
from lib_methods.dreambooth.job import FindJudge, LoadModel, Run
from lib_methods.dreambooth.output.result import ENDING, Result
from lib_methods.dreambooth.output.stage_folder import result_folder
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.processes import start_processes
from lib_methods.dreambooth.training.state import CANCEL, LOCK, take_folder
from lib_methods.errors import UserError
from lib_methods.jobs.log import Report, Say


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

    resume: continue from the state in the run's folder, from the start where there is none yet. plan_only: only say
    what would be done. find_judge: who judges samples for `select_best`. device: None for the GPU if there is one.
    Raises Cancelled when cancelled and UserError, both with a sentence.
    """
    processes = start_processes(device)
    settings = replace(settings, out=Path(settings.out).expanduser().resolve())
    folder = settings.out / settings.name
    lock = FileLock(folder / LOCK)
    try:
        if not plan_only:
            result = result_folder(settings) if is_cascade(settings.base) else settings.out / f"{settings.name}{ENDING}"
            processes.on_main(lambda: take_folder(folder, result, lock, resume), None)
        processes.wait()
        report = Report(None if plan_only else folder, say, quiet=processes.rank > 0)
        memory, kept = "Set a limit, for example --memory 8GB.", "What was saved before is still there."
        with report.ending("Training", memory, kept), repeatable(processes.device):
            stop = lambda: cancelled() or (folder / CANCEL).exists()  # noqa: E731
            if is_cascade(settings.base):
                return CascadeJob(settings, folder, report, processes, stop).run(find_judge, resume, plan_only)
            if settings.stages != "both":
                raise UserError(
                    f"{settings.base.name} is not a cascade and has no stages to choose from. Leave out --stages, or "
                    "choose the folder of a pixel cascade (DeepFloyd IF) as base model."
                )
            run = Run(settings, folder, report, processes, stop)
            run.prepare(load_model, resume)
            return Result((), run.settings.subjects) if plan_only else run.train(find_judge)
    finally:
        lock.release()
        processes.close()
