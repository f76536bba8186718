"""The sigma schedules that can be chosen beside the sampler ("Schedule type")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from standalone.engine import names, schedules


@dataclass
class Scheduler:
    """`function(n=, sigma_min=, sigma_max=, device=[, rho=][, inner_model=])` gives sigmas; None: the sampler's own."""

    name: str
    label: str
    function: Callable[..., Any] | None
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list[str] | None = None


schedulers = [
    Scheduler("automatic", "Automatic", None),
    Scheduler("uniform", "Uniform", schedules.uniform, need_inner_model=True),
    Scheduler("karras", "Karras", schedules.karras, default_rho=7.0),
    Scheduler("exponential", "Exponential", schedules.exponential),
    Scheduler("polyexponential", "Polyexponential", schedules.polyexponential, default_rho=1.0),
    Scheduler("sgm_uniform", "SGM Uniform", schedules.sgm_uniform, need_inner_model=True, aliases=["SGMUniform"]),
    Scheduler("kl_optimal", "KL Optimal", schedules.kl_optimal),
    Scheduler("align_your_steps", "Align Your Steps", schedules.align_your_steps, need_inner_model=True),
    Scheduler("simple", "Simple", schedules.simple, need_inner_model=True),
    Scheduler("normal", "Normal", schedules.normal, need_inner_model=True),
    Scheduler("ddim", "DDIM", schedules.ddim, need_inner_model=True, aliases=["ddim_uniform"]),
]
schedulers_map = {**{x.name: x for x in schedulers}, **{x.label: x for x in schedulers}}


def find_scheduler(name: str | None) -> Scheduler | None:
    """The schedule with this label, name or alias, in any case; the first one, "Automatic", for None and ""."""
    if not name:
        return schedulers[0]
    label = names.find_schedule(name, labels())
    return next((item for item in schedulers if item.label == label), None)


def labels() -> dict[str, tuple[str, ...]]:
    """Labels, and the other names of each."""
    return {item.label: (item.name, *(item.aliases or [])) for item in schedulers}
