"""Reaches into a host's samplings: what a method does there, and what the sampler's denoiser really gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from lib_methods import hosts
from lib_methods.denoiser import DenoiserCall, Position, Sampling, editing_of
from tests.fabric.small_model import picture
from tests.standalone.conftest import Running

KINDS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"init_images": [picture(7)], "denoising_strength": 0.7},
    "Hires.fix": {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.6,
        "hr_second_pass_steps": 3,
    },
}
DETERMINISTIC: dict[str, dict[str, Any]] = {
    "Euler": {},
    "Heun": {},
    "DPM++ 2M": {},
    "DDIM": {},
    "UniPC": {},
    "Euler a": {"eta": 0.0},
    "DPM++ SDE": {"eta": 0.0},
    "DPM++ 2M SDE": {"eta": 0.0},
}
CASES = [
    (sampler, kind) for sampler, fields in DETERMINISTIC.items() for kind in KINDS if kind == "txt2img" or not fields
]
Act = Callable[[Sampling], None]


def job(kind: str, sampler: str, **fields: Any) -> dict[str, Any]:
    """A job of four steps whose last sampling is of this kind."""
    settings = {"sampler_name": sampler, "steps": 4, **DETERMINISTIC.get(sampler, {}), **KINDS[kind], **fields}
    return {"kind": "img2img" if kind == "img2img" else "txt2img", **settings}


class _Scripts:
    """A host's script runner with one more script: `act` on every sampling of the pass that counts."""

    def __init__(self, runner: Any, act: Act, second: bool) -> None:
        self._runner, self._act, self._second = runner, act, second

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def process_before_every_sampling(self, p: Any, x: Tensor, noise: Tensor, **kwargs: Any) -> None:
        self._runner.process_before_every_sampling(p, x=x, noise=noise, **kwargs)
        if p.is_hr_pass == self._second:
            self._act(hosts.sampling_of(p, x, noise))


@contextmanager
def acting(host: Running, act: Act, second: bool) -> Iterator[None]:
    """Within the block, `act` is a script of the host's jobs; second: in the second pass of Hires.fix only."""
    made = host.make

    def make(*args: Any, **kwargs: Any) -> Any:
        p = made(*args, **kwargs)
        p.scripts = _Scripts(p.scripts, act, second)
        return p

    with patch.object(host, "make", make):
        yield


def latents(host: Running, fields: dict[str, Any], act: Act | None = None) -> Tensor:
    """What the last sampling of a job returns, with `act` as a script."""
    if act is None:
        return host.latents(**fields)
    with acting(host, act, bool(fields.get("enable_hr"))):
        return host.latents(**fields)


@dataclass
class Seen:
    """What the host's denoiser was asked, call by call: its latents in the sampler's own scale, its level."""

    x: list[Tensor] = field(default_factory=list)
    level: list[float] = field(default_factory=list)

    def last_pass(self, size: int) -> Seen:
        """Of a pass with latents this wide."""
        kept = [i for i, x in enumerate(self.x) if x.shape[3] == size]
        return Seen([self.x[i] for i in kept], [self.level[i] for i in kept])


@contextmanager
def watched() -> Iterator[Seen]:
    """Writes down what the host's denoiser is asked, after all editors."""
    from modules.sd_samplers_cfg_denoiser import CFGDenoiser

    seen, forward = Seen(), CFGDenoiser.forward

    def watching(self: Any, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.x.append(x.clone())
        seen.level.append(float(sigma[0]))
        return forward(self, x, sigma, *args, **kwargs)

    with patch.object(CFGDenoiser, "forward", watching):
        yield seen


def in_sigmas(sampler: str, levels: list[float]) -> Tensor:
    """Levels of the host's denoiser as sigmas: timesteps may lie between two of the schedule's."""
    from modules import shared

    if sampler not in ("DDIM", "UniPC"):
        return torch.tensor(levels)
    log_abar = shared.sd_model.alphas_cumprod.double().log()
    low = [min(int(t), len(log_abar) - 2) for t in levels]
    abar = torch.stack([log_abar[i] + (t - i) * (log_abar[i + 1] - log_abar[i]) for t, i in zip(levels, low)]).exp()
    return ((1 - abar) / abar).sqrt().float()


class Mover:
    """An editor that adds a fixed move at the first call of every step, and writes down where it was asked."""

    def __init__(self, moves: list[Tensor]) -> None:
        self.moves = moves
        self.sampling: Sampling
        self.asked: list[Position] = []
        self.seen: list[Tensor] = []

    def __call__(self, sampling: Sampling) -> None:
        """As a script."""
        self.sampling = sampling
        editing_of(sampling).add_editor(self)

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        position = editing_of(self.sampling).position(call)
        self.asked.append(position)
        self.seen.append(latents)
        if not position.starts_step or not self.moves:
            return latents
        return latents + self.moves[position.step]


def random(shape: Any, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((one - other).abs().max() / other.abs().max())
