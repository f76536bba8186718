"""The refiner: the checkpoint that takes over is asked from the right step on, and leaves no trace after the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_methods.errors import UserError
from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.denoiser import SigmaDenoiser

BASE, REFINER = "sd1-levels1", "sd1-levels1-seed1"
REFINED: dict[str, Any] = {"refiner_checkpoint": REFINER, "refiner_switch_at": 0.5}


@pytest.fixture
def two(start_host: Callable[..., Any], checkpoints: Callable[..., Path]) -> Any:
    """A host with two tiny checkpoints; the first is loaded."""
    path = checkpoints("sd1", levels=1)
    checkpoints("sd1", levels=1, seed=1)
    running = start_host(path, extension_dirs=[])
    from modules import sd_models

    sd_models.list_models()
    return running


def loaded() -> str:
    from modules import shared

    return str(shared.sd_model.sd_checkpoint_info.name_for_extra)


@contextmanager
def calls() -> Iterator[list[tuple[str, float]]]:
    """The checkpoint and the sigma of every denoiser call."""
    from modules import script_callbacks

    seen: list[tuple[str, float]] = []

    def note(params: Any) -> None:
        seen.append((loaded(), float(params.sigma[0])))

    script_callbacks.on_cfg_denoiser(note)
    yield seen
    script_callbacks.remove_callbacks_for_function(note)


def names(seen: list[tuple[str, float]]) -> list[str]:
    return [name for name, _ in seen]


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        ("txt2img", "Euler"),
        ("txt2img", "Heun"),
        ("txt2img", "DDIM"),
        ("txt2img", "UniPC"),
        ("img2img", "DPM++ 2M"),
        ("img2img", "DDIM"),
    ],
)
def test_it_takes_over_at_its_share_of_the_timesteps(two: Any, kind: str, sampler: str) -> None:
    fields: dict[str, Any] = {"steps": 6, "sampler_name": sampler}
    if kind == "img2img":
        fields |= {"init_images": [Image.new("RGB", (64, 64), "red")], "denoising_strength": 0.95}
    for share in (0.4, 0.6):
        with calls() as seen:
            two.generate(kind, **{**REFINED, "refiner_switch_at": share}, **fields)
        sigmas = SigmaDenoiser(two.host.model).sigmas
        for name, level in seen:
            t = int(level) if sampler in ("DDIM", "UniPC") else int((sigmas - level).abs().argmin())
            assert name == (REFINER if (999 - t) / 1000 >= share else BASE)
        assert set(names(seen)) == {BASE, REFINER}
        assert loaded() == BASE


def test_models_distilled_for_few_timesteps_count_those(two: Any) -> None:
    with calls() as seen:
        two.generate(steps=4, sampler_name="LCM", **REFINED)
    assert names(seen) == [BASE, BASE, REFINER, REFINER]


def test_the_latents_are_those_of_the_two_models_by_hand(two: Any, checkpoints: Callable[..., Path]) -> None:
    fields: dict[str, Any] = {"steps": 5, "scheduler": "Uniform", "cfg_scale": 1.0, "prompt": "a [cat:dog:3]"}
    found = two.latents(**fields, refiner_checkpoint=REFINER, refiner_switch_at=0.6)
    models = [load_checkpoint(checkpoints("sd1", levels=1, **more)) for more in ({}, {"seed": 1})]
    sigmas = SigmaDenoiser(models[0]).get_sigmas(5)
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)) * sigmas[0]
    for i, (now, following) in enumerate(zip(sigmas, sigmas[1:])):
        model = models[i >= 3]  # timesteps 999, 749, 499, 250, 0: the first three of them are not 0.6 of the way
        text = model.get_learned_conditioning(["a cat" if i <= 3 else "a dog"])
        with torch.no_grad():
            denoised = SigmaDenoiser(model)(x, now.reshape(1), cond={"c_crossattn": [text]})
        x = x + (x - denoised) / now * (following - now)
    assert (found - x).abs().max() < 1e-4


def test_switched_by_steps(two: Any) -> None:
    with calls() as seen:
        info = two.generate(steps=4, override_settings={"refiner_switch_by_sample_steps": True}, **REFINED).info
    assert names(seen) == [BASE, BASE, REFINER, REFINER]
    assert "Refiner switch by sampling steps: True" in info


def test_the_infotext_tells_it_and_can_be_pasted(two: Any) -> None:
    from modules import infotext_utils, sd_models

    info = two.generate(**REFINED).info
    refiner = sd_models.get_closet_checkpoint_match(REFINER)
    assert refiner is not None
    params = infotext_utils.parse_generation_parameters(info)
    assert params["Refiner"] == refiner.short_title
    assert sd_models.get_closet_checkpoint_match(params["Refiner"]) is refiner
    assert params["Refiner switch at"] == "0.5"
    assert params["Model"] == BASE
    assert "Refiner:" not in two.generate().info


def test_at_1_it_never_takes_over(two: Any) -> None:
    plain = two.latents()
    with calls() as seen:
        assert torch.equal(two.latents(**{**REFINED, "refiner_switch_at": 1.0}), plain)
    assert set(names(seen)) == {BASE}
    assert torch.equal(two.latents(refiner_checkpoint="None", refiner_switch_at=0.1), plain)
    assert torch.equal(two.latents(refiner_checkpoint=BASE, refiner_switch_at=0.1), plain), "itself refines nothing"


def test_a_checkpoint_that_wants_a_picture_is_refused(two: Any, checkpoints: Callable[..., Path]) -> None:
    from modules import sd_models

    path, before = checkpoints("sd1", in_channels=8, levels=1), two.latents()
    sd_models.list_models()
    with pytest.raises(UserError, match="cannot be the refiner: it is an inpainting or editing checkpoint"):
        two.latents(refiner_checkpoint=path.stem, refiner_switch_at=0.5)
    assert loaded() == BASE and torch.equal(two.latents(), before)


def test_every_batch_begins_with_the_base(two: Any) -> None:
    with calls() as seen:
        assert len(two.generate(steps=2, n_iter=2, **{**REFINED, "refiner_switch_at": 0.1}).images) == 2
    assert names(seen) == [BASE, REFINER] * 2


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("first pass", [BASE, REFINER, BASE, BASE]),
        ("second pass", [BASE, BASE, BASE, REFINER]),
        ("both passes", [BASE, REFINER, BASE, REFINER]),
    ],
)
def test_hires_fix_refines_the_passes_that_the_settings_say(two: Any, which: str, expected: list[str]) -> None:
    with calls() as seen:
        info = two.generate(
            steps=2,
            scheduler="Uniform",
            enable_hr=True,
            hr_second_pass_steps=2,
            denoising_strength=0.99,
            override_settings={"hires_fix_refiner_pass": which},
            **{**REFINED, "refiner_switch_at": 0.6},
        ).info
    assert names(seen) == expected
    assert (f"Hires refiner: {which}" in info) == (which != "second pass")


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_exception_in_its_part_leaves_the_base_loaded(
    two: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from modules import shared

    before, title = two.latents(), shared.opts.sd_model_checkpoint
    original = type(two.host.model).apply_model

    def fail(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.sd_checkpoint_info.name_for_extra == REFINER:
            raise error
        return original(self, *args, **kwargs)

    from modules.processing import process_images

    with monkeypatch.context() as patch:
        patch.setattr(type(two.host.model), "apply_model", fail)
        p = two.make(**REFINED)
        with pytest.raises(type(error)):
            process_images(p)
        p.close()
    assert loaded() == BASE
    assert shared.opts.sd_model_checkpoint == title
    assert torch.equal(two.latents(), before)


def test_a_refiner_that_is_not_there(two: Any) -> None:
    with pytest.raises(UserError, match="no refiner checkpoint named 'nowhere'"):
        two.generate(refiner_checkpoint="nowhere", refiner_switch_at=0.5)
