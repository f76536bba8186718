"""Where a sampler starts, what it goes through, and starting it somewhere else, in the standalone host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods.denoiser import Sampling, Unsupported, editing_of
from lib_methods.hosts.passes import _LAUNCH, _PASS
from tests.hosts.seam import CASES, KINDS, in_sigmas, job, latents, random, spread, watched
from tests.standalone.conftest import Running

EVERY_CASE = pytest.mark.parametrize(("sampler", "kind"), CASES)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
ALPHA_SPACE = ("DDIM", "UniPC")
SCHEDULES = ["Karras", "Exponential", "SGM Uniform", "Simple", "Normal", "DDIM", "KL Optimal", "Align Your Steps"]


def looked_at(host: Running, sampler: str, fields: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a job that is started from its own start: its result, `sigmas`, the levels of the first denoiser call of
    each step, and what that start differs by from what the denoiser sees first, as a share."""
    told: list[Tensor] = []

    def look(sampling: Sampling) -> None:
        told.extend((editing_of(sampling).sigmas, editing_of(sampling).start_latent()))
        editing_of(sampling).start_from(editing_of(sampling).start_latent())

    with watched() as seen:
        drawn = latents(host, fields, look)
    seen = seen.last_pass(drawn.shape[3])
    levels = in_sigmas(sampler, seen.level[::2] if sampler in ("Heun", "DPM++ SDE") else seen.level)
    scale = float(1 + levels[0] ** 2) ** 0.5 if sampler in ALPHA_SPACE else 1.0
    return drawn, told[0], levels, torch.tensor(spread(seen.x[0] * scale, told[1]))


@EVERY_CASE
def test_its_own_start_and_levels(host: Running, sampler: str, kind: str) -> None:
    """`sigmas` are those that the denoiser sees, and starting from the host's own start changes no bit."""
    fields = job(kind, sampler)
    drawn, told, seen, off = looked_at(host, sampler, fields)
    assert torch.equal(drawn, latents(host, fields))
    assert off < 1e-6
    assert told.dtype == torch.float32
    assert torch.allclose(told[:-1], seen, rtol=1e-5, atol=0)
    assert told[-1] == 0 or (sampler in ALPHA_SPACE and 0 < told[-1] < told[-2])


@EVERY_CASE
def test_another_start_is_as_if_the_host_had_begun_there(host: Running, sampler: str, kind: str) -> None:
    """Fed to the host by the tensors that its script method gets: x or the noise, written in place."""
    fields = job(kind, sampler)
    there: list[Tensor] = []

    def elsewhere(sampling: Sampling) -> None:
        own = editing_of(sampling).start_latent()
        there.append(own + own.std() * random(own.shape, 3))
        editing_of(sampling).start_from(there[0])
        assert torch.equal(editing_of(sampling).start_latent(), there[0])

    def by_the_host(sampling: Any) -> None:
        sigma, scale = float(editing_of(sampling).sigmas[0]), 1.0
        signal, p = 1.0, sampling.p
        if sampler in ALPHA_SPACE:
            # as the host noises pictures: by one timestep more than sampling begins with
            steps, t_enc = (5, 2) if kind == "Hires.fix" else (4, 2)
            abar = p.sd_model.alphas_cumprod[p.sampler.get_timesteps(p, steps)[t_enc]]
            scale = (1 + sigma**2) ** -0.5
            signal, sigma = (float(abar.sqrt()), float((1 - abar).sqrt())) if kind != "txt2img" else (0.0, 1.0)
        if kind == "txt2img":
            sampling.latent.copy_(there[0] * scale / sigma)
        else:
            sampling._noise.copy_((there[0] * scale - signal * sampling.latent) / sigma)

    with watched() as seen:
        found = latents(host, fields, elsewhere)
    seen, scale = seen.last_pass(found.shape[3]), 1.0
    if sampler in ALPHA_SPACE:
        scale = float(1 + in_sigmas(sampler, seen.level[:1]) ** 2) ** 0.5
    assert spread(seen.x[0] * scale, there[0]) < 1e-6
    assert spread(found, latents(host, fields, by_the_host)) < 1e-4


@pytest.mark.parametrize("kind", ["txt2img", "Hires.fix"])
@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_every_schedule(host: Running, scheduler: str, kind: str) -> None:
    _, told, seen, off = looked_at(host, "Euler", job(kind, "Euler", scheduler=scheduler))
    assert torch.allclose(told[:-1], seen, rtol=1e-6, atol=0)
    assert (told[-1] == 0) == (scheduler != "KL Optimal")
    assert off < 1e-6


@EVERY_KIND
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("DPM++ 2M", {"always_discard_next_to_last_sigma": True, "sigma_min": 0.1, "sigma_max": 8.0, "rho": 4.0}),
        ("DDIM", {"always_discard_next_to_last_sigma": True, "img2img_extra_noise": 0.3}),
        ("Euler", {"sgm_noise_multiplier": True, "img2img_fix_steps": True, "img2img_extra_noise": 0.3}),
        ("UniPC", {"uni_pc_skip_type": "time_quadratic"}),
        ("UniPC", {"uni_pc_skip_type": "logSNR", "img2img_fix_steps": True}),
    ],
)
def test_settings_that_move_the_start_or_the_levels(
    host: Running, sampler: str, options: dict[str, Any], kind: str
) -> None:
    from modules import shared

    for name, value in options.items():
        shared.opts.data[name] = value
    _, told, seen, off = looked_at(host, sampler, job(kind, sampler))
    assert torch.allclose(told[:-1], seen, rtol=1e-5, atol=0)
    assert off < 1e-6


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize("sampler", ["Heun", "DDIM", "UniPC"])
def test_any_number_of_steps(host: Running, sampler: str, steps: int) -> None:
    """The timestep samplers take another number than the requested one; DDIM with one takes none."""
    fields = job("txt2img", sampler, steps=steps, width=32, height=32)
    if sampler == "UniPC":
        fields["override_settings"] = {"uni_pc_order": 1}
    if (sampler, steps) == ("DDIM", 1):
        with pytest.raises(Unsupported, match="no step"):
            looked_at(host, sampler, fields)
        return
    _, told, seen, _ = looked_at(host, sampler, fields)
    assert len(told) == len(seen) + 1
    assert torch.allclose(told[:-1], seen, rtol=1e-5, atol=0)


def test_what_the_host_starts_from(host: Running) -> None:
    """None in txt2img; in img2img and the second pass latents that noise is added to."""
    own: dict[str, Any] = {}

    def look(sampling: Sampling) -> None:
        own[kind] = editing_of(sampling).own_latent()
        if kind != "txt2img":
            noise = sampling._noise  # type: ignore[attr-defined]
            assert (
                spread(editing_of(sampling).start_latent(), own[kind] + editing_of(sampling).sigmas[0] * noise) < 1e-6
            )

    for kind in KINDS:
        latents(host, job(kind, "Euler", batch_size=2), look)
    assert own["txt2img"] is None
    assert own["img2img"].shape == (2, 4, 8, 8)
    assert own["Hires.fix"].shape == (2, 4, 12, 12)


@pytest.mark.parametrize("eta", [None, 0.0])
@pytest.mark.parametrize("churn", [0.0, 2.0])
def test_samplers_with_noise_of_their_own_are_known(host: Running, eta: float | None, churn: float) -> None:
    """Against the noise that every sampler of the host really draws while it runs."""
    from modules import sd_samplers

    told, drawn = {}, {}
    for name in [data.name for data in sd_samplers.all_samplers]:

        def look(sampling: Any, name: str = name) -> None:
            told[name] = editing_of(sampling).is_stochastic
            rng, following = sampling.p.rng, sampling.p.rng.next
            drawn[name] = False

            def draw() -> Tensor:
                drawn[name] = True
                return following()

            rng.next = draw

        latents(host, job("txt2img", name, eta=eta, s_churn=churn), look)
    assert told == drawn
    assert told["LCM"]
    assert not told["DPM++ 2M"]


def test_a_start_and_an_editor_are_for_one_batch(host: Running) -> None:
    """In img2img the host of the WebUI keeps one denoiser for all batches."""
    fields = job("img2img", "Euler", n_iter=2)
    plain = latents(host, fields)
    batches: list[int] = []

    def first_only(sampling: Any) -> None:
        batches.append(sampling.p.iteration)
        if sampling.p.iteration == 0:
            editing_of(sampling).start_from(editing_of(sampling).start_latent() + 1)

    assert torch.equal(latents(host, fields, first_only), plain)
    assert batches == [0, 1]


def test_latents_of_another_size_are_refused(host: Running) -> None:
    with pytest.raises(ValueError, match="shape"):
        latents(
            host, job("txt2img", "Euler"), lambda sampling: editing_of(sampling).start_from(torch.zeros(1, 4, 4, 4))
        )


def test_looking_at_the_start_leaves_the_job_alone(host: Running) -> None:
    from modules import shared

    shared.opts.data["img2img_extra_noise"] = 0.2

    def seen(p: Any) -> tuple[dict[str, Any], ...]:
        """Of the sampler, all but what marks the pass and goes when it ends."""
        sampler = {name: value for name, value in vars(p.sampler).items() if name not in (_PASS, _LAUNCH)}
        return dict(p.__dict__), sampler, dict(p.extra_generation_params)

    def look(sampling: Any) -> None:
        p = sampling.p
        before = seen(p)
        tensors = sampling.latent.clone(), sampling._noise.clone()
        shared.state.sampling_step = 77
        assert len(editing_of(sampling).sigmas) == 4
        assert seen(p) == before
        assert torch.equal(sampling.latent, tensors[0])
        assert torch.equal(sampling._noise, tensors[1])
        assert shared.state.sampling_step == 77

    latents(host, job("img2img", "DPM++ 2M"), look)
