"""FABRIC in every kind of job of the standalone host, on tiny models of every family (rule 4 of the design)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_methods.denoiser import Sampling
from lib_methods.fabric.reference import LADDER
from tests.fabric.small_model import picture
from tests.hosts.seam import acting
from tests.shared import jobs
from tests.shared.jobs import REPO, pixels, same
from tests.shared.pictures import encoded
from tests.standalone import tiny
from tests.standalone.conftest import Running

LIKE, OTHER, DISLIKE = (encoded(picture(i, 80, 48)) for i in range(3))
BOTH = {"likes": [LIKE, {"image": OTHER, "weight": 0.5}], "dislikes": [DISLIKE], "end": 1.0}
HALF_MASK = Image.new("L", (64, 64))
HALF_MASK.paste(255, (32, 0, 64, 64))

JOBS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "another aspect": {"width": 96, "height": 64},
    "batch of two, twice": {"batch_size": 2, "n_iter": 2},
    "AND": {"prompt": "a circle AND a red square :0.5 AND grey"},
    "AND in a batch with and without": {
        "prompt": ["a circle AND a square", "a circle"],
        "seed": [1, 2],
        "batch_size": 2,
    },
    "prompt editing": {"prompt": "a [circle:square:0.5]"},
    "long prompt, short negative": {"prompt": "red " * 90, "negative_prompt": ""},
    "long negative": {"negative_prompt": "red " * 90},
    "CFG scale 1": {"cfg_scale": 1.0},
    "Hires.fix": {"enable_hr": True, "hr_scale": 2.0, "hr_upscaler": "Latent", "denoising_strength": 0.6},
    "Hires.fix with another sampler": {
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_upscaler": "Latent",
        "denoising_strength": 0.6,
        "hr_sampler_name": "DDIM",
        "hr_second_pass_steps": 4,
    },
    "slices": {"override_settings": {"batch_cond_uncond": False}, "batch_size": 2},
    "padded prompts": {"prompt": "red " * 90, "override_settings": {"pad_cond_uncond": True}},
    "clip skip": {"override_settings": {"CLIP_stop_at_last_layers": 2}},
}
IMG2IMG: dict[str, dict[str, Any]] = {
    "img2img": {"denoising_strength": 0.7},
    "img2img, twice": {"denoising_strength": 0.7, "n_iter": 2},
    "inpainting": {"denoising_strength": 0.9, "mask": HALF_MASK, "inpainting_fill": 1},
}


def fabric(request: dict[str, Any]) -> dict[str, list[Any]]:
    return {"fabric": [{"enabled": True, **request}]}


def check(host: Running, kind: str, job: dict[str, Any], request: dict[str, Any] = BOTH) -> None:
    jobs.check(host, kind, job, fabric(request), "FABRIC")


@pytest.mark.parametrize("name", JOBS)
def test_txt2img(host: Running, name: str) -> None:
    check(host, "txt2img", JOBS[name])


@pytest.mark.parametrize("name", IMG2IMG)
def test_img2img(host: Running, name: str) -> None:
    check(host, "img2img", {"init_images": [picture(7)], **IMG2IMG[name]})


@pytest.mark.parametrize(
    "sampler", ["Euler a", "Heun", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ SDE", "DDIM", "UniPC", "LCM"]
)
def test_every_sampler(host: Running, sampler: str) -> None:
    check(host, "txt2img", {"sampler_name": sampler, "steps": 4})


@pytest.mark.parametrize("mode", ["reuse", "re-encode"])
def test_hires_fix_in_both_modes(host: Running, mode: str) -> None:
    check(host, "txt2img", JOBS["Hires.fix"], {**BOTH, "hires": mode})


def test_hires_fix_can_be_left_alone(host: Running) -> None:
    """With `hires` off the second pass runs without feedback, but what it starts from is guided."""
    check(host, "txt2img", JOBS["Hires.fix"], {**BOTH, "hires": "off"})
    off, on = (
        host.generate(script_args=fabric({**BOTH, "hires": mode}), **JOBS["Hires.fix"]) for mode in ("off", "reuse")
    )
    assert not same(off, on)


def test_skipped_uncond_rows(host: Running) -> None:
    check(host, "txt2img", {"s_min_uncond": 4.0, "steps": 6, "override_settings": {"s_min_uncond_all": True}})


def test_a_guided_picture_does_not_depend_on_its_batch(host: Running) -> None:
    pair = host.generate(script_args=fabric(BOTH), batch_size=2)
    alone = host.generate(script_args=fabric(BOTH), seed=2)
    difference = np.abs(pixels(pair)[1].astype(int) - pixels(alone)[0].astype(int))
    assert difference.max() <= 1  # the matrix products of another batch size round differently


@pytest.mark.parametrize("name", ["txt2img", "AND", "slices", "Hires.fix"])
def test_a_consistent_batch_follows_its_first_image(host: Running, name: str) -> None:
    job = {**JOBS[name], "batch_size": 3}
    plain, made = host.generate(**job), host.generate(script_args=fabric({"consistent_batch": True}), **job)
    moved = [np.abs(one.astype(int) - two).max() for one, two in zip(pixels(plain), pixels(made))]
    assert moved[0] <= 1 < min(moved[1:])  # attention is computed by another kernel
    assert "FABRIC consistent batch: on" in made.infotexts[0]


def test_a_batch_of_one_cannot_be_consistent_and_says_so(host: Running) -> None:
    made = host.generate(script_args=fabric({"consistent_batch": True}))
    assert same(made, host.generate())
    assert "FABRIC consistent batch" not in made.infotexts[0]
    assert "needs a batch size above 1" in made.infotexts[0]


@pytest.mark.parametrize("asked", [{"adain": True, "detail": "half"}, {"layers": "coarse"}, {"layers": "fine"}])
def test_layers_and_statistics(host: Running, asked: dict[str, Any]) -> None:
    check(host, "txt2img", JOBS["Hires.fix"], {**BOTH, **asked})
    made = (host.generate(script_args=fabric(request)) for request in (BOTH, {**BOTH, **asked}))
    assert not same(*made)


@pytest.mark.parametrize(
    ("family", "options"), [("sd2", {}), ("sdxl", {}), ("sd1", {"in_channels": 8}), ("sd1", {"in_channels": 9})]
)
def test_every_family(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], family: str, options: dict[str, Any]
) -> None:
    host = start_host(checkpoints(family, **options), extension_dirs=[REPO])
    if options.get("in_channels") != 8:  # the WebUI, too, takes an 8-channel model in img2img only
        check(host, "txt2img", {"batch_size": 2})
        check(host, "txt2img", JOBS["Hires.fix"])
    check(host, "img2img", {"init_images": [picture(7)], "denoising_strength": 0.7})
    if options.get("in_channels") == 8:  # three rows an image: the last two are both unconditional
        check(host, "img2img", {"init_images": [picture(7)], "denoising_strength": 0.7, "image_cfg_scale": 2.0})


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl, zero SNR"])
def test_the_fixed_noise_levels_are_the_models_own(
    start_host: Callable[..., Running], tmp_path: Path, family: str
) -> None:
    """Each is where it belongs in the model's schedule, for samplers in sigmas and in timesteps, also where that goes
    on to infinity; and a job reads the images there and nowhere else."""
    model, path = tiny.build(family.split(",")[0]), tmp_path / "model.safetensors"
    if "zero" in family:
        model.extra.update({"v_pred": torch.empty(0), "ztsnr": torch.empty(0)})
    host = start_host(tiny.write_file(model, path, with_yaml="zero" not in family), extension_dirs=[REPO])
    clean, noise = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 8, 8)
    found: dict[str, list[float]] = {}

    def look(sampling: Sampling) -> None:
        levels = [sampling.level(sigma) for sigma in (*LADDER, 1e9, 1e-9)]
        mixed = [(sampling.noisy(clean, noise, level), sampling.noisy(noise, clean, level)) for level in levels]
        found[sampler] = [float((up / signal).mean()) for up, signal in mixed]
        assert [sampling.sigma(level) for level in levels] == pytest.approx(found[sampler], rel=1e-3)

    for sampler in ("Euler", "DDIM"):
        with acting(host, look, False):
            host.latents(sampler_name=sampler, script_args=fabric(BOTH), steps=6)
    assert found["Euler"][:6] == pytest.approx(list(LADDER), rel=0.03)
    assert found["DDIM"] == pytest.approx(found["Euler"], rel=0.03)  # the nearest timestep
    assert (found["Euler"][6] > 1000) == ("zero" in family)
    assert found["Euler"][7] == pytest.approx(0.0292, rel=0.01)
