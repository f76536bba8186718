"""Editors: what the sampler continues with, against plain sampler loops, in the standalone host."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods.denoiser import DenoiserCall, Sampling, editing_of
from tests.hosts.seam import Mover, job, latents, random, spread
from tests.standalone.conftest import Running

Denoise = Callable[[Tensor, float], Tensor]
Move = Callable[[int, Tensor], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: list[float], move: Move) -> Tensor:
    """Also DDIM, in sigma space."""
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        x = move(i, x)
        x = x + (after - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: list[float], move: Move) -> Tensor:
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        x = move(i, x)
        slope = (x - denoise(x, sigma)) / sigma
        if after > 0:
            ahead = x + (after - sigma) * slope
            slope = (slope + (ahead - denoise(ahead, after)) / after) / 2
        x = x + (after - sigma) * slope
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: list[float], move: Move) -> Tensor:
    before: tuple[Tensor, float] | None = None
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        x = move(i, x)
        denoised = target = denoise(x, sigma)
        if after == 0:
            return denoised
        h = math.log(sigma / after)
        if before is not None:
            target = denoised + (denoised - before[0]) * h / (2 * before[1])
        x = (after / sigma) * x + (1 - after / sigma) * target
        before = denoised, h
    return x


def unipc_1(denoise: Denoise, x: Tensor, sigmas: list[float], move: Move) -> Tensor:
    """UniPC of order 1 with bh1 in sigma space (Zhao et al. 2023, algorithm 1): what is asked about and what the
    sampler goes on from are moved by as much."""
    x = move(0, x)
    denoised = denoise(x, sigmas[0])
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        foreseen = (after / sigma) * x + (1 - after / sigma) * denoised
        if i == len(sigmas) - 2:
            return foreseen
        moved = move(i + 1, foreseen)
        answer = denoise(moved, after)
        x = foreseen + 0.5 * math.log(sigma / after) * (answer - denoised) + (moved - foreseen)
        denoised = answer
    return x


LOOPS: dict[str, Callable[[Denoise, Tensor, list[float], Move], Tensor]] = {
    "Euler": euler,
    "Heun": heun,
    "DPM++ 2M": dpmpp_2m,
    "DDIM": euler,
    "UniPC": unipc_1,
}


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "Hires.fix"])
@pytest.mark.parametrize("sampler", LOOPS)
def test_the_sampler_goes_on_from_what_the_editor_returns(host: Running, sampler: str, kind: str) -> None:
    from modules import shared

    shared.opts.data["uni_pc_order"] = 1
    known: dict[str, Any] = {}

    def script(sampling: Sampling) -> None:
        cond, uncond = editing_of(sampling).embed(["a red circle"]), editing_of(sampling).embed(["grey"])

        def guided(x: Tensor, sigma: float) -> Tensor:
            base = editing_of(sampling).predict(x, sigma, uncond)
            return base + 3.0 * (editing_of(sampling).predict(x, sigma, cond) - base)

        start, sigmas = editing_of(sampling).start_latent(), [float(sigma) for sigma in editing_of(sampling).sigmas]
        mover.moves = [0.2 * sigma * random(start.shape, i) for i, sigma in enumerate(sigmas[:-1])]
        end = LOOPS[sampler](guided, start, sigmas, lambda i, x: x + mover.moves[i])
        known["end"] = end / (editing_of(sampling).at_end(torch.ones(1)) if sampler in ("DDIM", "UniPC") else 1)
        known["steps"] = len(sigmas) - 1
        mover(sampling)

    mover = Mover([])
    found = latents(host, job(kind, sampler), script)
    assert spread(found, known["end"]) < 2e-4
    assert [position.step for position in mover.asked if position.starts_step] == list(range(known["steps"]))
    assert mover.seen[0].dtype == torch.float32


def test_an_editor_may_put_other_latents_in_place(host: Running) -> None:
    """Whatever came before: the image is that of the latents put in at the last step."""
    ends: list[Tensor] = []

    class Replacer:
        def __init__(self, sampling: Sampling, seed: int) -> None:
            self.sampling, self.seed = sampling, seed

        def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
            step = editing_of(self.sampling).position(call).step
            return random(latents.shape, self.seed if step < 3 else 99)

    for seed in (1, 2):
        ends.append(
            latents(host, job("txt2img", "Euler"), lambda s, seed=seed: editing_of(s).add_editor(Replacer(s, seed)))  # type: ignore[misc]
        )
    assert torch.equal(*ends)


@pytest.mark.parametrize("sampler", ["Heun", "DPM++ SDE", "DDIM", "UniPC"])
def test_an_editor_without_a_change_changes_no_bit(host: Running, sampler: str) -> None:
    """Neither with the same tensor nor with a copy of it; and it is asked at every call, with its level."""

    class Copier:
        levels: list[float] = []

        def __init__(self, sampling: Sampling) -> None:
            self.sampling = sampling

        def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
            self.levels.append(editing_of(self.sampling).position(call).sigma)
            return latents.clone()

    fields = job("img2img", sampler)
    plain = latents(host, fields)
    idle = Mover([])
    assert torch.equal(latents(host, fields, idle), plain)
    assert torch.equal(latents(host, fields, lambda sampling: editing_of(sampling).add_editor(Copier(sampling))), plain)
    assert Copier.levels == [position.sigma for position in idle.asked]
    assert len(idle.asked) == {"Heun": 5, "DPM++ SDE": 5, "DDIM": 1, "UniPC": 2}[sampler]


def test_editors_start_and_editor_work_together_and_the_last_of_a_class_counts(host: Running) -> None:
    fields = job("txt2img", "Euler")
    first, second = Mover([torch.full((1, 4, 8, 8), 100.0)] * 4), Mover([])

    def script(sampling: Sampling) -> None:
        first(sampling)
        second(sampling)
        editing_of(sampling).start_from(editing_of(sampling).start_latent() + 1)

    alone = latents(
        host, fields, lambda sampling: editing_of(sampling).start_from(editing_of(sampling).start_latent() + 1)
    )
    assert torch.equal(latents(host, fields, script), alone)
    assert first.asked == []
    assert len(second.asked) == 4


def test_an_editor_is_not_asked_after_an_interrupt(host: Running) -> None:
    from modules import shared

    class Impatient(Mover):
        def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
            shared.state.interrupt()
            return super().before(call, latents)

    editor = Impatient([])
    latents(host, job("txt2img", "Euler"), editor)
    assert len(editor.asked) == 1


@pytest.mark.parametrize("sampler", ["Euler", "UniPC"])
def test_an_error_in_an_editor_leaves_nothing_behind(host: Running, sampler: str) -> None:
    from modules import sd_samplers_common, sd_samplers_timesteps, shared

    class Broken(Mover):
        def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
            if len(self.asked) == 2:
                raise RuntimeError("broken")
            return super().before(call, latents) + 1

    fields = job("txt2img", sampler)
    plain = latents(host, fields)
    with pytest.raises(RuntimeError, match="broken"):
        latents(host, fields, Broken([]))
    unet = shared.sd_model.model.diffusion_model
    assert not unet._forward_hooks
    assert not unet._forward_pre_hooks
    assert "forward" not in unet.__dict__
    assert "launch_sampling" in vars(sd_samplers_common.Sampler)
    assert "callback_state" not in vars(sd_samplers_timesteps.CompVisSampler)
    assert torch.equal(latents(host, fields), plain)


def test_an_editor_that_fails_ends_its_method_and_not_the_job(host: Running) -> None:
    class Part(Mover):
        """A method's part, which is a hook as well."""

        acted, missed, idle = True, "", ""

        def around(self, call: DenoiserCall) -> AbstractContextManager[None]:
            return nullcontext()

        def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
            if self.asked:
                raise RuntimeError("secret")
            return super().before(call, latents)

    def attach(sampling: Sampling) -> None:
        sampling.add_hook(part)
        part(sampling)

    fields, part = job("txt2img", "Euler"), Part([])
    assert torch.equal(latents(host, fields, attach), latents(host, fields))
    assert part.sampling.failure(part).startswith("An internal error")
    assert len(part.asked) == 1


def test_an_editor_that_makes_latents_of_another_size_is_told(host: Running) -> None:
    class Cropper(Mover):
        def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
            return latents[..., :4]

    with pytest.raises(ValueError, match="shape"):
        latents(host, job("txt2img", "Euler"), Cropper([]))
