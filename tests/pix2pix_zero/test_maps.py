"""Recording changes nothing, leaves nothing, stops early, and carries the right gradients in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_methods.attention import checkpointed, cross_attentions, frozen, intercept
from lib_methods.attention.layers import size_factor
from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.maps import MapRecorder, Maps
from tests.pix2pix_zero.bare import MAKERS, TOKENS, diffusers_unet, latents, leftovers, predict, prompts

CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in MAKERS] + [("ldm", {"use_checkpoint": True})]


@contextmanager
def counting(unet: nn.Module) -> Iterator[dict[str, int]]:
    """How often each module that has no others in it is called."""
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    handles = [
        module.register_forward_pre_hook(count(name))
        for name, module in unet.named_modules()
        if not list(module.children())
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def maps_by_hooks(unet: Any, x: Tensor, context: Tensor) -> dict[str, Tensor]:
    """The maps from what ordinary hooks on the projections see."""
    seen: dict[str, Tensor] = {}
    handles = []
    for layer in cross_attentions(unet):
        for part in ("to_q", "to_k"):

            def keep(_: Any, __: Any, out: Tensor, key: str = f"{layer.name} {part}") -> None:
                seen[key] = out.detach()

            handles.append(cast(nn.Module, getattr(layer.module, part)).register_forward_hook(keep))
    with torch.no_grad():
        predict(unet, x, context)
    for handle in handles:
        handle.remove()
    found = {}
    for layer in cross_attentions(unet):
        q, k = (seen[f"{layer.name} {part}"] for part in ("to_q", "to_k"))
        size = q.shape[-1] // layer.heads
        heads = []
        for h in range(layer.heads):
            own = slice(h * size, (h + 1) * size)
            heads.append(torch.softmax(q[..., own] @ k[..., own].transpose(1, 2) / size**0.5, -1))
        found[layer.name] = torch.stack(heads, 1)
    return found


@pytest.mark.parametrize("codebase", MAKERS)
def test_a_recorded_run_computes_the_same_and_gives_the_maps_that_hooks_see(codebase: str) -> None:
    unet, x, context = MAKERS[codebase](), latents(3, 8, 12), prompts(3)
    recorder = MapRecorder(unet, (8, 12))
    with torch.no_grad(), recorder.installed():
        maps, found = recorder.run(lambda: predict(unet, x, context))
        plain = predict(unet, x, context)  # not recorded: untouched
    assert leftovers(unet) == []
    with torch.no_grad():
        assert torch.equal(plain, predict(unet, x, context))
    assert (found - plain).abs().max() < 1e-4
    by_hooks = maps_by_hooks(unet, x, context)
    assert maps.by_layer.keys() == by_hooks.keys() and maps.rows == 3
    for name, wanted in by_hooks.items():
        height, width = maps.grid(name)
        assert maps.by_layer[name].shape == (3, wanted.shape[1], height * width, TOKENS) and 2 * width == 3 * height
        assert (maps.by_layer[name] - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("codebase", MAKERS)
def test_early_stop_runs_fewer_modules_and_sees_the_same(codebase: str) -> None:
    unet, x, context = MAKERS[codebase](), latents(), prompts()
    recorder = MapRecorder(unet, (8, 8), sizes=[2])
    with torch.no_grad(), recorder.installed():
        whole, _ = recorder.run(lambda: predict(unet, x, context))
        with counting(unet) as calls_whole:
            predict(unet, x, context)
        with counting(unet) as calls:
            stopped = recorder.run_to_last(lambda: predict(unet, x, context))
    assert sum(calls.values()) < 0.9 * sum(calls_whole.values())
    last = [name for name in calls_whole if name not in calls]
    assert any("up_blocks" in name or "output_blocks" in name or name.startswith("out.") for name in last)
    assert stopped.by_layer.keys() == whole.by_layer.keys()
    assert all(torch.equal(stopped.by_layer[name], whole.by_layer[name]) for name in whole.by_layer)


def test_by_size_the_first_run_tells_and_the_next_stop() -> None:
    unet = diffusers_unet()
    recorder = MapRecorder(unet, (8, 8), sizes=[2])
    sizes = []
    with torch.no_grad(), recorder.installed():
        for _ in range(2):
            with counting(unet) as calls:
                maps = recorder.run_to_last(lambda: predict(unet, latents(), prompts()))
            sizes.append(sum(calls.values()))
            assert {seen.shape[2] for seen in maps.by_layer.values()} == {16}
    assert sizes[1] < sizes[0]


def test_slices_of_a_batch_are_put_together() -> None:
    unet, x, context = diffusers_unet(), latents(3), prompts(3)
    recorder = MapRecorder(unet, (8, 8))
    with torch.no_grad(), recorder.installed():
        at_once, _ = recorder.run(lambda: predict(unet, x, context))
        sliced, _ = recorder.run(lambda: [predict(unet, x[i : i + 1], context[i : i + 1]) for i in range(3)])
    assert sliced.rows == 3
    assert all(torch.allclose(sliced.by_layer[n], at_once.by_layer[n], atol=1e-6) for n in at_once.by_layer)


def map_gradient(unet: Any, x: Tensor, context: Tensor, sizes: Any, stop: bool, memory: bool) -> tuple[Tensor, Maps]:
    recorder = MapRecorder(unet, (8, 8), sizes)
    leaf = x.clone().requires_grad_()
    with recorder.installed(), checkpointed(unet) if memory else nullcontext():
        if stop:
            maps = recorder.run_to_last(lambda: predict(unet, leaf, context))
        else:
            maps, _ = recorder.run(lambda: predict(unet, leaf, context))
        loss = sum(seen.square().sum() for seen in maps.by_layer.values())
        (found,) = torch.autograd.grad(cast(Tensor, loss), leaf)
    return found, maps.detach()


@pytest.mark.parametrize(("codebase", "more"), CASES)
@pytest.mark.parametrize("stop", [False, True])
def test_checkpointing_gives_the_same_gradient_and_maps(codebase: str, more: dict[str, Any], stop: bool) -> None:
    unet, x, context = MAKERS[codebase](**more), latents(), prompts()
    plain, maps = map_gradient(unet, x, context, (), stop, memory=False)
    cheap, again = map_gradient(unet, x, context, (), stop, memory=True)
    assert plain.abs().max() > 0
    assert (cheap - plain).abs().max() < 1e-6 * max(1.0, float(plain.abs().max()))
    assert all(torch.equal(maps.by_layer[name], again.by_layer[name]) for name in maps.by_layer)
    assert leftovers(unet) == [] and all(parameter.requires_grad for parameter in unet.parameters())
    if more:
        switches = [module.__dict__["checkpoint"] for module in unet.modules() if "checkpoint" in module.__dict__]
        assert switches and all(switches)  # the codebase's own rests only meanwhile


def test_some_layers_by_size_under_checkpointing() -> None:
    unet, x, context = diffusers_unet(), latents(), prompts()
    plain, _ = map_gradient(unet, x, context, [2], True, memory=False)
    cheap, _ = map_gradient(unet, x, context, [2], True, memory=True)
    assert (cheap - plain).abs().max() < 1e-6


def test_checkpointing_runs_blocks_twice_and_keeps_less() -> None:
    unet, x, context = diffusers_unet(), latents(), prompts()
    kept: dict[bool, int] = {}
    for memory in (False, True):
        held: list[int] = []

        def note(kept_back: Tensor, held: list[int] = held) -> Tensor:
            held.append(kept_back.numel())
            return kept_back

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            leaf = x.clone().requires_grad_()
            with checkpointed(unet) if memory else nullcontext(), frozen(unet), counting(unet) as calls:
                out = predict(unet, leaf, context)
                before = sum(calls.values())
                torch.autograd.grad(out.square().sum(), leaf)
                after = sum(calls.values())
        kept[memory] = sum(held)
        assert (after > 1.3 * before) == memory
    assert kept[True] < 0.5 * kept[False]


def test_a_backward_pass_may_be_done_twice_under_checkpointing() -> None:
    unet, context = diffusers_unet(), prompts()
    leaf = latents().requires_grad_()
    recorder = MapRecorder(unet, (8, 8))
    with recorder.installed(), checkpointed(unet):
        maps = recorder.run_to_last(lambda: predict(unet, leaf, context))
        loss = next(reversed(maps.by_layer.values())).square().sum()
        first, second = (torch.autograd.grad(loss, leaf, retain_graph=i == 0)[0] for i in range(2))
    assert torch.equal(first, second)


def test_blocks_that_run_again_inside_of_a_recorded_run_are_noted_once() -> None:
    unet, context = diffusers_unet(), prompts()
    leaf = latents().requires_grad_()
    recorder = MapRecorder(unet, (8, 8))
    with recorder.installed(), checkpointed(unet):
        maps, (found,) = recorder.run(lambda: torch.autograd.grad(predict(unet, leaf, context).square().sum(), leaf))
    assert maps.rows == 2 and found.abs().max() > 0
    assert all(len(seen) == 2 for seen in maps.by_layer.values())


@pytest.mark.parametrize("where", ["layer", "call", "block"])
def test_nothing_is_left_after_an_exception(where: str) -> None:
    unet, x, context = diffusers_unet(), latents(), prompts()
    recorder = MapRecorder(unet, (8, 8))

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("boom")

    with torch.no_grad():
        assert all(parameter.requires_grad for parameter in unet.parameters())
        before = predict(unet, x, context)
        to_q = cast(nn.Module, cross_attentions(unet)[-1].module.to_q)
        failing = {
            "layer": lambda: recorder.run_to_last(lambda: predict(unet, x, context)),
            "call": lambda: recorder.run(fail),
            "block": fail,
        }[where]
        broken = intercept([(to_q, fail)]) if where == "layer" else nullcontext()
        with pytest.raises(RuntimeError, match="boom"), recorder.installed(), checkpointed(unet), broken:
            failing()
        assert leftovers(unet) == [] and all(parameter.requires_grad for parameter in unet.parameters())
        assert torch.equal(before, predict(unet, x, context))
        with recorder.installed():
            assert recorder.run_to_last(lambda: predict(unet, x, context)).rows == 2  # usable again


def test_a_host_that_catches_exceptions_does_not_catch_the_stop() -> None:
    unet = diffusers_unet()
    recorder = MapRecorder(unet, (8, 8))

    def careful() -> Tensor | None:
        try:
            return predict(unet, latents(), prompts())
        except Exception:
            pytest.fail("the stop was caught")

    with torch.no_grad(), recorder.installed():
        assert recorder.run_to_last(careful).rows == 2


def test_what_cannot_be_recorded_is_said_in_a_sentence() -> None:
    unet = diffusers_unet()
    with pytest.raises(Unsupported, match="no cross-attention"):
        MapRecorder(nn.Conv2d(4, 4, 3), (8, 8))
    nothing = MapRecorder(unet, (8, 8), sizes=[64])
    with torch.no_grad(), nothing.installed(), pytest.raises(Unsupported, match="no attention"):
        nothing.run_to_last(lambda: predict(unet, latents(), prompts()))
    recorder = MapRecorder(unet, (8, 8))
    with recorder.installed(), pytest.raises(RuntimeError, match="already"):
        recorder.run(lambda: recorder.run_to_last(lambda: None))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8]))
def test_the_size_of_a_layer_is_told_at_any_latent_size(height: int, width: int, factor: int) -> None:
    pixels = -(-height // factor) * -(-width // factor)
    told = size_factor(pixels, (height, width))
    assert told is not None and -(-height // told) * -(-width // told) == pixels


@given(st.integers(3, 9), st.integers(3, 9), st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_any_size(height: int, width: int, tokens: int, rows: int) -> None:
    unet, size = diffusers_unet(), (height, width)
    recorder = MapRecorder(unet, size, sizes=[1, 2])
    x, context = latents(rows, *size), prompts(rows, tokens)
    with torch.no_grad(), recorder.installed():
        for _ in range(2):
            maps = recorder.run_to_last(lambda: predict(unet, x, context))
            assert maps.by_layer.keys() == {layer.name for layer in recorder.layers}
            for name, seen in maps.by_layer.items():
                grid = maps.grid(name)
                assert seen.shape[0] == rows and seen.shape[2:] == (grid[0] * grid[1], tokens)
                assert torch.allclose(seen.sum(-1), torch.ones(()), atol=1e-5)
