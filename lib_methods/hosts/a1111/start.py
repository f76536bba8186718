"""Where a sampler of AUTOMATIC1111's WebUI starts, which levels it goes through, and the noise that it adds.

The host works that out when it starts sampling, from a dozen settings. So that nothing is worked out twice and
differently, the host's own code is run up to the sampler's function, on copies of the job and of the sampler, with a
function in the place of the sampler's that only looks at what it is given. What the host asks other extensions on the
way (for extra noise, say), it asks them once more.

How much noise a sampler adds while it runs is an argument of its function: `eta` (ancestral, SDE and DDIM samplers),
`s_churn` (Euler, Heun and DPM2 of Karras et al. 2022). At 0 all of these samplers are deterministic; one that takes
noise without such an argument (LCM) cannot do without it.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lib_methods.denoiser import OwnNoise, Unsupported
from lib_methods.denoiser.levels import Levels

CHOOSES_LEVELS = "{} chooses its noise levels during sampling. Choose another sampler."
GOES_UP = "{} goes back to higher noise. Choose another sampler, or fewer than {} steps."
_RESTARTS_FROM = 20  # steps from which the sampler "Restart" goes back up


@dataclass(frozen=True)
class Start:
    """What a sampler is given, in sigma space.

    latents: (batch, 4, h, w), float32, at the first of `sigmas`. sigmas: falling, see `Editing.sigmas`; empty
    where `obstacle` says why they are not known. The rest: see `Editing`.
    """

    latents: Tensor
    sigmas: Tensor
    is_stochastic: bool
    needs_noise: bool
    own_noise: OwnNoise | None
    obstacle: str = ""


class _Reached(Exception):
    """The host has called the sampler's function."""


def rehearse(p: Any, latent: Tensor, noise: Tensor | None, levels: Levels) -> Start:
    """What the sampler of `p` will be given.

    p: the host's job, in `process_before_every_sampling`. latent, noise: the `x` and the `noise` of that method; no
    noise where the host starts from noise alone. Neither they nor the job are changed.

    Raises `Unsupported` where the host's sampler cannot be looked into.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    sampler, job = copy.copy(p.sampler), copy.copy(p)
    give_copy(p.sampler, sampler)
    job.extra_generation_params = dict(p.extra_generation_params)
    function: Callable[..., Any] = sampler.func

    @functools.wraps(function)
    def look(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))
        raise _Reached

    sampler.func = look
    sampler.launch_sampling = lambda steps, run: run()
    sampler.model_wrap_cfg = SimpleNamespace()  # the host writes the job into it
    try:
        if noise is None:
            sampler.sample(job, latent, None, None, image_conditioning=None)
        else:
            second = bool(getattr(p, "is_hr_pass", False))
            steps = (getattr(p, "hr_second_pass_steps", 0) or p.steps) if second else None
            sampler.sample_img2img(job, latent, noise, None, None, steps=steps, image_conditioning=None)
    except _Reached:
        pass
    except Exception as error:
        raise Unsupported(f"{_name(p.sampler)} does not report its first noise level.") from error
    if not seen:
        raise Unsupported(f"{_name(p.sampler)} does not report its first noise level.")
    (args, kwargs), parameters = seen[0], inspect.signature(function).parameters
    given = {name: value.default for name, value in parameters.items() if value.default is not inspect.Parameter.empty}
    given.update(inspect.signature(function).bind(*args, **kwargs).arguments)
    return _read(p, function.__name__, given, levels)


def _name(sampler: Any) -> str:
    config = getattr(sampler, "config", None)
    return f'The sampler "{getattr(config, "name", "of this job")}"'


def _read(p: Any, function: str, given: dict[str, Any], levels: Levels) -> Start:
    x: Tensor = given["x"]
    in_alpha_space = "timesteps" in given
    sigmas, obstacle = torch.zeros(0), ""
    if in_alpha_space:
        sigmas = torch.tensor([levels.sigma(t) for t in _timesteps(function, given, levels)])
    else:
        falling = given.get("sigmas", given.get("sigma_sched"))
        if falling is None:
            obstacle = CHOOSES_LEVELS.format(_name(p.sampler))
        else:
            sigmas = falling.detach().float().cpu()
    if not obstacle and len(sigmas) < 2:
        obstacle = f"{_name(p.sampler)} takes no steps with these settings. Increase the steps."
    restarts = "restart_list" in given and (len(sigmas) > _RESTARTS_FROM or given["restart_list"] is not None)
    if restarts:
        obstacle = GOES_UP.format(_name(p.sampler), _RESTARTS_FROM)
    latents = x.detach().float()
    if in_alpha_space and len(sigmas):
        latents = latents * (1 + float(sigmas[0]) ** 2) ** 0.5
    sigmas = torch.zeros(0) if obstacle else sigmas
    adds, needs = restarts or adds_noise(given), restarts or needs_noise(given)
    return Start(latents.clone(), sigmas, adds, needs, own_noise(function, given), obstacle)


def _timesteps(function: str, given: dict[str, Any], levels: Levels) -> list[float]:
    """The timesteps of the calls, falling, and the one where the sampler ends without asking."""
    rising = [float(t) for t in given["timesteps"]]
    if is_unipc(function) and rising:
        from modules import shared

        start = rising[-1] if given.get("is_img2img") else levels.last
        return levels.unipc(len(rising), start, shared.opts.uni_pc_skip_type)
    return rising[::-1]


def obstacle_of(sampler: Any, steps: int) -> str:
    """Why the latents of a sampler cannot be edited at so many steps, in a sentence; empty where they can, or where its
    function is not known."""
    if sampler.func is None:
        return ""
    parameters = inspect.signature(sampler.func).parameters
    if not {"timesteps", "sigmas", "sigma_sched"} & parameters.keys():
        return CHOOSES_LEVELS.format(_name(sampler))
    goes_up = "restart_list" in parameters and steps >= _RESTARTS_FROM
    return GOES_UP.format(_name(sampler), _RESTARTS_FROM) if goes_up else ""


def is_unipc(function: str) -> bool:
    """Whether a sampler's function is UniPC, which asks the model about latents that it then corrects."""
    return "unipc" in function


def is_plms(function: str) -> bool:
    """Whether a sampler's function is PLMS, whose first step alone has two calls."""
    return "plms" in function


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
        raise Unsupported("The noise of this WebUI's samplers cannot be set.")
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
    """See `Editing`; function: the name of the sampler's, given: its arguments."""
    if function != "sample_euler_ancestral" or not given.get("eta"):
        return None
    return OwnNoise(float(given["eta"]), float(given.get("s_noise", 1.0)))
