"""The adapters: which rows are which in A1111's denoiser, and Forge's interface as its backend defines it."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_methods import hosts
from lib_methods.attention import self_attentions
from lib_methods.denoiser import Role, Row, Unsupported, input_channels
from lib_methods.fabric.apply import attach
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.reference import FeatureCache
from lib_methods.fabric.settings import FabricSettings
from lib_methods.thresholding import apply as thresholding
from lib_methods.thresholding.settings import ThresholdSettings
from lib_methods.webui.job import MethodJobs
from tests.fabric.small_model import Album, picture, small_unet

EMPTY = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(3))


class Model:
    """What both hosts' models have in common; latents are averages over squares of 8x8."""

    is_sdxl = False
    cond_stage_key = "txt"
    sd_checkpoint_info = SimpleNamespace(sha256="1", filename="m.safetensors", title="m")

    def get_learned_conditioning(self, prompts: Any) -> Tensor:
        assert list(prompts) == [""]
        return EMPTY

    def encode_first_stage(self, pixels: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)

    def get_first_stage_encoding(self, encoded: Tensor) -> Tensor:
        return encoded + 0.01 * torch.randn_like(encoded)  # some autoencoders draw from the global generator


class Denoiser(nn.Module):
    """`CFGDenoiser` as far as the adapter knows it: rows [cond, several per image | uncond], at once or in slices."""

    def __init__(self, p: Any, unet: nn.Module, slices: int | None = None) -> None:
        super().__init__()
        self.p, self.slices = p, slices
        self.steps, self.total_steps, self.step = 10, 20, 0  # a second-order sampler
        self.image_cfg_scale = None
        self.unet = [unet]

    def inner_model(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        (context,) = cond["c_crossattn"]
        extra = cond["c_concat"][0]
        inputs = torch.cat([x, extra], 1) if extra.shape[2:] == x.shape[2:] else x
        return self.unet[0](inputs, sigma, context).sample

    def forward(self, x: Tensor, sigma: Tensor, uncond: Tensor, cond: Any, *args: Any) -> Tensor:
        repeats = [len(parts) for parts in cond.batch]
        rows = torch.cat([x[i : i + 1].expand(n, -1, -1, -1) for i, n in enumerate(repeats)] + [x])
        context = torch.randn(len(rows), 7, 16, generator=torch.Generator().manual_seed(5))
        out = []
        for start in range(0, len(rows), self.slices or len(rows)):
            part = slice(start, start + (self.slices or len(rows)))
            concat = x.new_zeros(len(rows[part]), 5, 1, 1)
            given = {"c_crossattn": [context[part]], "c_concat": [concat]}
            out.append(self.inner_model(rows[part], sigma[:1].expand(len(rows[part])), given))
        self.step += 1
        return torch.cat(out)


def job(unet: nn.Module, **fields: Any) -> Any:
    model = Model()
    model.model = SimpleNamespace(diffusion_model=unet, conditioning_key="crossattn")  # type: ignore[attr-defined]
    p = SimpleNamespace(sd_model=model, width=64, height=64, steps=10, is_hr_pass=False, **fields)
    p.sampler = SimpleNamespace(model_wrap_cfg=Denoiser(p, unet))
    return p


class Recorder:
    """A hook that writes down the rows of each run of the UNet."""

    def __init__(self) -> None:
        self.all: list[tuple[Row, ...]] = []
        self.runs: list[tuple[Row, ...]] = []
        self.steps: list[int] = []

    def around(self, call: Any) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def watch():
            self.all.append(call.rows)
            self.steps.append(call.step)
            handle = call_unet.register_forward_hook(lambda *_: None)
            inner = call_unet.conv_in.register_forward_hook(lambda *_: self.runs.append(call.current_rows))
            try:
                yield
            finally:
                handle.remove()
                inner.remove()

        return watch()


call_unet: Any = None


@pytest.fixture
def unet(monkeypatch: pytest.MonkeyPatch):
    made = small_unet()
    monkeypatch.setattr("tests.fabric.test_hosts.call_unet", made)
    return made


@pytest.mark.parametrize("slices", [None, 1, 2])
@torch.no_grad()
def test_rows_are_known_by_their_order(unet, slices) -> None:
    p = job(unet)
    denoiser = p.sampler.model_wrap_cfg
    denoiser.slices = slices
    sampling, recorder = hosts.sampling_of(p, torch.zeros(2, 4, 8, 8)), Recorder()
    sampling.add_hook(recorder)
    cond = SimpleNamespace(batch=[["a", "b", "c"], ["d"]])  # AND with three parts, and a plain prompt
    for _ in range(3):
        denoiser(torch.randn(2, 4, 8, 8), torch.tensor([1.5, 1.5]), None, cond, 5.0, 0.0, None)
    expected = tuple(Row(Role.COND, i) for i in (0, 0, 0, 1)) + (Row(Role.UNCOND, 0), Row(Role.UNCOND, 1))
    assert recorder.all == [expected] * 3
    assert tuple(row for run in recorder.runs[: len(recorder.runs) // 3] for row in run) == expected
    assert recorder.steps == [0, 0, 1]  # two calls a step
    assert not unet._forward_hooks and not unet._forward_pre_hooks


@torch.no_grad()
def test_an_edit_model_has_two_unconditional_blocks(unet) -> None:
    p = job(unet)
    p.sd_model.cond_stage_key = "edit"
    denoiser = p.sampler.model_wrap_cfg
    denoiser.image_cfg_scale = 1.5
    sampling, recorder = hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)), Recorder()
    sampling.add_hook(recorder)
    denoiser(torch.randn(1, 4, 8, 8), torch.tensor([1.5]), None, SimpleNamespace(batch=[["a"]]), 5.0, 0.0, None)
    assert [row.role for row in recorder.all[0]] == [Role.COND, Role.UNCOND, Role.UNCOND]


@torch.no_grad()
def test_two_seams_on_one_denoiser_do_not_stack(unet) -> None:
    """In img2img the host uses one sampler for all batches of a job."""
    p = job(unet)
    recorders = [Recorder(), Recorder()]
    for recorder in recorders:
        hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(recorder)
    p.sampler.model_wrap_cfg(
        torch.randn(1, 4, 8, 8), torch.tensor([1.5]), None, SimpleNamespace(batch=[["a"]]), 5.0, 0.0, None
    )
    assert recorders[0].all == []
    assert len(recorders[1].all) == 1


def test_timestep_samplers_keep_the_variance(unet) -> None:
    p = job(unet)
    sampling = hosts.sampling_of(p, torch.zeros(1, 4, 8, 8))
    latents, noise = torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 2.0)
    assert torch.allclose(sampling.noisy(latents, noise, torch.tensor([3.0])), torch.tensor(7.0))
    p.sampler.model_wrap_cfg.alphas = torch.linspace(0.99, 0.01, 1000)
    alpha = p.sampler.model_wrap_cfg.alphas[500]
    wanted = alpha.sqrt() + 2 * (1 - alpha).sqrt()
    assert torch.allclose(sampling.noisy(latents, noise, torch.tensor([500])), wanted)


def test_encoding_leaves_the_global_generator_alone_and_repeats(unet) -> None:
    sampling = hosts.sampling_of(job(unet), torch.zeros(1, 4, 8, 8))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    one = sampling.encode(images, [1, 2])
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(one, sampling.encode(images, [1, 2]))
    assert not torch.equal(one, sampling.encode(images, [3, 4]))


def test_a_host_without_a_denoiser_is_named_in_a_sentence(unet) -> None:
    p = job(unet)
    p.sampler = SimpleNamespace()
    with pytest.raises(Unsupported, match="sampler"):
        hosts.sampling_of(p, None)


class Launched:
    """A host's sampler, which it may use for several batches."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.model_wrap_cfg = denoiser

    def launch_sampling(self, steps: int, run: Callable[[], Any]) -> Any:
        return run()


class Interrupted(BaseException):
    """How hosts leave a sampler in the middle of it."""


def call(denoiser: Any) -> Tensor:
    x = torch.ones(1, 4, 8, 8)
    return denoiser(x, torch.tensor([1.5]), None, SimpleNamespace(batch=[["a"]]), 5.0, 0.0, None)


@pytest.mark.parametrize("how", ["returns", "raises", "is interrupted"])
@torch.no_grad()
def test_what_one_pass_registered_is_gone_after_it(unet, how) -> None:
    p = job(unet)
    denoiser = p.sampler.model_wrap_cfg
    p.sampler = Launched(denoiser)
    before, attributes = dict(vars(denoiser)), dict(vars(p.sampler))
    recorder = Recorder()
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(recorder)
    kept = denoiser.forward  # somebody may still call what stood there

    def run() -> None:
        call(denoiser)
        if how != "returns":
            raise RuntimeError if how == "raises" else Interrupted

    try:
        p.sampler.launch_sampling(10, run)
    except (RuntimeError, Interrupted):
        assert how != "returns"
    assert len(recorder.all) == 1
    denoiser.step = 0
    assert vars(denoiser) == before and vars(p.sampler) == attributes
    call(denoiser)
    call(kept)
    assert len(recorder.all) == 1


@torch.no_grad()
def test_another_extension_that_wrapped_us_keeps_its_wrapper_and_loses_ours(unet) -> None:
    p = job(unet)
    denoiser = p.sampler.model_wrap_cfg
    p.sampler = Launched(denoiser)
    recorder, theirs = Recorder(), []
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(recorder)
    ours = denoiser.forward

    def wrapped(*args: Any) -> Any:
        theirs.append(1)
        return ours(*args)

    denoiser.forward = wrapped
    p.sampler.launch_sampling(10, lambda: call(denoiser))
    call(denoiser)
    assert (len(recorder.all), len(theirs)) == (1, 2)


@pytest.mark.parametrize("launched", [True, False])
@torch.no_grad()
def test_a_batch_whose_method_fails_has_nothing_of_the_batch_before(unet, launched) -> None:
    """Also where the host's sampler does not show the end of a pass."""
    p = job(unet, extra_generation_params={}, comment=lambda _: None, is_api=True)
    denoiser = p.sampler.model_wrap_cfg
    p.sampler = Launched(denoiser) if launched else p.sampler
    method, recorder = MethodJobs("M", "m", (), "M error"), Recorder()

    def attach(sampling: Any, fails: bool) -> None:
        sampling.add_hook(recorder)
        if fails:
            raise Unsupported("Half-way.")

    for p.iteration, fails in enumerate([False, True]):
        method.use(p, fails, {})
        method.guide(p, torch.zeros(1, 4, 8, 8), attach)
        if launched:
            p.sampler.launch_sampling(10, lambda: call(denoiser))
        else:
            call(denoiser)
    assert len(recorder.all) == 1


@torch.no_grad()
def test_a_method_that_fails_half_way_leaves_what_others_registered(unet) -> None:
    p = job(unet)
    recorder = Recorder()
    first, second = (hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)) for _ in range(2))
    with first.registering():
        first.add_hook(recorder)
    with suppress(KeyError), second.registering():
        second.add_hook(Recorder())
        raise KeyError
    call(p.sampler.model_wrap_cfg)
    assert len(recorder.all) == 1


class Patcher:
    """Forge's `UnetPatcher` as far as the adapter uses it. Forge main copies its options deeply."""

    def __init__(self, unet: nn.Module, options: dict[str, Any] | None = None) -> None:
        self.model = SimpleNamespace(diffusion_model=unet)
        self.model_options = options or {}
        self.reserved = 0

    def clone(self) -> Patcher:
        return Patcher(self.model.diffusion_model, copy.deepcopy(self.model_options))

    def add_extra_preserved_memory_during_sampling(self, size: int) -> None:
        self.reserved = self.reserved + size


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


class Failing:
    """A hook that fails at its second call, before the UNet runs or inside of it."""

    def __init__(self, error: Exception, unet: nn.Module | None = None) -> None:
        self.error, self.unet, self.calls = error, unet, 0

    acted, idle, missed = True, "", ""

    @contextmanager
    def around(self, call: Any) -> Iterator[None]:
        self.calls += 1
        if self.calls == 2 and self.unet is None:
            raise self.error
        fails = self.unet is not None and self.calls == 2
        handle = self.unet.register_forward_pre_hook(self._fail) if self.unet is not None and fails else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def _fail(self, *_: Any) -> None:
        raise self.error


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("secret"), "An internal error"),
        (torch.OutOfMemoryError("no"), "Out of memory"),
        (Unsupported("Not with this."), "Not with this."),
    ],
)
@torch.no_grad()
def test_a_hook_that_fails_ends_its_method_and_not_the_job(unet, error: Exception, told: str, inside: bool) -> None:
    p = job(unet, extra_generation_params={}, comment=lambda _: None, is_api=True)
    p.sampler = Launched(p.sampler.model_wrap_cfg)
    plain = call(p.sampler.model_wrap_cfg)
    method, hook = MethodJobs("M", "m", ("M strength",), "M error"), Failing(error, unet if inside else None)

    def attach(sampling: Any, _: Any) -> Any:
        sampling.add_hook(hook)
        return hook

    method.use(p, "settings", {"M strength": "1"})
    method.guide(p, torch.zeros(1, 4, 8, 8), attach)
    found: list[Tensor] = []
    p.sampler.launch_sampling(3, lambda: found.extend(call(p.sampler.model_wrap_cfg) for _ in range(3)))
    method.settle(p)
    assert all(torch.equal(out, plain) for out in found)
    assert hook.calls == 2
    assert set(p.extra_generation_params) == {"M error"}
    assert p.extra_generation_params["M error"].startswith(told)
    assert "secret" not in str(p.extra_generation_params)


@torch.no_grad()
def test_an_error_of_the_host_stays_the_hosts(unet) -> None:
    p = job(unet)
    hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)).add_hook(Recorder())

    def broken(*_: Any) -> None:
        raise ValueError("theirs")

    unet.register_forward_pre_hook(broken)
    with pytest.raises(ValueError, match="theirs"):
        call(p.sampler.model_wrap_cfg)


@torch.no_grad()
def test_options_that_forge_copied_and_kept_hold_no_job_and_do_nothing_after_the_pass(unet) -> None:
    forge = ForgeRun(unet)
    plain = forge.run()
    forge.attach()
    thresholding.attach(hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8)), ThresholdSettings())
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


@torch.no_grad()
def test_forge_is_told_of_the_memory_that_feedback_takes(unet) -> None:
    forge = ForgeRun(unet)
    for _ in range(2):
        forge.attach(cache_limit_mb=1)
    assert 0 < forge.p.sd_model.forge_objects.unet.reserved <= 2 << 20


def test_features_are_computed_again_for_another_vae_or_for_quantised_weights(unet, monkeypatch) -> None:
    forge = ForgeRun(unet)
    options = SimpleNamespace(forge_additional_modules=[], forge_unet_storage_dtype="Automatic")
    monkeypatch.setitem(sys.modules, "modules.shared", SimpleNamespace(opts=options))
    sampling = hosts.sampling_of(forge.p, torch.zeros(1, 4, 8, 8))
    keys = {sampling.model_key()}
    options.forge_additional_modules = ["vae.safetensors"]
    keys.add(sampling.model_key())
    options.forge_unet_storage_dtype = "bnb-nf4"
    keys.add(sampling.model_key())
    forge.p.sd_model.current_lora_hash = "a"
    keys.add(sampling.model_key())
    assert len(keys) == 4


@pytest.mark.parametrize("config", [{"in_channels": 9}, SimpleNamespace(in_channels=9)])
def test_a_config_may_be_a_dict(config: Any) -> None:
    unet = nn.Module()
    unet.config = config
    assert input_channels(unet) == 9
    unet.config = {}  # type: ignore[assignment]
    assert input_channels(unet) is None
    unet.in_channels = 8  # type: ignore[assignment]
    assert input_channels(unet) == 8
