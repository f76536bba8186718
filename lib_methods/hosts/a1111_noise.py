"""A sampler of AUTOMATIC1111's WebUI without the noise that it adds while it runs, or with one that is given.

How much that is, is an argument of the sampler's function: `eta` (ancestral, SDE and DDIM samplers), `s_churn` (Euler,
Heun and DPM2 of Karras et al. 2022). At 0 all of these samplers are deterministic; one that takes noise without such an
argument (LCM) cannot do without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lib_methods.denoiser import OwnNoise, Unsupported

QUIET: Mapping[str, Any] = {"eta": 0.0, "s_churn": 0.0}
SOURCES = ("noise_sampler", "noise")  # what the argument is called that gives the noise


class _Given:
    """Stands for one sampling in the place of a sampler's `initialize`, which gathers the arguments of its function.

    The job's and the host's settings stay as they are, and the infotext tells none of them that was not used.
    """

    def __init__(self, sampler: Any, changes: Mapping[str, Any]) -> None:
        self.sampler, self.changes, self._own = sampler, changes, vars(sampler).get("initialize")

    def __call__(self, p: Any) -> dict[str, Any]:
        self.give_back()
        sampler, told = self.sampler, p.extra_generation_params
        labels = {"eta": getattr(sampler, "eta_infotext_field", "Eta"), "s_churn": "Sigma churn"}
        before = dict(told)
        arguments: dict[str, Any] = sampler.initialize(p)
        parameters = inspect.signature(sampler.func).parameters
        for name, value in self.changes.items():
            if name not in parameters or (name in arguments and arguments[name] == value):
                continue
            arguments[name] = value
            if name == "eta":
                sampler.eta = value
            label = labels.get(name, "")
            told.pop(label, None)
            if label in before:
                told[label] = before[label]
        return arguments

    def give_back(self) -> None:
        """The sampler as it was."""
        vars(self.sampler).pop("initialize", None)
        if self._own is not None:
            self.sampler.initialize = self._own


def give(sampler: Any, changes: Mapping[str, Any]) -> None:
    """Let the sampler's function have these arguments in the sampling that comes next, as far as it takes them; {} for
    its own again. Raises `Unsupported` where the host has no place for that."""
    given = vars(sampler).get("initialize")
    if isinstance(given, _Given):
        given.give_back()
    if not changes:
        return
    if not callable(getattr(sampler, "initialize", None)):
        raise Unsupported("This WebUI's samplers do not let their noise be set.")
    sampler.initialize = _Given(sampler, changes)


def give_copy(sampler: Any, copy: Any) -> None:
    """Let a fresh copy of a sampler have what the sampler was given."""
    given = vars(sampler).get("initialize")
    if isinstance(given, _Given):
        vars(copy).pop("initialize")
        give(copy, given.changes)


def adds_noise(given: Mapping[str, Any]) -> bool:
    """Whether a sampler adds noise, by the arguments of its function, defaults included."""
    if any(name in given for name in QUIET):
        return any(bool(given.get(name)) for name in QUIET)
    return needs_noise(given)


def needs_noise(given: Mapping[str, Any]) -> bool:
    """Whether a sampler cannot run without noise."""
    if any(name in given for name in QUIET) or "restart_list" in given:
        return False
    return any(name in given for name in SOURCES)


def own_noise(function: str, given: Mapping[str, Any]) -> OwnNoise | None:
    """See `EditSampling`; function: the name of the sampler's, given: its arguments."""
    if function != "sample_euler_ancestral" or not given.get("eta"):
        return None
    return OwnNoise(float(given["eta"]), float(given.get("s_noise", 1.0)))


def give_noise(sampler: Any, noise: Callable[[], Tensor]) -> None:
    """Let the sampler take its noise from here in the sampling that comes next."""

    def source(sigma: Any, following: Any) -> Tensor:
        return noise()

    give(sampler, dict.fromkeys(SOURCES, source))
