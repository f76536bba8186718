"""AUTOMATIC1111's adapter: which rows are which, and what a pass leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_methods import hosts
from lib_methods.denoiser import Role, Row, Unsupported
from lib_methods.webui.job import MethodJobs
from tests.hosts.doubles import Interrupted, Launched, Recorder, call, job


@pytest.mark.parametrize("slices", [None, 1, 2])
@torch.no_grad()
def test_rows_are_known_by_their_order(unet, slices) -> None:
    p = job(unet)
    denoiser = p.sampler.model_wrap_cfg
    denoiser.slices = slices
    sampling, recorder = hosts.sampling_of(p, torch.zeros(2, 4, 8, 8)), Recorder()
    sampling.add_hook(recorder)
    cond = SimpleNamespace(batch=[["a", "b", "c"], ["d"]])  # AND with three parts, and a plain prompt
    for _ in range(3):
        denoiser(torch.randn(2, 4, 8, 8), torch.tensor([1.5, 1.5]), None, cond, 5.0, 0.0, None)
    expected = tuple(Row(Role.COND, i) for i in (0, 0, 0, 1)) + (Row(Role.UNCOND, 0), Row(Role.UNCOND, 1))
    assert recorder.all == [expected] * 3
    assert tuple(row for run in recorder.runs[: len(recorder.runs) // 3] for row in run) == expected
    assert recorder.steps == [0, 0, 1]  # two calls a step
    assert not unet._forward_hooks and not unet._forward_pre_hooks


@torch.no_grad()
def test_an_edit_model_has_two_unconditional_blocks(unet) -> None:
    p = job(unet)
    p.sd_model.cond_stage_key = "edit"
    denoiser = p.sampler.model_wrap_cfg
    denoiser.image_cfg_scale = 1.5
    sampling, recorder = hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)), Recorder()
    sampling.add_hook(recorder)
    denoiser(torch.randn(1, 4, 8, 8), torch.tensor([1.5]), None, SimpleNamespace(batch=[["a"]]), 5.0, 0.0, None)
    assert [row.role for row in recorder.all[0]] == [Role.COND, Role.UNCOND, Role.UNCOND]


@torch.no_grad()
def test_two_seams_on_one_denoiser_do_not_stack(unet) -> None:
    """In img2img the host uses one sampler for all batches of a job."""
    p = job(unet)
    recorders = [Recorder(), Recorder()]
    for recorder in recorders:
        hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(recorder)
    p.sampler.model_wrap_cfg(
        torch.randn(1, 4, 8, 8), torch.tensor([1.5]), None, SimpleNamespace(batch=[["a"]]), 5.0, 0.0, None
    )
    assert recorders[0].all == []
    assert len(recorders[1].all) == 1


def test_timestep_samplers_keep_the_variance(unet) -> None:
    p = job(unet)
    sampling = hosts.sampling_of(p, torch.zeros(1, 4, 8, 8))
    latents, noise = torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 2.0)
    assert torch.allclose(sampling.noisy(latents, noise, torch.tensor([3.0])), torch.tensor(7.0))
    p.sampler.model_wrap_cfg.alphas = torch.linspace(0.99, 0.01, 1000)
    alpha = p.sampler.model_wrap_cfg.alphas[500]
    wanted = alpha.sqrt() + 2 * (1 - alpha).sqrt()
    assert torch.allclose(sampling.noisy(latents, noise, torch.tensor([500])), wanted)


def test_encoding_leaves_the_global_generator_alone_and_repeats(unet) -> None:
    sampling = hosts.sampling_of(job(unet), torch.zeros(1, 4, 8, 8))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    one = sampling.encode(images, [1, 2])
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(one, sampling.encode(images, [1, 2]))
    assert not torch.equal(one, sampling.encode(images, [3, 4]))


def test_a_host_without_a_denoiser_is_named_in_a_sentence(unet) -> None:
    p = job(unet)
    p.sampler = SimpleNamespace()
    with pytest.raises(Unsupported, match="sampler"):
        hosts.sampling_of(p, None)


@pytest.mark.parametrize("how", ["returns", "raises", "is interrupted"])
@torch.no_grad()
def test_what_one_pass_registered_is_gone_after_it(unet, how) -> None:
    p = job(unet)
    denoiser = p.sampler.model_wrap_cfg
    p.sampler = Launched(denoiser)
    before, attributes = dict(vars(denoiser)), dict(vars(p.sampler))
    recorder = Recorder()
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(recorder)
    kept = denoiser.forward  # somebody may still call what stood there

    def run() -> None:
        call(denoiser)
        if how != "returns":
            raise RuntimeError if how == "raises" else Interrupted

    try:
        p.sampler.launch_sampling(10, run)
    except (RuntimeError, Interrupted):
        assert how != "returns"
    assert len(recorder.all) == 1
    denoiser.step = 0
    assert vars(denoiser) == before and vars(p.sampler) == attributes
    call(denoiser)
    call(kept)
    assert len(recorder.all) == 1


@torch.no_grad()
def test_another_extension_that_wrapped_us_keeps_its_wrapper_and_loses_ours(unet) -> None:
    p = job(unet)
    denoiser = p.sampler.model_wrap_cfg
    p.sampler = Launched(denoiser)
    recorder, theirs = Recorder(), []
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(recorder)
    ours = denoiser.forward

    def wrapped(*args: Any) -> Any:
        theirs.append(1)
        return ours(*args)

    denoiser.forward = wrapped
    p.sampler.launch_sampling(10, lambda: call(denoiser))
    call(denoiser)
    assert (len(recorder.all), len(theirs)) == (1, 2)


@pytest.mark.parametrize("launched", [True, False])
@torch.no_grad()
def test_a_batch_whose_method_fails_has_nothing_of_the_batch_before(unet, launched) -> None:
    """Also where the host's sampler does not show the end of a pass."""
    p = job(unet, extra_generation_params={}, comment=lambda _: None, is_api=True)
    denoiser = p.sampler.model_wrap_cfg
    p.sampler = Launched(denoiser) if launched else p.sampler
    method, recorder = MethodJobs("M", "m", (), "M error"), Recorder()

    def attach(sampling: Any, fails: bool) -> None:
        sampling.add_hook(recorder)
        if fails:
            raise Unsupported("Half-way.")

    for p.iteration, fails in enumerate([False, True]):
        method.use(p, fails, {})
        method.guide(p, torch.zeros(1, 4, 8, 8), attach)
        if launched:
            p.sampler.launch_sampling(10, lambda: call(denoiser))
        else:
            call(denoiser)
    assert len(recorder.all) == 1


@torch.no_grad()
def test_a_method_that_fails_half_way_leaves_what_others_registered(unet) -> None:
    p = job(unet)
    recorder = Recorder()
    first, second = (hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)) for _ in range(2))
    with first.registering():
        first.add_hook(recorder)
    with suppress(KeyError), second.registering():
        second.add_hook(Recorder())
        raise KeyError
    call(p.sampler.model_wrap_cfg)
    assert len(recorder.all) == 1


class Failing:
    """A hook that fails at its second call, before the UNet runs or inside of it."""

    def __init__(self, error: Exception, unet: nn.Module | None = None) -> None:
        self.error, self.unet, self.calls = error, unet, 0

    acted, idle, missed = True, "", ""

    @contextmanager
    def around(self, call: Any) -> Iterator[None]:
        self.calls += 1
        if self.calls == 2 and self.unet is None:
            raise self.error
        fails = self.unet is not None and self.calls == 2
        handle = self.unet.register_forward_pre_hook(self._fail) if self.unet is not None and fails else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def _fail(self, *_: Any) -> None:
        raise self.error


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("secret"), "An internal error"),
        (torch.OutOfMemoryError("no"), "Out of memory"),
        (Unsupported("Not with this."), "Not with this."),
    ],
)
@torch.no_grad()
def test_a_hook_that_fails_ends_its_method_and_not_the_job(unet, error: Exception, told: str, inside: bool) -> None:
    p = job(unet, extra_generation_params={}, comment=lambda _: None, is_api=True)
    p.sampler = Launched(p.sampler.model_wrap_cfg)
    plain = call(p.sampler.model_wrap_cfg)
    method, hook = MethodJobs("M", "m", ("M strength",), "M error"), Failing(error, unet if inside else None)

    def attach(sampling: Any, _: Any) -> Any:
        sampling.add_hook(hook)
        return hook

    method.use(p, "settings", {"M strength": "1"})
    method.guide(p, torch.zeros(1, 4, 8, 8), attach)
    found: list[Tensor] = []
    p.sampler.launch_sampling(3, lambda: found.extend(call(p.sampler.model_wrap_cfg) for _ in range(3)))
    method.settle(p)
    assert all(torch.equal(out, plain) for out in found)
    assert hook.calls == 2
    assert set(p.extra_generation_params) == {"M error"}
    assert p.extra_generation_params["M error"].startswith(told)
    assert "secret" not in str(p.extra_generation_params)


@torch.no_grad()
def test_an_error_of_the_host_stays_the_hosts(unet) -> None:
    p = job(unet)
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(Recorder())

    def broken(*_: Any) -> None:
        raise ValueError("theirs")

    unet.register_forward_pre_hook(broken)
    with pytest.raises(ValueError, match="theirs"):
        call(p.sampler.model_wrap_cfg)
