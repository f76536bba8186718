"""Cross-attention guidance: the gradient is the right one, the step has the paper's units, rows are independent; the
soft blend is attention with mixed maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_methods.attention import ContextShift, checkpointed, cross_attentions, shifted_context
from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.guidance import LossScale, gradient, map_losses, soft_blend, step
from lib_methods.pix2pix_zero.maps import MapRecorder, Maps
from tests.pix2pix_zero.bare import DIM, MAKERS, TOKENS, diffusers_unet, latents, leftovers, predict, prompts

SIGMA = 1.7
Predict = Callable[[Tensor, float], Maps]


@contextmanager
def recording(unet: Any, context: Tensor, **more: Any) -> Iterator[Predict]:
    """A callable that runs the UNet on latents in sigma space and gives its maps."""
    recorder = MapRecorder(unet, more.pop("size", (8, 8)), **more)

    def run(x: Tensor, sigma: float) -> Maps:
        scaled = (x / (1 + sigma**2) ** 0.5).to(next(unet.parameters()).dtype)
        return recorder.run_to_last(lambda: predict(unet, scaled, context))

    with recorder.installed():
        yield run


def reference_maps(unet: Any, x: Tensor, context: Tensor, **more: Any) -> Maps:
    with torch.no_grad(), recording(unet, context, **more) as run:
        return run(x, SIGMA)


def original_step(unet: Any, x: Tensor, context: Tensor, wanted: Tensor, amount: float) -> Tensor:
    """The published algorithm, plainly: maps by hooks on the projections, SGD on the UNet's input, one image.

    x: (1, 4, h, w), scaled to variance one. context, wanted: [uncond, cond] prompts of the edit and of the reference.
    The cond half's step is taken.
    """
    layers = [m for name, m in unet.named_modules() if name.endswith("attn2")]

    def run(value: Tensor, prompt: Tensor) -> list[Tensor]:
        seen: dict[tuple[int, str], Tensor] = {}
        handles = []
        for i, layer in enumerate(layers):
            for part in ("to_q", "to_k"):

                def keep(_: Any, __: Any, out: Tensor, key: tuple[int, str] = (i, part)) -> None:
                    seen[key] = out

                handles.append(getattr(layer, part).register_forward_hook(keep))
        predict(unet, value, prompt)
        for handle in handles:
            handle.remove()
        maps = []
        for i, layer in enumerate(layers):
            q, k = seen[i, "to_q"], seen[i, "to_k"]
            d = q.shape[-1] // layer.heads
            split = [
                t.reshape(len(t), -1, layer.heads, d).permute(0, 2, 1, 3).reshape(-1, t.shape[1], d) for t in (q, k)
            ]
            maps.append(torch.softmax(torch.bmm(split[0], split[1].transpose(1, 2)) * d**-0.5, -1))
        return maps

    twice = torch.cat([x, x])
    with torch.no_grad():
        references = run(twice, wanted)
    start = twice.clone().requires_grad_()
    optimizer = torch.optim.SGD([start], lr=amount)
    loss = torch.zeros(())
    for found, target in zip(run(start, context), references):
        loss = loss + ((found - target) ** 2).sum((1, 2)).mean(0)
    loss.backward()
    optimizer.step()
    return x + (start - twice).detach()[1:]


@pytest.mark.parametrize("codebase", MAKERS)
def test_the_step_is_the_one_of_the_published_algorithm(codebase: str) -> None:
    unet = MAKERS[codebase]()
    alpha_x = latents(1)
    wanted = prompts(2)
    context = wanted.clone()
    context[1] += torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(4))
    amount = 10.0  # the paper's is 0.1; random weights hardly attend to anything
    plain = original_step(unet, alpha_x, context, wanted, amount)
    up = (1 + SIGMA**2) ** 0.5
    x = alpha_x * up
    reference = reference_maps(unet, x, wanted[1:])
    with recording(unet, context[1:]) as run:
        found = gradient(x, SIGMA, run, reference)
    # the published loss is the mean over both halves; cond rows alone are half of it
    moved = step(x, SIGMA, found.value, amount / 2) / up
    size = float((plain - alpha_x).abs().max())
    assert size > 1e-2
    assert (moved - plain).abs().max() < 1e-4 * max(1.0, size)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_the_finite_difference(checkpointing: bool) -> None:
    unet = diffusers_unet().double()
    x, context = latents(1, dtype=torch.float64), prompts(1, dtype=torch.float64)
    reference = reference_maps(unet, x, prompts(1, seed=7, dtype=torch.float64))
    with recording(unet, context) as run:
        with checkpointed(unet) if checkpointing else nullcontext():
            found = gradient(x, SIGMA, run, reference)
        assert found.dropped == () and found.value.dtype == torch.float64
        for seed in range(3):
            way = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            with torch.no_grad():
                high, low = (map_losses(run(x + d * way, SIGMA), reference)[0] for d in (1e-4, -1e-4))
            slope = float((high - low) / 2e-4)
            assert abs(float((found.value * way).sum()) - slope) < 1e-5 * max(1, abs(slope))
        with torch.no_grad():
            assert torch.allclose(found.losses, map_losses(run(x, SIGMA), reference))


def test_images_of_a_batch_do_not_see_each_other() -> None:
    unet, x, context, wanted = diffusers_unet(), latents(3), prompts(3), prompts(3, seed=8)
    with recording(unet, context) as run:
        together = gradient(x, SIGMA, run, reference_maps(unet, x, wanted))
    for i in range(3):
        own = slice(i, i + 1)
        with recording(unet, context[own]) as run:
            alone = gradient(x[own], SIGMA, run, reference_maps(unet, x[own], wanted[own]))
        assert (together.value[i] - alone.value[0]).abs().max() < 1e-5
        assert torch.allclose(together.losses[i], alone.losses[0], atol=1e-5)


@pytest.mark.parametrize("memory", [False, True])
def test_a_small_step_brings_the_maps_back(memory: bool) -> None:
    unet, x, context = diffusers_unet(), latents(2), prompts(2)
    reference = reference_maps(unet, x, prompts(2, seed=8))
    with recording(unet, context) as run, checkpointed(unet) if memory else nullcontext():
        found = gradient(x, SIGMA, run, reference)
        after = map_losses(run(step(x, SIGMA, found.value, 1e-3), SIGMA), reference)
    assert (after < found.losses).all()


def test_where_edit_and_reference_agree_there_is_no_step() -> None:
    unet, x, context = diffusers_unet(), latents(2), prompts(2)
    reference = reference_maps(unet, x, context)
    with recording(unet, context) as run:
        found = gradient(x, SIGMA, run, reference)
    assert torch.equal(found.losses, torch.zeros(2)) and torch.equal(found.value, torch.zeros_like(x))
    assert torch.equal(step(x, SIGMA, found.value, 0.15), x)


def test_references_of_one_row_serve_everybody() -> None:
    unet, x, context = diffusers_unet(), latents(1).expand(2, -1, -1, -1), prompts(2)
    reference = reference_maps(unet, x, prompts(2, seed=8).clone()[:1].expand(2, -1, -1))
    with recording(unet, context) as run:
        every = gradient(x, SIGMA, run, reference.select([0]))
        paired = gradient(x, SIGMA, run, reference)
    assert torch.allclose(every.value, paired.value, atol=1e-6) and every.value.abs().max() > 0


def narrow(run: Predict) -> Predict:
    """The maps as a UNet in fp16 gives them: what flows back overflows over 65504 and is lost below 6e-8."""

    class Squeeze(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return grads[0].half().to(grads[0])

    def narrowed(x: Tensor, sigma: float) -> Maps:
        maps = run(Squeeze.apply(x), sigma)
        squeezed = {name: Squeeze.apply(seen) for name, seen in maps.by_layer.items()}
        return Maps(squeezed, maps.latent_size, torch.float16)

    return narrowed


@pytest.mark.parametrize("start", [2.0**-30, 2.0**12, 2.0**27])
def test_half_precision_neither_overflows_nor_vanishes(start: float) -> None:
    unet, x, context = diffusers_unet(), latents(2), prompts(2)
    near = context + torch.tensor([1e-4, 10.0]).view(2, 1, 1) * prompts(2, seed=8)  # a tiny and a large difference
    reference = reference_maps(unet, x, near)
    scale = LossScale(start)
    with recording(unet, context) as run:
        exact = gradient(x, SIGMA, run, reference)
        found = gradient(x, SIGMA, narrow(run), reference, scale=scale)
        again = gradient(x, SIGMA, narrow(run), reference, scale=scale)
    assert exact.losses[0] < 1e-4 * exact.losses[1]
    for result in (found, again):
        assert result.dropped == ()
        for i in range(2):
            assert (result.value[i] - exact.value[i]).norm() < 2e-2 * exact.value[i].norm()


def test_a_real_half_precision_unet() -> None:
    unet, x = diffusers_unet(), latents(2)
    context, wanted = prompts(2), prompts(2, seed=8)
    with recording(unet, context) as run:
        exact = gradient(x, SIGMA, run, reference_maps(unet, x, wanted))
    half = diffusers_unet().half()
    with recording(half, context.half()) as run, checkpointed(half):
        found = gradient(x, SIGMA, run, reference_maps(half, x, wanted.half()))
    assert found.dropped == () and found.value.dtype == torch.float32
    assert (found.value - exact.value).norm() < 0.1 * exact.value.norm()


def test_an_image_without_a_finite_gradient_is_dropped_and_the_others_go_on() -> None:
    unet, x, context = diffusers_unet(), latents(3), prompts(3)
    reference = reference_maps(unet, x, prompts(3, seed=8))
    with recording(unet, context) as run:
        whole = gradient(x, SIGMA, run, reference)
        x[1] = float("nan")
        for runs in (run, narrow(run)):
            found = gradient(x, SIGMA, runs, reference)
            assert found.dropped == (1,)
            assert torch.equal(found.value[1], torch.zeros_like(x[1]))
            assert (found.value[[0, 2]] - whole.value[[0, 2]]).norm() < 2e-2 * whole.value.norm()


def test_gradients_come_in_inference_mode_too() -> None:
    unet, x, context = diffusers_unet(), latents(), prompts()
    reference = reference_maps(unet, x, prompts(2, seed=8))
    with recording(unet, context) as run:
        plain = gradient(x, SIGMA, run, reference)
        with torch.inference_mode():
            inside = gradient(x.clone(), SIGMA, run, reference.each(Tensor.clone))
    assert torch.equal(plain.value, inside.value)


def test_what_gives_no_gradients_says_so() -> None:
    x, context = latents(), prompts()
    unet = diffusers_unet()
    reference = reference_maps(unet, x, context)
    with recording(unet, context) as run, pytest.raises(Unsupported, match="soft blend"):
        gradient(x, SIGMA, lambda x, sigma: run(x.detach(), sigma).detach(), reference)
    with torch.inference_mode():
        loaded = diffusers_unet()  # as a host that loads its weights in inference mode
    with recording(loaded, context) as run, pytest.raises(Unsupported, match="soft blend"):
        gradient(x, SIGMA, run, reference)
    assert leftovers(loaded) == [] and all(parameter.requires_grad for parameter in loaded.parameters())


def test_maps_that_do_not_fit_are_told_in_a_sentence() -> None:
    unet, x = diffusers_unet(), latents()
    maps = reference_maps(unet, x, prompts())
    with pytest.raises(Unsupported, match="7 tokens and the reference's 14"):
        map_losses(maps, reference_maps(unet, x, prompts(2, 14)))
    with pytest.raises(Unsupported, match="same size"):
        map_losses(maps, reference_maps(unet, latents(2, 8, 12), prompts(), size=(8, 12)))
    with pytest.raises(Unsupported, match="same attention layers"):
        map_losses(Maps({}, (8, 8)), maps)
    with pytest.raises(Unsupported, match="same model"):
        map_losses(maps, maps.each(lambda seen: seen.repeat(1, 2, 1, 1)))


@given(st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_the_loss_over_all_shapes(rows: int, heads: int, tokens: int) -> None:
    found, wanted = (
        Maps({n: torch.rand(rows, heads, p, tokens).softmax(-1) for n, p in (("a", 16), ("b", 4))}, (4, 4))
        for _ in range(2)
    )
    losses = map_losses(found, wanted)
    assert losses.shape == (rows,)
    for row in range(rows):
        plain = 0.0
        for name in found.by_layer:
            own, other = found.by_layer[name][row], wanted.by_layer[name][row]
            plain += float(((own - other) ** 2).sum() / len(own))
        assert float(losses[row]) == pytest.approx(plain, rel=1e-4, abs=1e-5)


@given(st.floats(0, 20), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_step_in_sigma_space_is_the_papers_in_alpha_space(sigma: float, amount: float) -> None:
    alpha_x, slope = latents(1, dtype=torch.float64), latents(1, seed=3, dtype=torch.float64)  # L = slope . alpha_x
    up = (1 + sigma**2) ** 0.5
    moved = step(alpha_x * up, sigma, slope / up, amount) / up
    assert torch.allclose(moved, alpha_x - amount * slope, atol=1e-9)


@pytest.mark.parametrize("codebase", MAKERS)
def test_the_soft_blend_runs_from_own_to_reference(codebase: str) -> None:
    unet, x, context, other = MAKERS[codebase](), latents(3), prompts(3), prompts(3, seed=8)
    reference = reference_maps(unet, x, other)
    scaled = x / (1 + SIGMA**2) ** 0.5
    with torch.no_grad():
        plain = predict(unet, scaled, context)
        with soft_blend(unet, reference, 0.0, lambda: [0, 1, 2]):
            assert torch.equal(predict(unet, scaled, context), plain)
        with soft_blend(unet, reference_maps(unet, x, context), 1.0, lambda: [0, 1, 2]):
            assert (predict(unet, scaled, context) - plain).abs().max() < 1e-4
        with soft_blend(unet, reference, 0.8, lambda: [None, 2, None]):
            blended = predict(unet, scaled, context)
        with soft_blend(unet, reference, 1.0, lambda: [0]):  # somebody else's run
            assert torch.equal(predict(unet, scaled, context), plain)
    assert (blended[[0, 2]] - plain[[0, 2]]).abs().max() < 1e-4 < (blended[1] - plain[1]).abs().max()
    assert leftovers(unet) == []


def test_one_blended_layer_is_the_mixture_written_out() -> None:
    unet, x, context = diffusers_unet(), latents(2), prompts(2)
    layer = cross_attentions(unet)[0]
    every = reference_maps(unet, x, prompts(2, seed=8))
    reference = Maps({layer.name: every.by_layer[layer.name]}, every.latent_size)
    hidden = torch.randn(2, 64, cast(nn.Linear, layer.module.to_q).in_features)
    with torch.no_grad():
        q, k, v = layer.project(hidden, "q"), layer.project(context, "k"), layer.project(context, "v")
        own = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        mixed = own.clone()
        mixed[1] = 0.3 * own[1] + 0.7 * reference.by_layer[layer.name][0].float()
        wanted = layer.output(mixed @ v)
        with soft_blend(unet, reference, 0.7, lambda: [None, 0]):
            found = layer.module(hidden, encoder_hidden_states=context)
    assert (found - wanted).abs().max() < 1e-5


def test_the_blend_sees_a_shifted_prompt_whichever_was_entered_first() -> None:
    unet, x, context = diffusers_unet(), latents(1), prompts(1)
    reference = reference_maps(unet, x, prompts(1, seed=8))
    direction = torch.randn(TOKENS, DIM)
    shift, rows = ContextShift(lambda: [direction]), lambda: [0]
    with torch.no_grad():
        with soft_blend(unet, reference, 0.5, rows):
            wanted = predict(unet, x, context + direction)
        with soft_blend(unet, reference, 0.5, rows), shifted_context(unet, shift):
            first = predict(unet, x, context)
        with shifted_context(unet, shift), soft_blend(unet, reference, 0.5, rows):
            second = predict(unet, x, context)
    assert torch.equal(first, wanted) and torch.equal(second, wanted)


def test_a_blend_that_does_not_fit_is_refused_and_leaves_nothing() -> None:
    unet, x = diffusers_unet(), latents(1)
    reference = reference_maps(unet, x, prompts(1, 14))
    with torch.no_grad(), soft_blend(unet, reference, 0.5, lambda: [0]), pytest.raises(Unsupported, match="14"):
        predict(unet, x, prompts(1))
    with pytest.raises(Unsupported, match="another model"), soft_blend(nn.Conv2d(1, 1, 1), reference, 1, lambda: []):
        pytest.fail("entered")
    assert leftovers(unet) == []
