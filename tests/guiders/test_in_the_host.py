"""Guidance in every kind of job of the standalone host, on tiny models of every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib_methods.guiders.apply import GuidanceGuide
from lib_methods.guiders.settings import METHODS, MIMIC, OFF
from tests.fabric.small_model import picture
from tests.fabric.test_in_the_host import BOTH, IMG2IMG, JOBS
from tests.shared import jobs
from tests.shared.jobs import REPO, left_on_the_model, pixels, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running, checkpoints, start_host

OTHER_SAMPLER = {**JOBS["Hires.fix with another sampler"], "hr_second_pass_steps": 4}
ON = {"skimming_scale": 1.5}

__all__ = ["checkpoints", "start_host"]


def guidance(**request: Any) -> dict[str, list[Any]]:
    return {"guidance": [{**ON, **request}]}


def check(host: Running, kind: str, job: dict[str, Any], request: dict[str, Any] = ON) -> None:
    jobs.check(host, kind, {"cfg_scale": 9.0, **job}, guidance(**request), "Guidance")


@pytest.fixture(scope="module")
def sd1(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


@pytest.mark.parametrize("name", [name for name in JOBS if name != "CFG scale 1"])
def test_txt2img(sd1: Running, name: str) -> None:
    check(sd1, "txt2img", JOBS[name])


@pytest.mark.parametrize("name", IMG2IMG)
def test_img2img(sd1: Running, name: str) -> None:
    check(sd1, "img2img", {"init_images": [picture(7)], **IMG2IMG[name]})


@pytest.mark.parametrize(
    "sampler", ["Euler a", "Heun", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ SDE", "DDIM", "UniPC", "LCM"]
)
def test_every_sampler(sd1: Running, sampler: str) -> None:
    check(sd1, "txt2img", {"sampler_name": sampler, "steps": 4})


@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M"])
@pytest.mark.parametrize("mode", ["Linear Up", "Power Up", "Sawtooth"])
def test_one_step_is_the_first_of_its_schedule(sd1: Running, sampler: str, mode: str) -> None:
    """DDIM is not among them: the WebUI's does not ask the model at all then."""
    schedules = {"method": MIMIC, "mimic_scale": 1.5, "mimic_mode": mode, "cfg_mode": mode, "cfg_scale_min": 2.0}
    check(sd1, "txt2img", {"steps": 1, "sampler_name": sampler}, schedules)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("method", [*METHODS, f"{OFF}, but for the interval"])
def test_every_method(sd1: Running, method: str, sampler: str) -> None:
    """In sigmas and in timesteps."""
    named = {"method": method.split(",")[0], "mimic_scale": 1.5, "apg_momentum": -0.5}
    extra = {"outside_scale": 1} if "," in method else {"highest_sigma": 0, "lowest_sigma": 0, "rescale": 0.3}
    check(sd1, "txt2img", {**OTHER_SAMPLER, "sampler_name": sampler}, {**named, **extra})


def test_both_passes_of_hires_fix_are_corrected(sd1: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []
    original = GuidanceGuide.guide

    def watched(self: GuidanceGuide, call: Any, guidance: Any) -> Any:
        seen.append((self.sampling.is_hires, self.sampling.steps))
        return original(self, call, guidance)

    monkeypatch.setattr(GuidanceGuide, "guide", watched)
    sd1.generate(cfg_scale=9.0, script_args=guidance(), **OTHER_SAMPLER)
    passes = [is_hires for is_hires, _ in seen]
    assert passes == sorted(passes)
    assert passes.count(False) == 3  # Euler's steps
    assert passes.count(True) == 2  # the share of DDIM's steps that the denoising strength leaves


@pytest.mark.parametrize("request_", [{}, {"method": OFF, "rescale": 1}, {"outside_scale": 1}])
def test_cfg_scale_1_is_an_ordinary_job_and_says_so(sd1: Running, request_: dict[str, Any]) -> None:
    plain = sd1.generate(cfg_scale=1.0)
    asked = sd1.generate(cfg_scale=1.0, script_args=guidance(**request_))
    assert same(plain, asked)
    assert plain.infotexts == asked.infotexts
    assert "nothing changes" in asked.comments


def test_steps_without_guidance_are_left_alone(sd1: Running) -> None:
    """All unconditional rows skipped: nothing to correct. Some of them: only the others are."""
    job: dict[str, Any] = {"cfg_scale": 9.0, "steps": 6, "override_settings": {"s_min_uncond_all": True}}
    every = {**job, "s_min_uncond": 1e6}
    assert same(sd1.generate(**every), sd1.generate(script_args=guidance(), **every))
    check(sd1, "txt2img", {**job, "s_min_uncond": 4.0})


@pytest.mark.parametrize("sampler", ["Euler a", "DDIM"])
def test_with_fabric_the_order_of_the_scripts_is_without_effect(
    sd1: Running, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from standalone.host.scripts.loading import runner_of

    both = {"fabric": [{"enabled": True, **BOTH}], **guidance()}
    job: dict[str, Any] = {"cfg_scale": 9.0, "sampler_name": sampler}
    assert_together(sd1, both, job, monkeypatch, runner_of(False))


def assert_together(
    host: Running, both: dict[str, Any], job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, runner: Any
) -> None:
    """Two methods each have their part in the images, the same ones whichever script comes first."""
    first = host.generate(script_args=both, **job)
    assert not any(same(first, host.generate(script_args={name: both[name]}, **job)) for name in both)
    monkeypatch.setattr(runner, "alwayson_scripts", list(reversed(runner.alwayson_scripts)))
    assert same(first, host.generate(script_args=both, **job))
    assert left_on_the_model() == []


def test_an_exception_in_the_middle_ends_the_method_and_leaves_nothing_behind(
    sd1: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sd1.generate(cfg_scale=9.0)
    original, calls = GuidanceGuide.guide, []

    def fail(self: GuidanceGuide, call: Any, guidance: Any) -> Any:
        calls.append(call.step)
        if call.step == 1:
            raise RuntimeError("in the middle")
        return original(self, call, guidance)

    with monkeypatch.context() as patched:
        patched.setattr(GuidanceGuide, "guide", fail)
        (infotext,) = sd1.generate(cfg_scale=9.0, script_args=guidance()).infotexts
    assert "Guidance error: An internal error; " in infotext
    assert "Guidance skimming scale" not in infotext
    assert calls == [0, 1]
    assert left_on_the_model() == []
    assert same(before, sd1.generate(cfg_scale=9.0))


def test_a_picture_does_not_depend_on_its_batch(sd1: Running) -> None:
    job: dict[str, Any] = {"cfg_scale": 9.0, "script_args": guidance(method="APG", apg_norm=1.0, apg_momentum=-0.5)}
    pair = sd1.generate(batch_size=2, **job)
    alone = sd1.generate(seed=2, **job)
    difference = np.abs(pixels(pair)[1].astype(int) - pixels(alone)[0].astype(int))
    assert difference.max() <= 1  # the matrix products of another batch size round differently


@pytest.mark.parametrize(
    ("family", "options"), [("sd2", {}), ("sdxl", {}), ("sd1", {"in_channels": 8}), ("sd1", {"in_channels": 9})]
)
def test_every_family(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], family: str, options: dict[str, Any]
) -> None:
    host = start_host(checkpoints(family, **options), extension_dirs=[REPO])
    editing: dict[str, Any] = {"init_images": [picture(7)], "denoising_strength": 0.7}
    if options.get("in_channels") != 8:  # the WebUI, too, takes an 8-channel model in img2img only
        check(host, "txt2img", {"batch_size": 2})
    check(host, "img2img", editing)
    if options.get("in_channels") == 8:
        check(host, "img2img", {**editing, "image_cfg_scale": 2.0})
        check(host, "img2img", {**editing, "image_cfg_scale": 2.0, "sampler_name": "DDIM"})


def test_with_two_scales_the_order_of_the_scripts_is_without_effect(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from standalone.host.scripts.loading import runner_of

    host = start_host(checkpoints("sd1", in_channels=8), extension_dirs=[REPO])
    both = {"instructpix2pix": [{"image": encoded(picture(7, 64, 64)), "image_scale": 1.6}], **guidance()}
    job: dict[str, Any] = {"cfg_scale": 9.0, "batch_size": 2}
    assert_together(host, both, job, monkeypatch, runner_of(False))
