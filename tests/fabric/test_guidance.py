"""The seam's guidance after the UNet in both hosts, FABRIC's colour correction through it, and its cache."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_methods import hosts
from lib_methods.attention import self_attentions
from lib_methods.denoiser import Guidance
from lib_methods.fabric.apply import RESCALE, attach
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.reference import FeatureCache
from lib_methods.fabric.settings import FabricSettings
from lib_methods.guidance import rescale
from lib_methods.hosts.bare import BareSampling
from tests.fabric.small_model import Album, picture, small_unet
from tests.fabric.test_promises import CONTEXT, ROWS, X, album_of
from tests.hosts.doubles import Denoiser, Patcher, job

ALPHAS = torch.linspace(0.99, 0.01, 1000)
STEP = 400


class Combining(Denoiser):
    """The denoiser with the host's last step: rows are combined as the WebUI documents it."""

    def combine_denoised(self, x_out: Tensor, conds_list: Any, uncond: Any, cond_scale: float) -> Tensor:
        base = x_out[-len(conds_list) :]
        out = base.clone()
        for i, conds in enumerate(conds_list):
            for row, weight in conds:
                out[i] += (x_out[row] - base[i]) * (weight * cond_scale)
        return out

    def combine_denoised_for_edit_model(self, x_out: Tensor, cond_scale: float) -> Tensor:
        cond, image, uncond = x_out.chunk(3)
        assert self.image_cfg_scale is not None
        return uncond + cond_scale * (cond - image) + self.image_cfg_scale * (image - uncond)

    def forward(self, x: Tensor, sigma: Tensor, uncond: Tensor, cond: Any, *args: Any) -> Tensor:
        self.rows = super().forward(x, sigma, uncond, cond, *args)
        if self.image_cfg_scale is not None:
            return self.combine_denoised_for_edit_model(torch.cat([self.rows, x]), args[0])
        numbers = iter(range(len(self.rows)))
        return self.combine_denoised(
            self.rows, [[(next(numbers), w) for w in parts] for parts in cond.batch], x, args[0]
        )


class Twist:
    """A guide that notes what it sees and changes it."""

    def __init__(self, order: int = 50, factor: float = 0.5, add: float = 0.25) -> None:
        self.order, self.factor, self.add = order, factor, add
        self.seen: list[Guidance] = []

    def guide(self, call: Any, guidance: Guidance) -> Tensor:
        self.seen.append(guidance)
        return guidance.guided * self.factor + self.add


class OtherTwist(Twist):
    pass


class Idle(Twist):
    def guide(self, call: Any, guidance: Guidance) -> Tensor:
        self.seen.append(guidance)
        return guidance.guided


def running(timesteps: bool = False, slices: int | None = None) -> tuple[Any, Any]:
    unet = small_unet()
    p = job(unet)
    p.sampler.model_wrap_cfg = Combining(p, unet, slices)
    if timesteps:
        p.sampler.model_wrap_cfg.alphas = ALPHAS
    return p, p.sampler.model_wrap_cfg


def call(denoiser: Any, timesteps: bool = False, batch: Any = ((0.7, 0.6), (1.0,))) -> tuple[Tensor, Tensor]:
    """One call on two images, the first with two prompts under AND; the latents and the result."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    level = torch.full((2,), STEP) if timesteps else torch.full((2,), 1.5)
    with torch.no_grad():
        return x, denoiser(x, level, None, SimpleNamespace(batch=batch), 5.0, 0.0, None)


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 9), st.floats(0, 1), st.integers(0, 1000))
@settings(deadline=None)  # a busy machine is no failure
def test_rescaling_equals_the_papers_formula(batch: int, channels: int, side: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    guided, cond = (rng.normal(rng.normal(), 1 + rng.random(), (batch, channels, side, side + 1)) for _ in range(2))
    wanted = np.stack(
        [share * g * (np.std(c, ddof=1) / np.std(g, ddof=1)) + (1 - share) * g for g, c in zip(guided, cond)]
    )
    found = rescale(torch.from_numpy(guided), torch.from_numpy(cond), share)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_rescaling_a_flat_prediction_stays_finite() -> None:
    flat = torch.zeros(1, 4, 8, 8)
    assert torch.isfinite(rescale(flat, flat)).all()
    assert torch.isfinite(rescale(flat, torch.randn(1, 4, 8, 8))).all()


@pytest.mark.parametrize("slices", [None, 1, 2])
@pytest.mark.parametrize("timesteps", [False, True])
def test_a_guide_that_changes_nothing_leaves_every_bit(timesteps: bool, slices: int | None) -> None:
    _, plain = call(running(timesteps, slices)[1], timesteps)
    p, denoiser = running(timesteps, slices)
    idle = Idle()
    hosts.sampling_of(p, torch.zeros(2, 4, 8, 8)).add_guide(idle)
    assert torch.equal(call(denoiser, timesteps)[1], plain)
    assert len(idle.seen) == 1


@pytest.mark.parametrize("slices", [None, 1, 2])
@pytest.mark.parametrize("timesteps", [False, True])
def test_guides_see_clean_latents_whatever_the_sampler_works_with(timesteps: bool, slices: int | None) -> None:
    p, denoiser = running(timesteps, slices)
    twist = Twist()
    hosts.sampling_of(p, torch.zeros(2, 4, 8, 8)).add_guide(twist)
    x, result = call(denoiser, timesteps)
    rows = denoiser.rows  # a, b (the first image's two prompts), c, and two unconditional rows
    weights, owners = (0.7, 0.6, 1.0), (0, 0, 1)

    def clean(prediction: Tensor) -> Tensor:
        a = ALPHAS[STEP]
        return (x - (1 - a).sqrt() * prediction) / a.sqrt() if timesteps else prediction

    def guided(scale: float) -> Tensor:
        out = rows[3:].clone()
        for row, (weight, owner) in enumerate(zip(weights, owners)):
            out[owner] += scale * weight * (rows[row] - rows[3 + owner])
        return out

    seen = twist.seen[0]
    assert seen.scale == 5.0
    assert torch.allclose(seen.base, clean(rows[3:]), atol=1e-5)
    assert torch.allclose(seen.cond, clean(guided(1.0)), atol=1e-5)
    assert torch.allclose(seen.guided, clean(guided(5.0)), atol=1e-4)
    assert torch.allclose(seen.at(2.0), clean(guided(2.0)), atol=1e-4)
    assert torch.allclose(clean(result), seen.guided * 0.5 + 0.25, atol=1e-4)


def test_guides_are_asked_in_their_order_whichever_came_first() -> None:
    results = []
    for turned in (False, True):
        p, denoiser = running()
        sampling = hosts.sampling_of(p, torch.zeros(2, 4, 8, 8))
        guides = [Twist(10, 2.0, 0.0), OtherTwist(20, 1.0, 1.0)]
        for guide in reversed(guides) if turned else guides:
            sampling.add_guide(guide)
        results.append(call(denoiser)[1])
        assert torch.equal(guides[1].seen[0].guided, guides[0].seen[0].guided * 2)
    assert torch.equal(*results)


def test_models_that_edit_have_the_images_share_in_the_base() -> None:
    p, denoiser = running()
    p.sd_model.cond_stage_key, denoiser.image_cfg_scale = "edit", 1.5
    twist = Idle()
    hosts.sampling_of(p, torch.zeros(2, 4, 8, 8)).add_guide(twist)
    x, result = call(denoiser, batch=((1.0,), (1.0,)))
    seen = twist.seen[0]
    cond, image, uncond = torch.cat([denoiser.rows, x]).chunk(3)
    assert torch.equal(seen.cond, cond)
    assert torch.allclose(seen.base, uncond + 1.5 * (image - uncond), atol=1e-6)
    assert torch.allclose(seen.at(5.0), result, atol=1e-5)


@pytest.mark.parametrize("correct", [True, False])
def test_fabric_gives_the_guided_prediction_the_spread_of_the_conditional_one(correct: bool) -> None:
    album = Album()
    likes = (FeedbackImage(album.add(picture(1))),)
    p, denoiser = running()
    sampling = hosts.sampling_of(p, torch.zeros(2, 4, 8, 8))
    asked = FabricSettings(likes=likes, colour_correction=correct, start=0.0, end=0.5)
    assert attach(sampling, asked, album.load, FeatureCache())
    _, result = call(denoiser)
    rows = denoiser.rows
    cond = rows[3:] + torch.stack([0.7 * (rows[0] - rows[3]) + 0.6 * (rows[1] - rows[3]), rows[2] - rows[4]])
    guided = rows[3:] + 5 * (cond - rows[3:])
    wanted = rescale(guided, cond, RESCALE) if correct else guided
    assert torch.allclose(result, wanted, atol=1e-4)
    denoiser.step = 19  # of 20 calls: after the end
    _, result = call(denoiser)
    rows = denoiser.rows
    cond = rows[3:] + torch.stack([0.7 * (rows[0] - rows[3]) + 0.6 * (rows[1] - rows[3]), rows[2] - rows[4]])
    assert torch.allclose(result, rows[3:] + 5 * (cond - rows[3:]), atol=1e-4)


def test_forge_asks_the_guides_of_this_pass_alone() -> None:
    """Forge passes clean latents, without the scale, and keeps the first pass's patched UNet for the second."""
    unet = small_unet()
    p = job(unet)
    p.sd_model.forge_objects = SimpleNamespace(
        unet=Patcher(unet, {"sampler_post_cfg_function": [lambda a: a["denoised"] + 1]})
    )
    original = p.sd_model.forge_objects.unet
    first, second = Twist(), Twist()
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_guide(first)
    p.is_hr_pass = True
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_guide(second)
    cond, base = torch.randn(2, 1, 4, 8, 8)
    options = p.sd_model.forge_objects.unet.model_options
    for modifier in options["conditioning_modifiers"]:  # as Forge does at the start of a denoiser call
        *_, options, _ = modifier(None, base, torch.tensor([1.5]), [], [], 7.0, options, 0)
    arguments = {"cond_denoised": cond, "uncond_denoised": base, "sigma": torch.tensor([1.5])}
    guided = base + 7 * (cond - base)
    for function in options["sampler_post_cfg_function"]:
        guided = function({**arguments, "denoised": guided})
    assert not first.seen and len(second.seen) == 1
    assert torch.allclose(guided, (base + 7 * (cond - base) + 1) * 0.5 + 0.25, atol=1e-5)
    assert len(original.model_options["sampler_post_cfg_function"]) == 1  # only clones carry ours
    exact = options["sampler_post_cfg_function"][-1]({**arguments, "denoised": base + 7 * (cond - base)})
    assert second.seen[-1].scale == pytest.approx(7.0, rel=1e-4)
    assert torch.allclose(exact, (base + 7 * (cond - base)) * 0.5 + 0.25, atol=1e-5)


def test_the_bare_sampling_takes_guides() -> None:
    album = Album()
    sampling = BareSampling(small_unet())
    attach(sampling, FabricSettings(likes=(FeedbackImage(album.add(picture(1))),)), album.load, FeatureCache())
    assert len(sampling.guides) == 1


def test_keys_and_values_are_kept_where_there_is_room_and_are_the_same_to_the_last_bit() -> None:
    unet = small_unet()
    album, ids = album_of(3)
    likes, dislikes = tuple(map(FeedbackImage, ids[:2])), (FeedbackImage(ids[2]),)
    asked = FabricSettings(likes=likes, dislikes=dislikes, reference_levels="every step")
    roomy, tight = FeatureCache(), FeatureCache()
    results = []
    for cache, megabytes in ((roomy, 1024), (tight, 1)):
        calls: list[int] = []
        sampling = BareSampling(unet)
        attach(sampling, replace(asked, cache_limit_mb=megabytes), album.load, cache)
        results.append(sampling.denoise(X, CONTEXT, ROWS))
        watched = cast(nn.Module, self_attentions(unet)[0].module.to_k)
        handle = watched.register_forward_hook(lambda _, inputs, out, calls=calls: calls.append(len(inputs[0])))
        try:
            results.append(sampling.denoise(X, CONTEXT, ROWS))
        finally:
            handle.remove()
        assert calls == ([len(ROWS)] if megabytes > 1 else [len(ROWS), 3])  # the references once more where not kept
    assert all(torch.equal(result, results[0]) for result in results)
    assert roomy.size == 2 * tight.size > 0
