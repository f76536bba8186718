"""Outside an interval without guidance, unconditional rows are not run, and the images are those of rows that are run
and dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lib_methods.denoiser import Role, Row, RowChoice
from lib_methods.guiders.apply import GuidanceGuide
from lib_methods.guiders.settings import GuidanceSettings
from lib_methods.hosts.a1111.rows import A1111Call, RowTakeover
from lib_methods.hosts.bare import BareSampling
from tests.fabric.small_model import picture, small_unet
from tests.fabric.test_in_the_host import BOTH, HALF_MASK, JOBS
from tests.guiders.test_guide import at
from tests.shared.jobs import REPO
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running, checkpoints, start_host

__all__ = ["checkpoints", "start_host"]
OUTSIDE_1: dict[str, Any] = {"skimming_scale": 1.5, "highest_sigma": 5.0, "lowest_sigma": 0.5, "outside_scale": 1}
CASES: dict[str, dict[str, Any]] = {
    "batch": {"batch_size": 2},
    "AND to 1": {"prompt": "a circle :0.4 AND a red square :0.6"},
    "slices": JOBS["slices"],
    "long prompt, short negative": JOBS["long prompt, short negative"],
    "padded prompts": JOBS["padded prompts"],
    "Hires.fix with another sampler": JOBS["Hires.fix with another sampler"],
    "Heun": {"sampler_name": "Heun"},
    "inpainting": {"init_images": [picture(7)], "mask": HALF_MASK, "denoising_strength": 0.9},
    "host skips some": {"s_min_uncond": 3.0, "override_settings": {"s_min_uncond_all": True}},
    "fabric": {"script_args": {"fabric": [{"enabled": True, **BOTH}]}},
    "nag": {"script_args": {"nag": [{"enabled": True, "negative_prompt": "a blue triangle"}]}},
}
KEPT: dict[str, dict[str, Any]] = {"AND to 2": {"prompt": "a circle AND a red square"}}


@pytest.fixture(scope="module")
def sd1(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


def made(
    host: Running, monkeypatch: pytest.MonkeyPatch, runs_all: bool, script_args: Any = None, **job: Any
) -> tuple[Any, int]:
    """The latents, and how many rows the UNet was run for; runs_all: no row is left out."""
    kind, rows, enter = "img2img" if "init_images" in job else "txt2img", [0], A1111Call.enter_unet

    def counted(self: A1111Call, latents: Any) -> None:
        rows[0] += len(latents)
        enter(self, latents)

    with monkeypatch.context() as patched:
        patched.setattr(A1111Call, "enter_unet", counted)
        if runs_all:
            patched.setattr(GuidanceGuide, "choose", lambda *_: RowChoice())
        scripts = {**(script_args or {}), "guidance": [OUTSIDE_1]}
        return host.latents(kind, **{"cfg_scale": 9.0, "steps": 4, "script_args": scripts, **job}), rows[0]


@pytest.mark.parametrize("name", [*CASES, *KEPT])
def test_the_image_is_that_of_rows_that_are_run_and_dropped(
    sd1: Running, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job = {**CASES, **KEPT}[name]
    wanted, every = made(sd1, monkeypatch, True, **job)
    found, fewer = made(sd1, monkeypatch, False, **job)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (fewer < every) is (name in CASES)


def test_an_image_scale_keeps_all_rows(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start_host(checkpoints("sd1", in_channels=8), extension_dirs=[REPO])
    ours = {"instructpix2pix": [{"image": encoded(picture(7, 64, 64)), "image_scale": 1.6}]}
    own: dict[str, Any] = {"init_images": [picture(7)], "denoising_strength": 0.9, "image_cfg_scale": 1.6}
    for job in ({"script_args": ours}, own):
        (wanted, every), (found, rows) = (made(host, monkeypatch, runs_all, **job) for runs_all in (True, False))
        assert torch.equal(found, wanted) and rows == every


@pytest.mark.parametrize("needed", [True, False])
def test_a_sampler_that_continues_with_the_unconditional_prediction_keeps_its_rows(needed: bool) -> None:
    """DDIM CFG++."""
    rows = (Row(Role.COND, 0), Row(Role.UNCOND, 0))
    denoiser: Any = SimpleNamespace(need_last_noise_uncond=needed, total_steps=1, steps=1, step=0)
    cond = SimpleNamespace(batch=[[SimpleNamespace(weight=1.0)]])
    call, takeover = A1111Call(denoiser, torch.ones(1), rows), RowTakeover(None, denoiser, small_unet, cond, True)
    takeover.begin(call, RowChoice(uncond=False), {}, torch.zeros(1, 4, 8, 8))
    assert call.rows == (rows if needed else rows[:1])


def test_rows_are_left_out_only_where_the_scale_comes_out_as_1() -> None:
    part = GuidanceGuide(BareSampling(small_unet()), GuidanceSettings(outside_scale=1))
    assert [part.choose(at(sigma), 9.0).uncond for sigma in (14.6, 3.0, 0.03)] == [False, True, False]
    assert part.choose(at(14.6), 1.0) == RowChoice()  # an ordinary job
    five = GuidanceGuide(BareSampling(small_unet()), GuidanceSettings())
    assert all(five.choose(at(sigma), 9.0).uncond for sigma in (14.6, 3.0, 0.03))
    perturbing = GuidanceGuide(BareSampling(small_unet()), GuidanceSettings(perturbation_scale=3))
    assert perturbing.choose(at(3.0), 1.0) == RowChoice(uncond=False, perturbed=True)
    assert perturbing.choose(at(3.0), 9.0) == RowChoice(uncond=True, perturbed=True)
