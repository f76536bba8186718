"""FABRIC against a plain, slow form of the method that shares no code with it: dense softmax with every token's
weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.denoiser import Role, Row
from lib_methods.fabric.apply import attach
from lib_methods.fabric.attention import _chunked, attention_with_lse, pool_tokens
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.reference import FeatureCache, reference_noise
from lib_methods.fabric.settings import FabricSettings
from lib_methods.hosts.bare import BareSampling, rows_of
from lib_methods.pictures.fit import crop_to_fill, to_tensor
from tests.fabric.small_model import Album, picture, small_unet


def dense_attention(
    layer, own: Tensor, references: Tensor, weights: Tensor, styles: list[tuple[Tensor, float]]
) -> Tensor:
    """One row. own (T, C); references (S, C) with a weight each (S,). Softmax over both with the weights, in float64
    loops over heads. styles: images (S', C) whose statistics the own queries and keys get, each with its share."""
    heads = layer.heads
    tokens = torch.cat([own, references])
    weight = torch.cat([torch.ones(len(own)), weights]).double()

    def split(linear, x):
        return linear(x).double().reshape(len(x), heads, -1)

    q, k, v = split(layer.to_q, own), split(layer.to_k, tokens), split(layer.to_v, tokens)
    if styles:
        aligned = []
        for linear in (layer.to_q, layer.to_k):
            seen = [(split(linear, image), share) for image, share in styles]
            mean = sum(share * image.mean(0) for image, share in seen)
            spread = sum(share * (image - image.mean(0)).square().mean(0).sqrt() for image, share in seen)
            mine = split(linear, own)
            aligned.append((mine - mine.mean(0)) / (mine - mine.mean(0)).square().mean(0).sqrt() * spread + mean)
        q, k = aligned[0], torch.cat([aligned[1], k[len(own) :]])
    joined = []
    for head in range(heads):
        scores = q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5
        both = weight * torch.exp(scores)
        out = (both / both.sum(1, keepdim=True)) @ v[:, head]
        joined.append(out)
    out = torch.cat(joined, 1).float()
    for part in layer.to_out:
        out = part(out)
    return out


def plain_fabric(
    sampling: BareSampling,
    x: Tensor,
    context: Tensor,
    rows: tuple[Row, ...],
    level: float,
    noise: float,
    per_role: dict[Role, list[tuple[Tensor, Callable[[int, int], float]]]],
    pooled: bool,
    sharing: float = 0.0,
    shares: dict[Role, list[float]] | None = None,
    widths: tuple[int, ...] = (32, 64),
) -> Tensor:
    """The whole call, row by row: reference images through the UNet one by one, at the level `noise`, then dense
    attention in every layer.

    sharing: with what strength rows see the batch's first image in their own call. shares: for AdaIN, those of the
    images of `per_role`; a first image's is 1. widths: those of the layers that see anything.
    """
    unet = sampling.unet
    layers = [(n, m) for n, m in unet.named_modules() if n.endswith(".attn1") and m.to_q.in_features in widths]

    def seen(image: Tensor, noise: float = noise, context: Tensor = sampling.empty) -> dict[str, Tensor]:
        store: dict[str, Tensor] = {}
        handles = [
            m.register_forward_pre_hook(
                lambda _m, a, kw, n=n: store.__setitem__(n, a[0] if a else kw["hidden_states"]), with_kwargs=True
            )
            for n, m in layers
        ]
        unet(image[None], torch.tensor([noise]), context)
        for handle in handles:
            handle.remove()
        return {n: h[0] for n, h in store.items()}

    features = {role: [(seen(image), weight) for image, weight in images] for role, images in per_role.items()}
    outs = []
    for i, row in enumerate(rows):
        handles = []
        found = list(features.get(row.role, []))
        mine = list((shares or {}).get(row.role, []))
        if sharing and row.image:
            leader = next(j for j, other in enumerate(rows) if (other.role, other.image) == (row.role, 0))
            found.append((seen(x[leader], level, context[leader : leader + 1]), lambda own, full: sharing))
            mine = [1.0] if shares is not None else []
        for name, layer in layers:

            def replace(_m, args, kwargs, _out, name=name, layer=layer, found=found, mine=mine):
                own = (args[0] if args else kwargs["hidden_states"])[0]
                if not found:
                    return None
                tokens, weights = [], []
                for store, weight in found:
                    reference = store[name]
                    full = len(reference)
                    if pooled:
                        side = int(full**0.5)
                        reference = (
                            reference.reshape(side // 2, 2, side // 2, 2, -1).mean((1, 3)).reshape(full // 4, -1)
                        )
                    tokens.append(reference)
                    weights.append(torch.full((len(reference),), weight(len(own), full) * full / len(reference)))
                styles = [(store[name], share) for (store, _), share in zip(found[-len(mine) :], mine)]
                return dense_attention(layer, own, torch.cat(tokens), torch.cat(weights), styles)[None]

            handles.append(layer.register_forward_hook(replace, with_kwargs=True))
        outs.append(unet(x[i : i + 1], torch.tensor([level]), context[i : i + 1]).sample)
        for handle in handles:
            handle.remove()
    return torch.cat(outs)


def _noised(image, image_id: str, size: tuple[int, int], seed: int, level: float) -> Tensor:
    small = torch.nn.functional.avg_pool2d(to_tensor(crop_to_fill(image, size[1] * 8, size[0] * 8))[None], 8)
    latent = torch.cat([small, small.mean(1, keepdim=True)], 1)[0]
    return latent + level * reference_noise(image_id, seed, (4, *size))


# 1.5 lies between 0.277, 1.04 and 3.9 of the six
LEVELS = [("six", 1.04), ("every step", 1.5), ("one", 0.25)]


@pytest.mark.parametrize(("levels", "noise"), LEVELS)
@pytest.mark.parametrize("weighting", ["shared", "as published"])
@pytest.mark.parametrize(("conds", "unconds", "slices"), [(1, 1, None), (3, 2, None), (2, 2, 2), (2, 1, 1)])
@torch.no_grad()
def test_equals_the_plain_form(
    weighting: str, conds: int, unconds: int, slices: int | None, levels: str, noise: float
) -> None:
    rows = rows_of(conds, unconds)
    unet, album = small_unet(), Album()
    sampling = BareSampling(unet)
    pictures = [picture(i) for i in range(3)]
    ids = [album.add(p) for p in pictures]
    asked = FabricSettings(
        likes=(FeedbackImage(ids[0]), FeedbackImage(ids[1], 0.5)),
        dislikes=(FeedbackImage(ids[2]),),
        strength=0.8,
        negative_weight=0.5,
        weighting=weighting,
        reference_levels=levels,
    )
    assert attach(sampling, asked, album.load, FeatureCache())
    x, context = torch.randn(len(rows), 4, 8, 8), torch.randn(len(rows), 7, 16)
    got = sampling.denoise(x, context, rows, level=1.5, slices=slices)

    share = 0.5 if weighting == "shared" else 1.0  # two likes share one budget

    def part(index: int, strength: float):
        return _noised(pictures[index], ids[index], (8, 8), 0, noise), lambda own, full: strength * own / full

    likes = [part(0, 0.8 * share), part(1, 0.8 * 0.5 * share)]
    per_role = {Role.COND: likes, Role.UNCOND: [part(2, 0.4)]}
    expected = plain_fabric(sampling, x, context, rows, 1.5, noise, per_role, False)
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("layers", ["all", "coarse", "fine"])
@pytest.mark.parametrize("adain", [False, True])
@pytest.mark.parametrize("liked", [False, True])
@torch.no_grad()
def test_a_consistent_batch_and_adain_equal_their_plain_form(liked: bool, adain: bool, layers: str) -> None:
    rows, unet, album = rows_of(3, 3), small_unet(), Album()
    sampling, pictures = BareSampling(unet), [picture(i) for i in range(2)]
    ids = [album.add(p) for p in pictures]
    likes = (FeedbackImage(ids[0]), FeedbackImage(ids[1], 0.5))
    asked = FabricSettings(
        likes=likes if liked else (), adain=adain, layers=layers, consistent_batch=not liked,
        reference_levels="every step",
    )  # fmt: skip
    assert attach(sampling, asked, album.load, FeatureCache())
    x, context = torch.randn(len(rows), 4, 8, 8), torch.randn(len(rows), 7, 16)
    got = sampling.denoise(x, context, rows, level=1.5)

    def part(index: int, weight: float):
        return _noised(pictures[index], ids[index], (8, 8), 0, 1.5), lambda own, full: 0.4 * weight * own / full

    per_role = {Role.COND: [part(0, 1.0), part(1, 0.5)]} if liked else {}
    expected = plain_fabric(
        sampling, x, context, rows, 1.5, 1.5, per_role, False,
        sharing=0.0 if liked else 0.8,
        shares={Role.COND: [2 / 3, 1 / 3] if liked else []} if adain else None,
        widths={"all": (32, 64), "coarse": (64,), "fine": (32,)}[layers],
    )  # fmt: skip
    assert (got - expected).abs().max() < 1e-5


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8, 40]))
@settings(max_examples=30, deadline=None)
def test_attention_with_lse_equals_softmax(batch: int, tokens: int, keys: int, channels: int) -> None:
    q, k, v = (torch.randn(batch, 2, n, channels) for n in (tokens, keys, keys))
    scores = q @ k.transpose(-1, -2) / channels**0.5
    for form in (attention_with_lse, _chunked):
        out, lse = form(q, k, v)
        assert torch.allclose(out, scores.softmax(-1) @ v, atol=1e-5)
        assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_pooling_averages_squares_and_keeps_edges(height: int, width: int) -> None:
    hidden = torch.randn(2, height * width, 3)
    pooled = pool_tokens(hidden, height, width)
    grid = hidden.reshape(2, height, width, 3)
    expected = [grid[:, y : y + 2, x : x + 2].mean((1, 2)) for y in range(0, height, 2) for x in range(0, width, 2)]
    assert torch.allclose(pooled, torch.stack(expected, 1), atol=1e-6)
