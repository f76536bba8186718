"""One resolver for names: what it takes means one thing, for the check and for the job; everything else is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.errors import UserError
from modules import sd_samplers, sd_schedulers
from standalone.engine import names
from standalone.host import checkpoints, upscalers
from standalone.host.sampling import registry

SAMPLERS = [sampler.name for sampler in sd_samplers.all_samplers]
ALIASES = [(alias, sampler.name) for sampler in sd_samplers.all_samplers for alias in sampler.aliases]


def in_another_case(text: str, upper: list[bool]) -> str:
    return "".join(letter.upper() if up else letter.lower() for letter, up in zip(text, upper * len(text)))


CASES = st.lists(st.booleans(), min_size=1, max_size=8)


@given(st.sampled_from([*ALIASES, *((name, name) for name in SAMPLERS)]), CASES)
def test_a_sampler_is_found_by_its_name_and_aliases_in_any_case(known: tuple[str, str], upper: list[bool]) -> None:
    text, name = known
    assert registry.resolve(f" {in_another_case(text, upper)} ") == (name, "Automatic")


@given(st.sampled_from(SAMPLERS), st.sampled_from(sd_schedulers.schedulers), CASES)
def test_a_name_that_carries_a_schedule_sets_both(sampler: str, schedule: Any, upper: list[bool]) -> None:
    config = sd_samplers.find_sampler_config(sampler)
    assert config is not None
    for label in (schedule.label, schedule.name, *(schedule.aliases or [])):
        text = in_another_case(f"{sampler} {label}", upper)
        if registry.takes_schedule(config):
            assert registry.resolve(text) == (sampler, schedule.label)
        else:  # "DDIM Karras" would run without its schedule
            with pytest.raises(UserError):
                registry.resolve(text)


@given(st.sampled_from(sd_schedulers.schedulers), CASES)
def test_a_schedule_is_found_by_label_name_and_alias_in_any_case(schedule: Any, upper: list[bool]) -> None:
    for label in (schedule.label, schedule.name, *(schedule.aliases or [])):
        assert registry.resolve("Euler", in_another_case(label, upper)) == ("Euler", schedule.label)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("k_euler_a", None), ("Euler a", "Automatic")),
        (("Euler A", "KARRAS"), ("Euler a", "Karras")),
        (("k_dpmpp_2m_ka", ""), ("DPM++ 2M", "Karras")),
        (("k_dpmpp_2m_sde_exp", None), ("DPM++ 2M SDE", "Exponential")),
        (("DPM++ 2M SDE Karras", "Automatic"), ("DPM++ 2M SDE", "Karras")),
        (("DPM++ 2M Karras", "Exponential"), ("DPM++ 2M", "Exponential")),  # the request's own choice
        (("dpm++  2m  karras", "automatic"), ("DPM++ 2M", "Karras")),
        (("DDIM", "sgm_uniform"), ("DDIM", "SGM Uniform")),
        (("dpmpp_2m_sde_gpu_karras", None), ("DPM++ 2M SDE", "Karras")),  # ComfyUI
        (("euler_ancestral_sgm_uniform", None), ("Euler a", "SGM Uniform")),
        (("uni_pc", "ddim_uniform"), ("UniPC", "DDIM")),
        (("Euler DDIM", None), ("Euler", "DDIM")),
        ((None, None), (SAMPLERS[0], "Automatic")),
        (("", ""), (SAMPLERS[0], "Automatic")),
    ],
)
def test_what_requests_mean(given: tuple[Any, Any], meant: tuple[str, str]) -> None:
    assert registry.resolve(*given) == meant


@pytest.mark.parametrize("name", ["Nope", "Euler a Nope", "Karras", "Eulera", " ", "Euler a Karras Karras", "k_", "0"])
def test_other_samplers_are_refused_with_the_names_that_there_are(name: str) -> None:
    with pytest.raises(UserError, match=r"no sampler named .*Available: .*Euler a"):
        registry.resolve(name)
    with pytest.raises(UserError, match=r"no schedule named .*Available: .*Karras"):
        registry.resolve("Euler", name if name != "Karras" else "Carras")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("DPM++ 2M Karras", None), ("DPM++ 2M", "Karras")),
        (("DPM++ 2M Karras", "use same scheduler"), ("DPM++ 2M", "Karras")),
        (("k_euler", "Use same scheduler"), ("Euler", None)),
        (("USE SAME SAMPLER", "karras"), (None, "Karras")),
        (("", "Automatic"), (None, "Automatic")),
        ((None, None), (None, None)),
    ],
)
def test_the_second_pass_of_hires_fix(given: tuple[Any, Any], meant: tuple[Any, Any]) -> None:
    assert registry.resolve_hires(*given) == meant


def fixed(**fields: Any) -> tuple[Any, ...]:
    p = SimpleNamespace(**{"scheduler": None, "hr_sampler_name": None, "hr_scheduler": None, **fields})
    sd_samplers.fix_p_invalid_sampler_and_scheduler(p)
    return p.sampler_name, p.scheduler, p.hr_sampler_name, p.hr_scheduler


def test_a_job_has_the_names_of_today_and_claims_no_schedule_that_its_sampler_does_not_take() -> None:
    assert fixed(sampler_name="k_heun", scheduler="karras")[:2] == ("Heun", "Karras")
    assert fixed(sampler_name="DDIM", scheduler="Karras")[:2] == ("DDIM", "Automatic")
    second = fixed(sampler_name="DDIM", scheduler="Karras", enable_hr=True, hr_sampler_name="k_euler")
    assert second == ("DDIM", "Automatic", "Euler", "Karras")
    with pytest.raises(UserError):
        fixed(sampler_name="Euler c")
    with pytest.raises(UserError):
        fixed(sampler_name="Euler", enable_hr=True, hr_sampler_name="Euler c")


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ({"Sampler": "DPM++ 2M Karras"}, ("DPM++ 2M", "Automatic"), ("Use same sampler", "Use same scheduler")),
        ({"Sampler": "DPM++ 2M SDE Karras"}, ("DPM++ 2M SDE", "Karras"), ("Use same sampler", "Use same scheduler")),
        (
            {"Sampler": "Euler a", "Hires sampler": "DPM++ 2M SDE Karras"},
            ("Euler a", "Automatic"),
            ("DPM++ 2M SDE", "Karras"),
        ),
        (  # before v1.9 "Euler a" had no schedule here
            {"Sampler": "DPM++ 2M SDE Karras", "Hires sampler": "Euler a"},
            ("DPM++ 2M SDE", "Karras"),
            ("Euler a", "Automatic"),
        ),
        (
            {"Sampler": "DPM++ 2M SDE Karras", "Hires sampler": "DPM++ 2M SDE Karras"},
            ("DPM++ 2M SDE", "Karras"),
            ("Use same sampler", "Use same scheduler"),
        ),
        (
            {"Sampler": "Euler", "Schedule type": "Karras", "Hires sampler": "Heun"},
            ("Euler", "Karras"),
            ("Heun", "Use same scheduler"),
        ),
        (  # what this host does not have stays, so that no control takes it
            {"Sampler": "Restart", "Schedule type": "Beta"},
            ("Restart", "Beta"),
            ("Use same sampler", "Use same scheduler"),
        ),
        ({}, (None, "Automatic"), ("Use same sampler", "Use same scheduler")),
    ],
)
def test_infotexts_old_and_new(fields: dict[str, str], first: tuple[Any, Any], second: tuple[str, str]) -> None:
    found = {"Schedule type": "Automatic", **fields}  # as the parser fills it in
    assert (sd_samplers.get_sampler_from_infotext(found), sd_samplers.get_scheduler_from_infotext(found)) == first
    assert sd_samplers.get_hr_sampler_and_scheduler(found) == second


@given(st.text(max_size=12) | st.text(st.characters(categories=["Cs", "Cc", "L"]), max_size=12))
def test_any_text_is_a_name_or_a_sentence(text: str) -> None:
    told = []
    for find in (registry.resolve, lambda text: registry.resolve(None, text), upscalers.find_hires_upscaler):
        try:
            assert find(text)
        except UserError as error:
            told.append(str(error))
    assert all(sentence.isprintable() and sentence.encode() for sentence in told)


def test_upscalers_in_any_case() -> None:
    assert upscalers.find_hires_upscaler("latent (BICUBIC antialiased)") == "Latent (bicubic antialiased)"
    assert upscalers.find_hires_upscaler("lanczos") == "Lanczos"
    assert tuple(upscaler.name for upscaler in upscalers.sd_upscalers) == names.UPSCALERS
    found = upscalers.find_upscaler("NEAREST")
    assert found is not None and found.name == "Nearest"


def test_a_name_that_folds_to_two_things_is_neither() -> None:
    table = {"Model": 1, "model": 2, "Other": 3}
    assert names.find("Model", table) == 1 and names.find("model", table) == 2
    assert names.find("MODEL", table) is None
    assert names.find("OTHER.SafeTensors", table, names.folded_file) == 3


@pytest.mark.parametrize("name", ["sd1.safetensors", "SD1.SAFETENSORS", "sd1", "Sd1", "sd1.safetensors [0123456789]"])
def test_checkpoints_in_any_case_and_with_or_without_the_ending(sd1: Any, name: str) -> None:
    found = checkpoints.find_checkpoint(name)
    assert found is not None and found.name == "sd1.safetensors"
    assert checkpoints.find_checkpoint("Use same CHECKPOINT") is None
    with pytest.raises(UserError, match=r"no checkpoint named 'nope'. Available: .*sd1"):
        checkpoints.find_checkpoint("nope")
