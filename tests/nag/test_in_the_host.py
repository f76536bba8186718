"""NAG in every kind of job of the standalone host, on tiny models of every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib_methods.nag.settings import CONTROLS, NagSettings
from tests.fabric.small_model import picture
from tests.fabric.test_in_the_host import IMG2IMG, JOBS
from tests.shared import jobs
from tests.shared.jobs import REPO, fields_of, same
from tests.standalone.conftest import Running, checkpoints, start_host

__all__ = ["checkpoints", "start_host"]
NEGATIVE = "a blue triangle"


def nag(**request: Any) -> dict[str, list[Any]]:
    return {"nag": [{"enabled": True, **request}]}


def check(host: Running, kind: str, job: dict[str, Any], **request: Any) -> None:
    jobs.check(host, kind, {"negative_prompt": NEGATIVE, **job}, nag(**request), "NAG")


@pytest.fixture(scope="module")
def sd1(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


@pytest.mark.parametrize("name", JOBS)
def test_txt2img(sd1: Running, name: str) -> None:
    check(sd1, "txt2img", JOBS[name])


@pytest.mark.parametrize("name", IMG2IMG)
def test_img2img(sd1: Running, name: str) -> None:
    check(sd1, "img2img", {"init_images": [picture(7)], **IMG2IMG[name]})


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M Karras", "DDIM", "UniPC", "LCM"])
def test_every_sampler(sd1: Running, sampler: str) -> None:
    check(sd1, "txt2img", {"sampler_name": sampler, "steps": 4})


def test_the_negative_prompt_counts_at_cfg_scale_1(sd1: Running) -> None:
    job: dict[str, Any] = {"cfg_scale": 1.0}
    plain = [sd1.generate(negative_prompt=text, **job) for text in ("", NEGATIVE)]
    made = [sd1.generate(negative_prompt=text, script_args=nag(), **job) for text in ("", NEGATIVE)]
    assert same(*plain)
    assert not same(*made)


def test_its_own_negative_prompt_takes_the_place_of_the_jobs(sd1: Running) -> None:
    job: dict[str, Any] = {"cfg_scale": 1.0}
    made = sd1.generate(negative_prompt="", script_args=nag(negative_prompt=NEGATIVE), **job)
    assert same(made, sd1.generate(negative_prompt=NEGATIVE, script_args=nag(), **job))
    assert fields_of(made, "NAG") == {"NAG scale": "3", "NAG negative prompt": NEGATIVE}


def test_each_image_of_a_batch_has_its_own_negative_prompt(sd1: Running) -> None:
    job: dict[str, Any] = {"cfg_scale": 1.0, "seed": [1, 2], "batch_size": 2, "prompt": ["a circle", "a circle"]}
    both = sd1.generate(negative_prompt=[NEGATIVE, "green"], script_args=nag(), **job)
    other = sd1.generate(negative_prompt=["green", "green"], script_args=nag(), **job)
    first, second = zip(jobs.pixels(both), jobs.pixels(other))
    assert (first[0] != first[1]).any()
    assert (second[0] == second[1]).all()


def test_the_second_pass_of_hires_fix_has_its_own_negative_prompt(sd1: Running) -> None:
    job = {**JOBS["Hires.fix"], "cfg_scale": 1.0, "negative_prompt": NEGATIVE}
    made = [sd1.generate(hr_negative_prompt=text, script_args=nag(), **job) for text in ("", "green")]
    assert not same(*made)


@pytest.mark.parametrize("request_", [{"scale": 1.0}, {"alpha": 0.0}])
def test_settings_that_change_nothing_are_an_ordinary_job(sd1: Running, request_: dict[str, Any]) -> None:
    made = sd1.generate(negative_prompt=NEGATIVE, script_args=nag(**request_))
    assert same(made, sd1.generate(negative_prompt=NEGATIVE))
    assert fields_of(made, "NAG") == {}


def test_the_infotext_brings_it_back(sd1: Running) -> None:
    made = sd1.generate(negative_prompt=NEGATIVE, script_args=nag(scale=5, tau=3.5))
    fields = fields_of(made, "NAG")
    assert fields == {"NAG scale": "5", "NAG tau": "3.5"}
    values = CONTROLS.from_infotext(fields)
    assert values.pop("enabled") is True
    assert CONTROLS.settings_from(values) == NagSettings(scale=5, tau=3.5)


@pytest.mark.parametrize("asked", [[{"scale": 0.5}], [{"scale": "much"}], [{"sclae": 3}], [True, 3, 2.5, 7]])
def test_a_bad_request_is_left_out_and_said(sd1: Running, asked: list[Any]) -> None:
    made = sd1.generate(script_args={"nag": asked})
    assert same(made, sd1.generate())
    assert "NAG error" in made.infotexts[0]


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_every_family(start_host: Callable[..., Running], checkpoints: Callable[..., Path], family: str) -> None:
    host = start_host(checkpoints(family), extension_dirs=[REPO])
    check(host, "txt2img", {"batch_size": 2, "negative_prompt": ""})
    check(host, "txt2img", JOBS["Hires.fix"])
