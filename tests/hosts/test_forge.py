"""Forge's adapter, with the interface as Forge's backend defines it."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_methods import hosts
from lib_methods.attention import self_attentions
from lib_methods.denoiser import input_channels
from lib_methods.fabric.apply import attach
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.reference import FeatureCache
from lib_methods.fabric.settings import FabricSettings
from lib_methods.guiders import apply as guiders
from lib_methods.guiders.settings import GuidanceSettings
from lib_methods.hosts import models
from tests.fabric.small_model import Album, picture
from tests.hosts.doubles import Launched, NeoPatcher, Patcher, job

# what Forge's blocks tell a self-attention layer besides its hidden states
BLOCK = {"context": None, "value": None, "transformer_options": {"block": ("input", 1), "block_index": 0, "n_heads": 4}}
MERGED = {**BLOCK, "value": torch.zeros(1)}  # with token merging


class ForgeRun:
    """A job whose UNet is run as Forge runs it, through `model_options`."""

    def __init__(self, unet: nn.Module, told: dict[str, Any] = BLOCK) -> None:
        self.unet, self.told = unet, told
        self.p = job(unet)
        self.p.sampler = Launched(self.p.sampler.model_wrap_cfg)
        self.p.sd_model.forge_objects = SimpleNamespace(unet=Patcher(unet))
        generator = torch.Generator().manual_seed(7)
        self.x, self.context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 7, 16, generator=generator)

    @property
    def options(self) -> dict[str, Any]:
        return self.p.sd_model.forge_objects.unet.model_options

    def attach(self, **changed: Any) -> Any:
        album = Album()
        likes = (FeedbackImage(album.add(picture(1))),)
        sampling = hosts.sampling_of(self.p, torch.zeros(1, 4, 8, 8))
        return attach(sampling, FabricSettings(likes=likes, **changed), album.load, FeatureCache())

    def apply(self, inputs: Tensor, timestep: Tensor, **c: Any) -> Tensor:
        return self.unet(inputs, timestep, c["c_crossattn"], cross_attention_kwargs=self.told).sample

    def begin(self, options: dict[str, Any] | None = None, scale: float = 7.0) -> dict[str, Any]:
        """The options of one denoiser call."""
        given: Any = (SimpleNamespace(diffusion_model=self.unet), self.x[:1], torch.ones(1), [{}], [{}], scale)
        given = (*given, self.options if options is None else options, 0)
        for modifier in given[6].get("conditioning_modifiers", []):
            given = modifier(*given)
        return dict(given[6])

    def run(self, order: tuple[int, ...] = (0, 1), options: dict[str, Any] | None = None) -> Tensor:
        """A run of the UNet with cond (0) and uncond (1) blocks in this order; the result in the order cond, uncond."""
        wrapper = self.begin(options).get("model_function_wrapper")
        chosen = list(order)
        inputs: dict[str, Any] = {
            "input": self.x[chosen],
            "timestep": torch.full((2,), 1.5),
            "c": {"c_crossattn": self.context[chosen], "transformer_options": {}},
            "cond_or_uncond": chosen,
        }
        if wrapper is None:
            out = self.apply(inputs["input"], inputs["timestep"], **inputs["c"])
        else:
            out = wrapper(self.apply, inputs)
        return out[[chosen.index(0), chosen.index(1)]]

    def after(self, options: dict[str, Any] | None = None, **told: Any) -> Tensor:
        """What comes out of the guidance at CFG scale 7 in the end."""
        options = self.begin(options)
        for function in options.get("sampler_post_cfg_function", []):
            told["denoised"] = function({"sigma": torch.ones(1), **told})
        found: Tensor = told["denoised"]
        return found


@torch.no_grad()
def test_forge_rows_come_with_their_labels(unet) -> None:
    """Guided by the same feedback, Forge's path gives what A1111's gives, also with uncond first."""
    forge = ForgeRun(unet)
    original = forge.options
    plain = forge.run()
    for _ in range(2):  # Forge calls the script twice for Hires.fix
        part = forge.attach()
    assert original == {}  # only the clone carries the pass
    assert len(forge.options["conditioning_modifiers"]) == 1
    first, second = forge.run(), forge.run((1, 0))
    assert torch.allclose(first, second, atol=1e-6)
    assert (first[0] - plain[0]).abs().max() > 1e-3
    assert torch.allclose(first[1], plain[1], atol=1e-6)
    assert "forward" not in unet.__dict__
    assert part.acted and part.missed == ""


@torch.no_grad()
def test_feedback_that_no_layer_reads_is_told_and_changes_no_colour(unet) -> None:
    forge = ForgeRun(unet, MERGED)
    plain = forge.run()
    part = forge.attach()
    assert torch.equal(forge.run(), plain)
    assert not part.acted
    assert part.idle.startswith(f"None of the {len(self_attentions(unet))} self-attention layers read the feedback.")
    cond, base = torch.randn(2, 1, 4, 8, 8)
    denoised = base + 7 * (cond - base)
    assert torch.equal(forge.after(denoised=denoised, cond_denoised=cond, uncond_denoised=base), denoised)


@torch.no_grad()
def test_tokens_that_another_extension_hands_over_are_what_feedback_is_read_beside(unet) -> None:
    """Token merging in Forge: fewer queries, and the tokens as they were as context and value."""
    forge = ForgeRun(unet)
    forge.attach()
    wanted = forge.run()
    blocks = [layer.module for layer in self_attentions(unet)]
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "context": args[0].clone(), "value": args[0].clone()}),
            with_kwargs=True,
        )
        for block in blocks
    ]
    part = forge.attach()
    assert torch.allclose(forge.run(), wanted, atol=1e-6)
    assert part.acted and part.missed == ""
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_options_that_forge_copied_and_kept_hold_no_job_and_do_nothing_after_the_pass(unet) -> None:
    forge = ForgeRun(unet)
    plain = forge.run()
    forge.attach()
    guiders.attach(hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8)), GuidanceSettings())
    kept = copy.deepcopy(forge.options)
    guided = forge.run(options=kept)
    assert not torch.equal(guided, plain)  # the copy serves the same pass
    forge.p.sampler.launch_sampling(10, lambda: None)
    assert torch.equal(forge.run(options=kept), plain)
    assert forge.after(kept, denoised=plain) is plain
    assert forge.options == {}  # the host has its own UNet again
    job_of = weakref.ref(forge.p.sampler)
    del forge
    gc.collect()
    assert job_of() is None and kept


@torch.no_grad()
def test_a_second_pass_that_fails_in_forge_has_nothing_of_the_first(unet) -> None:
    """Forge keeps the patched UNet of the first pass for the second."""
    forge = ForgeRun(unet)
    plain = forge.run()
    forge.attach()
    forge.p.sampler.launch_sampling(10, forge.run)
    forge.p.is_hr_pass = True
    assert torch.equal(forge.run(), plain)


@torch.no_grad()
def test_another_extensions_wrapper_set_after_ours_runs_within_the_hooks(unet) -> None:
    """Such as MultiDiffusion's, which runs the UNet tile by tile, several tiles at once."""
    forge = ForgeRun(unet)
    forge.attach()
    wanted = forge.run()
    part = forge.attach()

    def tiled(apply: Any, given: dict[str, Any]) -> Tensor:
        twice = {"c_crossattn": given["c"]["c_crossattn"].repeat(2, 1, 1), "transformer_options": {}}
        return apply(given["input"].repeat(2, 1, 1, 1), given["timestep"].repeat(2), **twice)[:2]

    forge.options["model_function_wrapper"] = tiled
    assert torch.allclose(forge.run(), wanted, atol=1e-5)
    assert part.acted and part.missed == ""


@torch.no_grad()
def test_unconditional_rows_that_are_run_once_more_as_conditional_ones_are_still_known(unet) -> None:
    """Self-attention guidance does that, after the guidance."""
    forge = ForgeRun(unet)
    plain = forge.run()
    forge.attach()
    given: Any = (
        SimpleNamespace(diffusion_model=unet),
        forge.x[:1],
        torch.ones(1),
        [{"cross_attn": forge.context[1:]}],
    )
    for modifier in forge.options["conditioning_modifiers"]:
        options = modifier(*given, [{"cross_attn": forge.context[:1]}], 7.0, forge.options, 0)[6]
    for after in options["sampler_post_cfg_function"][:1]:
        after({"denoised": plain})
    wanted = {"c_crossattn": forge.context[1:], "transformer_options": {}}
    told = {"input": forge.x[1:], "timestep": torch.full((1,), 1.5), "c": wanted, "cond_or_uncond": [0]}
    assert torch.allclose(options["model_function_wrapper"](forge.apply, told), plain[1:], atol=1e-5)


class Shown:
    """A guide that writes down what it is shown."""

    order, acted, idle, missed = 50, True, "", ""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def guide(self, _: Any, guidance: Any) -> Tensor:
        self.all.append(guidance)
        return guidance.guided * 2


@torch.no_grad()
def test_forges_scale_is_the_hosts_own_and_zeros_are_no_guidance(unet) -> None:
    forge, shown = ForgeRun(unet), Shown()
    hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8)).add_guide(shown)
    cond, base, other = torch.randn(3, 1, 4, 8, 8)
    told = {"denoised": other, "cond_denoised": cond}  # another extension has its own formula
    assert torch.equal(forge.after(**told, uncond_denoised=base), other * 2)
    assert shown.all[-1].scale == 7.0
    forge.after(**told, uncond_denoised=base, cond=[{"strength": 1.0}, {"strength": 0.5}], cond_scale=4.0)
    assert shown.all[-1].scale == 4.0
    assert torch.allclose(shown.all[-1].direction, 1.5 * (cond - base))
    forge.after(**told, uncond_denoised=torch.zeros_like(base))
    assert shown.all[-1].scale == 1.0
    assert torch.equal(shown.all[-1].base, cond)
    assert not shown.all[-1].direction.any()


@torch.no_grad()
def test_forges_own_noise_scale_is_used(unet) -> None:
    forge = ForgeRun(unet)
    flow = SimpleNamespace(noise_scaling=lambda sigma, noise, latent: sigma * noise + (1 - sigma) * latent)
    forge.p.sd_model.forge_objects.unet.model.predictor = flow
    sampling = hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8))
    latents, noise = torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 3.0)
    assert torch.allclose(sampling.noisy(latents, noise, torch.tensor([0.25])), torch.tensor(1.5))


# what each fork's `sampling_prepare` asks its memory manager for beside the UNet's own inference memory
ASKED = {
    "Forge": (Patcher, lambda extra: {"hard_memory_preservation": extra}),
    "Forge Neo": (NeoPatcher, lambda extra: {"memory_required": extra, "minimum_memory_required": extra}),
    "Forge Classic": (Patcher, lambda extra: {"memory_required": extra}),
    "reForge": (Patcher, lambda extra: {"memory_required": extra}),
}


@pytest.mark.parametrize("fork", ASKED)
@torch.no_grad()
def test_the_forks_memory_manager_is_told_what_feedback_takes_for_the_pass_alone(unet, fork: str) -> None:
    kind, asked = ASKED[fork]
    forge = ForgeRun(unet)
    objects = forge.p.sd_model.forge_objects
    loaded = objects.unet = kind(unet, reserved=5 << 20)  # ControlNet's, say

    def told() -> dict[str, int]:
        return asked(objects.unet.extra_preserved_memory_during_sampling)

    without = told()
    for _ in range(2):  # Forge announces the second pass of Hires.fix twice
        forge.attach(cache_limit_mb=1)
        objects.unet = objects.unet.clone()  # another extension's
    assert all(0 < size - without[name] <= 2 << 20 for name, size in told().items())
    once = told()
    objects.unet = loaded.clone()  # with a fresh UNet the second time
    hook = forge.attach(cache_limit_mb=1)
    assert told() == once
    hook.sampling.current.end()
    assert told() == without
    assert loaded.extra_preserved_memory_during_sampling == 5 << 20


def test_a_fork_without_such_a_call_is_left_alone(unet) -> None:
    forge = ForgeRun(unet)
    patcher = forge.p.sd_model.forge_objects.unet
    patcher.add_extra_preserved_memory_during_sampling = None
    hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8)).reserve(1 << 20)
    assert patcher.extra_preserved_memory_during_sampling == 0


def test_features_are_computed_again_when_an_option_changes_what_the_model_computes(unet, monkeypatch) -> None:
    forge = ForgeRun(unet)
    options = SimpleNamespace(forge_additional_modules=[], forge_unet_storage_dtype="Automatic")
    monkeypatch.setitem(sys.modules, "modules.shared", SimpleNamespace(opts=options))
    sampling = hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8))
    keys = {sampling.model_key()}
    changes = {
        "forge_additional_modules": ["vae.safetensors"],
        "forge_unet_storage_dtype": "bnb-nf4",
        "sd_noise_schedule": "Zero Terminal SNR",
        "sdxl_crop_left": 64,
    }
    for name, value in changes.items():
        setattr(options, name, value)
        keys.add(sampling.model_key())
    forge.p.sd_model.current_lora_hash = "a"
    keys.add(sampling.model_key())
    assert len(keys) == 2 + len(changes)


@pytest.mark.parametrize("config", [{"in_channels": 9}, SimpleNamespace(in_channels=9)])
def test_a_config_may_be_a_dict(config: Any) -> None:
    unet = nn.Module()
    unet.config = config
    assert input_channels(unet) == 9
    unet.config = {}  # type: ignore[assignment]
    assert input_channels(unet) is None
    unet.in_channels = 8  # type: ignore[assignment]
    assert input_channels(unet) == 8


def test_the_further_lora_folders_of_neo_are_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("own/dog", "own/sub/cat", "more/dog", "more/mug"):
        file = tmp_path / f"{place}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    options = SimpleNamespace(lora_dir=str(tmp_path / "own"), lora_dirs=[str(tmp_path / "more")])
    monkeypatch.setattr(models.shared, "cmd_opts", options)
    assert models.loras() == ["dog.safetensors", "mug.safetensors", str(Path("sub/cat.safetensors"))]
    assert models.lora_file("dog").parent.name == "own"
    assert models.lora_file("mug.safetensors").parent.name == "more"


@pytest.mark.parametrize(
    ("options", "strength", "scale"),
    [
        ({}, 1.0, 1.0),
        ({}, 0.5, 9.0),
        *(({name: [print]}, 1.0, 9.0) for name in ("sampler_pre_cfg_function", "sampler_post_cfg_function")),
        ({"sampler_cfg_function": print}, 1.0, 9.0),
        ({"disable_cfg1_optimization": True}, 1.0, 9.0),
    ],
)
def test_outside_the_interval_forge_leaves_the_unconditional_rows_out_unless_somebody_needs_them(
    unet, options: dict[str, Any], strength: float, scale: float
) -> None:
    forge = ForgeRun(unet)
    guiders.attach(hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8)), GuidanceSettings(outside_scale=1))
    (modifier,) = forge.options["conditioning_modifiers"]

    def scale_at(sigma: float) -> float:
        given: Any = (SimpleNamespace(diffusion_model=unet), forge.x[:1], torch.tensor([sigma]), [{}])
        return float(modifier(*given, [{"strength": strength}], 9.0, options, 0)[5])

    assert (scale_at(14.0), scale_at(3.0)) == (scale, 9.0)
    forge.p.sampler.model_wrap_cfg.need_last_noise_uncond = True
    assert scale_at(14.0) == 9.0


@torch.no_grad()
def test_perturbed_rows_are_forges_own_conditions_run_once_more(unet, monkeypatch: pytest.MonkeyPatch) -> None:
    forge, found = ForgeRun(unet), list[Tensor]()
    plain = forge.run()
    settings = GuidanceSettings(method="off", highest_sigma=0, lowest_sigma=0, perturbation_scale=3)
    part = guiders.attach(hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8)), settings)
    assert torch.equal(forge.run(), plain)  # the host's own rows stay what they are
    options = forge.begin()

    def calc(_: Any, cond: Any, uncond: Any, x: Tensor, *__: Any) -> tuple[Tensor, None]:
        assert uncond is None and len(cond) == 1
        told = {"c_crossattn": forge.context[:1], "transformer_options": {}}
        given = {"input": x, "timestep": torch.full((1,), 1.5), "c": told, "cond_or_uncond": [0]}
        found.append(options["model_function_wrapper"](forge.apply, given))
        return found[-1], None

    module = SimpleNamespace(calc_cond_uncond_batch=calc)
    monkeypatch.setattr("lib_methods.hosts.forge.wrapper.prediction", lambda: module)
    told: dict[str, Any] = {"cond": [{"strength": 2.0}], "model": None, "input": forge.x[:1], "model_options": options}
    told |= {"cond_denoised": plain[:1], "uncond_denoised": plain[1:], "denoised": plain[1:], "sigma": torch.ones(1)}
    for function in options["sampler_post_cfg_function"]:
        told["denoised"] = function(told)
    assert part is not None and part.missed == "" and part.acted
    (perturbed,) = found
    assert (perturbed - plain[:1]).abs().max() > 1e-4
    assert torch.allclose(told["denoised"], plain[1:] + 3 * 2 * (plain[:1] - perturbed), atol=1e-5)
