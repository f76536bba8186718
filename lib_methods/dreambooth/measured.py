"""What earlier trainings of the tab have taken for a step, from their logs: the best forecast of one like them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import DreamBoothError
from .header_sizes import BaseModel, read_base
from .job_files import JobFiles, all_records
from .memory import PLAN_FIELDS, Plan
from .record import from_json
from .settings import TrainingSettings
from .state import RECORD, read_record
from .training_log import LogReader, number

_MOST_LOOKED_AT = 20
_FEWEST_STEPS = 5  # the first ones are slower
_SETTINGS = ("kind", "rank", "convolutions", "train_text", "prior", "resolution")


def seconds_per_step(root: Path, base: BaseModel, settings: TrainingSettings, plan: Plan, device: str) -> float | None:
    """That of the newest training in the folder `root` that did the same work: on this device, with a base model of
    the same sizes, these settings and this plan. None where there is none."""
    for record in all_records(root)[:_MOST_LOOKED_AT]:
        files = JobFiles(root, record.name)
        try:
            marks = [(file.stat().st_mtime_ns, file.stat().st_size) for file in (files.training / RECORD, files.log)]
        except OSError:
            continue
        found = _facts(files, tuple(marks))
        if found is None or found[1:] != (device, base.sizes, _of(settings, _SETTINGS), _of(plan, PLAN_FIELDS)):
            continue
        return float(found[0])
    return None


@lru_cache(maxsize=_MOST_LOOKED_AT)
def _facts(files: JobFiles, marks: object) -> tuple[Any, ...] | None:
    """Seconds a step, and what they depend on; None where the training did not come far or cannot be read."""
    progress = LogReader(files.log).read()
    pace = number(progress.of("step").get("seconds_per_step"))
    if not pace or progress.step < _FEWEST_STEPS:
        return None
    try:
        record = read_record(files.training) or {}
        settings = from_json(record["resolved"])
        plan = {name: record["plan"][name] for name in PLAN_FIELDS}
        sizes = read_base(settings.base).sizes
    except (DreamBoothError, KeyError, TypeError, ValueError, OSError):
        return None
    return pace, progress.of("plan").get("device"), sizes, _of(settings, _SETTINGS), tuple(plan.values())


def _of(holder: object, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(getattr(holder, name) for name in names)
