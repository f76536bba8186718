"""PAG and SEG: as diffusers' hooks and guiders, row by row, and in every kind of job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.guiders import PerturbedAttentionGuidance, SmoothedEnergyGuidance
from diffusers.hooks import HookRegistry, LayerSkipConfig
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceHook, _gaussian_blur_2d
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.denoiser import Guidance, Role, Row, Unsupported
from lib_methods.guiders import perturb
from lib_methods.guiders.apply import GuidanceGuide, attach
from lib_methods.guiders.settings import ALL_LAYERS, COARSE, OFF, PAG, SEG, GuidanceSettings
from lib_methods.hosts.bare import BareSampling
from tests.fabric.small_model import picture, small_unet
from tests.fabric.test_in_the_host import BOTH, IMG2IMG, JOBS
from tests.fabric.test_promises import CONTEXT, X, instance_overrides
from tests.guiders.test_guide import CALL, guidance
from tests.shared import jobs
from tests.shared.jobs import REPO, left_on_the_model, pixels, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running, checkpoints, start_host

__all__ = ["checkpoints", "start_host"]
PLAIN: dict[str, Any] = {"method": OFF, "highest_sigma": 0, "lowest_sigma": 0}
KINDS = pytest.mark.parametrize("kind", [PAG, SEG])
ROWS = (Row(Role.COND, 0), Row(Role.UNCOND, 0), Row(Role.COND, 0, perturbed=True), Row(Role.COND, 1, perturbed=True))


def settings_of(**changed: Any) -> GuidanceSettings:
    return GuidanceSettings(**{**PLAIN, "perturbation_scale": 3.0, **changed})


def denoised(unet: Any, rows: tuple[Row, ...] = ROWS, **changed: Any) -> Tensor:
    sampling = BareSampling(unet)
    part = attach(sampling, settings_of(**changed))
    assert part is not None
    sampling.add_hook(part)
    found = sampling.denoise(X, CONTEXT, rows)
    assert part.missed == "" and instance_overrides(unet) == []
    return found


@given(st.integers(1, 9), st.floats(0.5, 200), st.integers(0, 1000))
def test_the_blur_is_diffusers(side: int, sigma: float, seed: int) -> None:
    """Whose two branches are exchanged: above the threshold it blurs, below it takes the mean."""
    values = torch.randn(2, 3, side * side, 4, generator=torch.Generator().manual_seed(seed))
    flat = values.transpose(1, 2).flatten(2)
    size = int(np.ceil(6 * sigma)) + 1 - int(np.ceil(6 * sigma)) % 2
    for ours, threshold in ((sigma, -1.0), (perturb.WHOLE + 1, float("inf"))):
        wanted = _gaussian_blur_2d(flat.clone(), size, sigma, threshold).unflatten(2, (3, 4)).transpose(1, 2)
        assert torch.allclose(perturb.blur(values, (side, side), ours), wanted, atol=1e-5)


def test_an_image_that_is_not_square_is_blurred_along_both_sides() -> None:
    values = torch.zeros(1, 1, 5 * 9, 1)
    values[0, 0, 2 * 9 + 4] = 1.0
    found = perturb.blur(values, (5, 9), 0.5).view(5, 9)
    assert found.argmax() == 22 and torch.allclose(found.sum(), torch.tensor(1.0), atol=1e-5)
    assert torch.allclose(found, found.flip(0), atol=1e-6) and torch.allclose(found, found.flip(1), atol=1e-6)


@KINDS
@pytest.mark.parametrize("blur", [1.0, 100.0])
def test_perturbed_rows_are_those_of_diffusers_hooks_and_the_others_stay(kind: str, blur: float) -> None:
    unet, theirs = small_unet(), small_unet()
    blocks = "mid_block.attentions.0.transformer_blocks"
    if kind == PAG:
        skips = {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False}
        _apply_layer_skip_hook(theirs, LayerSkipConfig(indices=[0], fqn=blocks, **skips))
    else:
        query = theirs.get_submodule(f"{blocks}.0.attn1.to_q")
        registry = HookRegistry.check_if_exists_or_initialize(query)
        registry.register_hook(SmoothedEnergyGuidanceHook(blur, -1.0), "blur")
    plain, wanted = BareSampling(unet).denoise(X, CONTEXT, ROWS), BareSampling(theirs).denoise(X, CONTEXT, ROWS)
    found = denoised(unet, perturbation=kind, seg_blur=blur)
    assert torch.equal(found[:2], plain[:2])
    assert torch.allclose(found[2:], wanted[2:], atol=1e-5)
    assert (found[2:] - plain[2:]).abs().max() > 1e-4
    alone = tuple(Row(Role.COND, i, perturbed=True) for i in range(4))  # as hosts run them
    assert torch.allclose(denoised(unet, alone, perturbation=kind, seg_blur=blur), wanted, atol=1e-5)


def test_the_layers_are_the_middle_block_the_widest_or_all() -> None:
    unet = small_unet()
    (middle,) = perturb.chosen_layers(unet, "middle")
    coarse, every = (perturb.chosen_layers(unet, which) for which in (COARSE, ALL_LAYERS))
    assert middle.name.startswith("mid_block")
    assert {middle.name} < {layer.name for layer in coarse} < {layer.name for layer in every}
    unet.mid_block = None
    with pytest.raises(Unsupported, match="Set Perturbed layers to coarse"):
        attach(BareSampling(unet), settings_of())
    assert attach(BareSampling(unet), settings_of(perturbed_layers=COARSE))


@KINDS
@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_the_sum_is_diffusers_guiders(kind: str, scale: float, share: float) -> None:
    seen, given = guidance(scale), {"guidance_scale": scale, "guidance_rescale": share}
    perturbed = torch.randn(seen.cond.shape, generator=torch.Generator().manual_seed(3))
    theirs: Any
    if kind == PAG:
        theirs = PerturbedAttentionGuidance(perturbed_guidance_scale=3.0, perturbed_guidance_layers=0, **given)
    else:
        theirs = SmoothedEnergyGuidance(seg_guidance_scale=3.0, seg_guidance_layers=0, **given)
    if scale == 1:  # without an unconditional prediction theirs begins at the perturbed one, which is one unit weaker
        theirs.use_original_formulation = True
        theirs.guidance_scale = 0.0
    wanted = theirs.forward(seen.cond, None if scale == 1 else seen.base, perturbed).pred
    found = GuidanceGuide(BareSampling(small_unet()), settings_of(perturbation=kind, rescale=share))
    shown = Guidance(seen.cond, seen.base, seen.direction, scale, seen.guided, seen.cond - perturbed)
    assert torch.allclose(found.guide(CALL, shown), wanted, atol=1e-4 if share else 1e-5)


def perturbed(**request: Any) -> dict[str, list[Any]]:
    return {"guidance": [{**PLAIN, "perturbation_scale": 3.0, **request}]}


@pytest.fixture(scope="module")
def sd1(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[REPO])


@pytest.mark.parametrize("name", JOBS)
def test_txt2img(sd1: Running, name: str) -> None:
    jobs.check(sd1, "txt2img", {"cfg_scale": 5.0, **JOBS[name]}, perturbed(), "Guidance")


@pytest.mark.parametrize("name", IMG2IMG)
def test_img2img(sd1: Running, name: str) -> None:
    request = perturbed(perturbation=SEG, method="Skimmed CFG")
    jobs.check(sd1, "img2img", {"init_images": [picture(7)], **IMG2IMG[name]}, request, "Guidance")


@pytest.mark.parametrize("sampler", ["Euler a", "Heun", "DDIM", "LCM"])
def test_every_sampler(sd1: Running, sampler: str) -> None:
    jobs.check(sd1, "txt2img", {"sampler_name": sampler, "steps": 4}, perturbed(perturbation=SEG), "Guidance")


def test_an_image_does_not_depend_on_its_batch(sd1: Running) -> None:
    pair = sd1.generate(batch_size=2, script_args=perturbed())
    alone = sd1.generate(seed=2, script_args=perturbed())
    assert np.abs(pixels(pair)[1].astype(int) - pixels(alone)[0].astype(int)).max() <= 1


def test_scale_0_is_an_ordinary_job(sd1: Running) -> None:
    made = sd1.generate(script_args=perturbed(perturbation_scale=0))
    assert same(made, sd1.generate())
    assert jobs.fields_of(made, "Guidance") == {}


def test_an_exception_in_a_layer_ends_the_method_and_leaves_nothing_behind(
    sd1: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sd1.generate()

    def fail(*args: Any) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(perturb, "blur", fail)
        made = sd1.generate(script_args=perturbed(perturbation=SEG))
    assert "Guidance error: An internal error; " in made.infotexts[0]
    assert same(before, made)
    assert left_on_the_model() == []


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_every_family(start_host: Callable[..., Running], checkpoints: Callable[..., Path], family: str) -> None:
    jobs.check(start_host(checkpoints(family), extension_dirs=[REPO]), "txt2img", {}, perturbed(), "Guidance")


@pytest.mark.parametrize("others", ["fabric", "nag", "instructpix2pix"])
def test_beside_another_method_both_have_their_part_in_any_order(
    start_host: Callable[..., Running],
    checkpoints: Callable[..., Path],
    others: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from standalone.host.scripts.loading import runner_of
    from tests.guiders.test_in_the_host import assert_together

    given: dict[str, dict[str, Any]] = {
        "fabric": {"enabled": True, **BOTH},
        "nag": {"enabled": True, "negative_prompt": "a blue triangle"},
        "instructpix2pix": {"image": encoded(picture(7, 64, 64)), "image_scale": 1.6},
    }
    options = {"in_channels": 8} if others == "instructpix2pix" else {}
    host = start_host(checkpoints("sd1", **options), extension_dirs=[REPO])
    both = {others: [given[others]], **perturbed(perturbed_layers=ALL_LAYERS)}
    assert_together(host, both, {"batch_size": 2}, monkeypatch, runner_of(False))
