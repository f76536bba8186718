"""`predict` and `embed` against the host's own denoiser; gradients; nothing left on the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lib_methods.attention import differentiable
from lib_methods.denoiser import Conditioning, DenoiserCall, Sampling, editing_of
from lib_methods.denoiser.levels import Levels
from tests.hosts.seam import job, latents, random, spread
from tests.standalone.conftest import Running

Start = Callable[..., Running]
Checkpoints = Callable[..., Path]
LONG = "red " * 90


class Foreteller:
    """At every call, predicts what the host is about to compute for every row."""

    def __init__(self, sampling: Sampling, texts: list[str]) -> None:
        self.sampling, self.conds = sampling, [editing_of(sampling).embed([text]) for text in texts]
        self.foretold: list[Tensor] = []
        self.x: list[Tensor] = []
        self.sigmas: list[float] = []

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        sigma = editing_of(self.sampling).position(call).sigma
        self.foretold.append(
            torch.cat([editing_of(self.sampling).predict(latents, sigma, cond) for cond in self.conds])
        )
        self.x.append(latents)
        self.sigmas.append(sigma)
        return latents


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("sd1", {}),
    "sd1, v": ("sd1", {"parameterization": "v"}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "inpainting": ("sd1", {"in_channels": 9}),
    "instruct": ("sd1", {"in_channels": 8}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_the_host(start_host: Start, checkpoints: Checkpoints, family: str) -> None:
    """Of every row: prompt and negative prompt, several chunks long, for every way of counting noise."""
    from modules import script_callbacks

    name, options = FAMILIES[family]
    host = start_host(checkpoints(name, **options), extension_dirs=[])
    answers: list[Tensor] = []
    script_callbacks.on_cfg_denoised(lambda params: answers.append(params.x.clone()))
    makers: list[Foreteller] = []

    def script(sampling: Sampling) -> None:
        makers.append(Foreteller(sampling, [LONG, "grey"]))
        editing_of(sampling).add_editor(makers[0])

    for sampler in ("Euler", "DPM++ 2M", "DDIM", "UniPC"):
        answers.clear()
        makers.clear()
        # an 8-channel model has rows without its image, the negative prompt's, in img2img with an image scale only
        edits = options.get("in_channels") == 8
        more = {"image_cfg_scale": 2.0} if edits else {}
        latents(host, job("img2img" if edits else "txt2img", sampler, prompt=LONG, **more), script)
        (maker,) = makers
        assert len(maker.foretold) == len(answers) > 0
        for x, sigma, foretold, rows in zip(maker.x, maker.sigmas, maker.foretold, answers):
            found = x - sigma * rows if sampler in ("DDIM", "UniPC") else rows
            if edits:
                found, foretold = found[2:], foretold[1:]
            assert spread(foretold, found) < 1e-5


def test_predictions_for_an_inpainting_model_see_the_jobs_mask_and_image(
    start_host: Start, checkpoints: Checkpoints
) -> None:
    from modules import script_callbacks

    host = start_host(checkpoints("sd1", in_channels=9), extension_dirs=[])
    answers: list[Tensor] = []
    script_callbacks.on_cfg_denoised(lambda params: answers.append(params.x.clone()))
    makers: list[Foreteller] = []

    def script(sampling: Sampling) -> None:
        makers.append(Foreteller(sampling, [LONG, "grey"]))
        makers[0].conds = [replace(cond, image=editing_of(sampling).own_image()) for cond in makers[0].conds]
        editing_of(sampling).add_editor(makers[0])

    half = Image.new("L", (64, 64))
    half.paste(255, (32, 0, 64, 64))
    latents(host, job("img2img", "Euler", prompt=LONG, mask=half, mask_blur=0), script)
    (maker,) = makers
    assert len(maker.foretold) == len(answers) > 0
    assert all(spread(foretold, rows) < 1e-5 for foretold, rows in zip(maker.foretold, answers))


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_gradients_are_those_of_finite_differences(host: Running, sampler: str) -> None:
    """Within a denoiser call and before the sampling, on a model whose parameters ask for gradients, as in the WebUI;
    they collect none."""
    from modules import shared

    unet = shared.sd_model.model.diffusion_model
    unet.requires_grad_(True)

    def check(sampling: Sampling, x: Tensor, sigma: float) -> None:
        cond = editing_of(sampling).embed(["a red circle"])
        weights, along = random(x.shape, 5), random(x.shape, 6)
        assert not torch.is_grad_enabled()
        with editing_of(sampling).differentiable():
            x = x.detach().clone().requires_grad_(True)
            found = editing_of(sampling).predict(x, sigma, cond, gradients=True)
            (gradient,) = torch.autograd.grad((found * weights).sum(), x)
        assert not torch.is_grad_enabled()
        h = 0.01 * sigma
        ahead, behind = (editing_of(sampling).predict(x.detach() + side * h * along, sigma, cond) for side in (1, -1))
        numeric = ((ahead.double() - behind.double()) * weights).sum() / (2 * h)
        assert float((gradient * along).sum()) == pytest.approx(float(numeric), rel=0.01)
        assert not editing_of(sampling).predict(x, sigma, cond).requires_grad
        assert torch.equal(found, editing_of(sampling).predict(x.detach(), sigma, cond))
        checked.append(sigma)

    class Editor:
        def __init__(self, sampling: Sampling) -> None:
            self.sampling = sampling

        def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
            check(self.sampling, latents, editing_of(self.sampling).position(call).sigma)
            return latents

    def script(sampling: Sampling) -> None:
        check(sampling, editing_of(sampling).start_latent(), float(editing_of(sampling).sigmas[0]))
        editing_of(sampling).add_editor(Editor(sampling))

    checked: list[float] = []
    try:
        latents(host, job("txt2img", sampler, steps=2), script)
        assert len(checked) == (3 if sampler == "Euler" else 2)
        assert all(p.requires_grad and p.grad is None for p in unet.parameters())
    finally:
        unet.requires_grad_(False)


def test_a_failing_unet_leaves_nothing_behind(host: Running) -> None:
    from modules import shared

    unet = shared.sd_model.model.diffusion_model
    first = next(unet.parameters())
    first.requires_grad_(True)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    def script(sampling: Sampling) -> None:
        x = editing_of(sampling).start_latent().requires_grad_(True)
        for gradients in (True, False):
            handle = unet.conv_out.register_forward_hook(fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                editing_of(sampling).predict(x, 1.0, editing_of(sampling).embed(["x"]), gradients=gradients)
            handle.remove()
            assert not torch.is_grad_enabled()
        assert first.requires_grad

    fields = job("txt2img", "Euler")
    plain = latents(host, fields)
    assert torch.equal(latents(host, fields, script), plain)
    assert [name for name, module in unet.named_modules() if "forward" in module.__dict__] == []
    first.requires_grad_(False)


def test_what_stands_in_front_of_the_unet_rests(host: Running) -> None:
    """Another extension's override (ControlNet's, say) is not asked, and is back afterwards."""
    from modules import shared

    unet = shared.sd_model.model.diffusion_model

    def script(sampling: Sampling) -> None:
        cond, x = editing_of(sampling).embed(["a red circle"]), editing_of(sampling).start_latent()
        wanted = editing_of(sampling).predict(x, 2.0, cond)
        own = unet.forward
        unet.forward = lambda *args, **kwargs: pytest.fail("asked")
        assert torch.equal(editing_of(sampling).predict(x, 2.0, cond), wanted)
        assert unet.forward is not own
        del unet.forward

    latents(host, job("txt2img", "Euler"), script)


def test_texts_are_embedded_as_prompts_are(host: Running) -> None:
    """Shorter ones padded with empty chunks, several in one go as one by one."""

    def script(sampling: Sampling) -> None:
        several = editing_of(sampling).embed(["a (red:1.4) circle", LONG])
        assert several.context.shape == (2, 154, 32)
        assert several.vector is None
        alone = editing_of(sampling).embed([LONG])
        assert torch.allclose(several.context[1:], alone.context, atol=1e-5)
        plain = editing_of(sampling).embed(["a red circle"])
        assert plain.context.shape == (1, 77, 32)
        assert not torch.allclose(several.context[:1, :77], plain.context, atol=1e-3)
        x = editing_of(sampling).start_latent().repeat(2, 1, 1, 1)
        rows = editing_of(sampling).predict(x, 3.0, Conditioning(several.context))
        assert spread(rows[1:], editing_of(sampling).predict(x[:1], 3.0, alone)) < 1e-5

    latents(host, job("txt2img", "Euler"), script)


def test_sdxl_is_told_the_size_of_the_pass(start_host: Start, checkpoints: Checkpoints) -> None:
    host = start_host(checkpoints("sdxl"), extension_dirs=[])
    vectors: list[Tensor | None] = []

    def script(sampling: Sampling) -> None:
        vectors.append(editing_of(sampling).embed(["a circle"]).vector)

    for kind in ("txt2img", "Hires.fix"):
        latents(host, job(kind, "Euler"), script)
    first, second = vectors
    assert first is not None and second is not None and first.shape == second.shape
    assert not torch.equal(first, second)


class Fragile(torch.autograd.Function):
    """As `ldm`'s checkpointing: its backward pass cannot do with parameters that are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("One of the differentiated Tensors does not require grad")


class Block(nn.Module):
    """A block with a flag, named as in `ldm` (transformer blocks) or as in its residual blocks."""

    def __init__(self, flag: str, value: object) -> None:
        super().__init__()
        self.flag, self.weight = flag, nn.Parameter(torch.ones(1))
        setattr(self, flag, value)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        return Fragile.apply(x) if getattr(self, self.flag) is True else 2 * x


def test_the_checkpointing_of_ldm_is_off_and_on_again() -> None:
    kept = "a name that another codebase uses"
    all_blocks = [Block("checkpoint", True), Block("use_checkpoint", True), Block("checkpoint", kept)]
    blocks = nn.Sequential(*all_blocks)
    all_blocks[1].weight.requires_grad_(False)
    x = torch.ones(1)

    def use() -> None:
        with differentiable(blocks):
            leaf = x.clone().requires_grad_(True)
            with differentiable(blocks):  # predict does so within the block of a method
                found = blocks(leaf)
            assert torch.autograd.grad(found.sum(), leaf)[0].item() == 8
            assert blocks(leaf).requires_grad
            raise KeyError

    with torch.inference_mode():
        with pytest.raises(KeyError):
            use()
        assert torch.is_inference_mode_enabled()
    assert [getattr(block, block.flag) for block in all_blocks] == [True, True, kept]
    assert [block.weight.requires_grad for block in all_blocks] == [True, False, True]
    assert all(block.weight.grad is None for block in all_blocks)


def test_an_ldm_unet_with_checkpointing_can_be_differentiated() -> None:
    from tests.pix2pix_zero.bare import DIM, TOKENS, ldm_unet

    unet = ldm_unet(use_checkpoint=True).requires_grad_(False)
    context, t = random((1, TOKENS, DIM), 1), torch.tensor([10])

    def f(x: Tensor) -> Tensor:
        return unet(x, t, context)

    x, along = random((1, 4, 8, 8), 2), random((1, 4, 8, 8), 3)
    leaf = x.clone().requires_grad_(True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(f(leaf).sum(), leaf)
    with differentiable(unet):
        (gradient,) = torch.autograd.grad(f(leaf).sum(), leaf)
    with torch.no_grad():
        numeric = (f(x + 0.01 * along) - f(x - 0.01 * along)).double().sum() / 0.02
    assert float((gradient * along).sum()) == pytest.approx(float(numeric), rel=0.02)
    assert any(getattr(module, "checkpoint", False) is True for module in unet.modules())


@pytest.mark.parametrize("last", [0.0047, 4.8973e-08])  # Stable Diffusion's, and zero terminal SNR
def test_sigmas_and_timesteps_are_each_others_inverse(last: float) -> None:
    levels = Levels(torch.cat([torch.linspace(0.999, 0.01, 999), torch.tensor([last])]))
    for timestep in (0.0, 1.0, 17.25, 500.0, 998.5, 999.0):
        assert levels.timestep(levels.sigma(timestep)) == pytest.approx(timestep, abs=1e-3)
    assert levels.timestep(levels.sigma(951)) == 951.0  # whole: hosts cut off what is behind the point
    assert levels.timestep(1e6) == 999.0
    assert levels.timestep(0.0) == 0.0
