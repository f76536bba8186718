"""The adapters: which rows are which in A1111's denoiser, and Forge's interface as its backend defines it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_methods import hosts
from lib_methods.denoiser import Role, Row, Unsupported
from lib_methods.fabric.apply import attach
from lib_methods.fabric.cache import FeatureCache
from lib_methods.fabric.settings import FabricSettings, FeedbackImage
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


class Patcher:
    """Forge's `UnetPatcher` as far as the adapter uses it."""

    def __init__(self, unet: nn.Module, options: dict[str, Any] | None = None) -> None:
        self.model = SimpleNamespace(diffusion_model=unet)
        self.model_options = options or {}

    def clone(self) -> Patcher:
        return Patcher(self.model.diffusion_model, dict(self.model_options))

    def set_model_unet_function_wrapper(self, wrapper: Any) -> None:
        self.model_options["model_function_wrapper"] = wrapper


@torch.no_grad()
def test_forge_rows_come_with_their_labels(unet) -> None:
    """Guided by the same feedback, Forge's path gives what A1111's gives, also with uncond first."""
    album = Album()
    like = album.add(picture(1))
    asked = FabricSettings(likes=(FeedbackImage(like),))
    x = torch.randn(2, 4, 8, 8)
    context = torch.randn(2, 7, 16)

    def apply(inputs: Tensor, timestep: Tensor, **c: Any) -> Tensor:
        return unet(inputs, timestep, c["c_crossattn"]).sample

    def run(order: list[int], patcher: Patcher) -> Tensor:
        """A run of the UNet with cond (0) and uncond (1) blocks in this order; the result in the order cond, uncond."""
        wrapper = patcher.model_options.get("model_function_wrapper")
        inputs: dict[str, Any] = {
            "input": x[order],
            "timestep": torch.full((2,), 1.5),
            "c": {"c_crossattn": context[order], "transformer_options": {}},
            "cond_or_uncond": order,
        }
        out = wrapper(apply, inputs) if wrapper else apply(inputs["input"], inputs["timestep"], **inputs["c"])
        return out[[order.index(0), order.index(1)]]

    p = job(unet)
    p.sd_model.forge_objects = SimpleNamespace(unet=Patcher(unet))
    original = p.sd_model.forge_objects.unet
    plain = run([0, 1], original)
    for _ in range(2):  # Forge calls the script twice for Hires.fix
        attach(hosts.sampling_of(p, torch.zeros(1, 4, 8, 8)), asked, album.load, FeatureCache())
    patched = p.sd_model.forge_objects.unet
    assert original.model_options == {}  # only the clone carries the wrapper
    first, second = run([0, 1], patched), run([1, 0], patched)
    assert torch.allclose(first, second, atol=1e-6)
    assert (first[0] - plain[0]).abs().max() > 1e-3
    assert torch.allclose(first[1], plain[1], atol=1e-6)
    assert "forward" not in unet.__dict__
