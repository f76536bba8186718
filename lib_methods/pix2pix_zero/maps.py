"""A UNet's cross-attention: which pixels attend to which tokens of the prompt, and the masks and sheets made of that.

The layers chosen compute their attention in plain sight while a run is recorded, with the result that they would have
given. Gradients go through the maps, also where blocks are run twice for them (`lib_methods.attention.checkpointed`).

Masks are tensors of shape (n, 1, h, w) on the latents, 1 where the image may change, 0 where it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from lib_methods.attention import (
    CrossAttention,
    cross_attentions,
    frozen,
    intercept,
    is_running_again,
    own_checkpointing_off,
    prompt_input,
    transformer_blocks,
)
from lib_methods.attention.intercept import Original, Replacement
from lib_methods.attention.layers import running_precision, size_factor, token_grid
from lib_methods.denoiser import Unsupported

T = TypeVar("T")
GAP, LINE = 8, 22
LEAST_COLUMN = 92  # for the longest name
# dark blue, violet, orange, light yellow: distinct by brightness alone, too
_RAMP = np.array([[20, 11, 82], [160, 32, 122], [240, 110, 40], [252, 245, 170]], dtype=np.float32)


@dataclass(frozen=True)
class Maps:
    """The cross-attention of one run of the UNet.

    by_layer: by layer name, probabilities of shape (rows, heads, pixels, tokens), which sum to 1 over the tokens.
    latent_size: height and width of the latents that were run. precision: what the layers themselves computed in.
    """

    by_layer: dict[str, Tensor]
    latent_size: tuple[int, int]
    precision: torch.dtype = torch.float32

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return next((len(maps) for maps in self.by_layer.values()), 0)

    def grid(self, name: str) -> tuple[int, int]:
        """Height and width of a layer's map. Raises `Unsupported` where an extension has merged tokens."""
        found = token_grid(self.by_layer[name].shape[2], *self.latent_size)
        if found is None:
            raise Unsupported("A mask needs whole attention maps. Turn off token merging, or edit without a mask.")
        return found

    def detach(self) -> Maps:
        """The same without gradients."""
        return self.each(Tensor.detach)

    def select(self, rows: Sequence[int]) -> Maps:
        """Some of the rows, in the order given."""
        return self.each(lambda maps: maps[list(rows)])

    def each(self, change: Callable[[Tensor], Tensor]) -> Maps:
        """The same with every layer's maps changed."""
        return Maps({name: change(maps) for name, maps in self.by_layer.items()}, self.latent_size, self.precision)


def recordable_layers(unet: nn.Module) -> Sequence[CrossAttention]:
    """The layers whose maps can be recorded. Raises `Unsupported` where the UNet has no cross-attention."""
    layers = cross_attentions(unet)
    if not layers:
        raise Unsupported("This model cannot be edited: its UNet has no cross-attention to the prompt.")
    return layers


class _Stop(BaseException):
    """Leaves the UNet; a host's `except Exception` in between does not keep it."""


@dataclass
class _Run:
    """What was seen in one run of the UNet."""

    maps: dict[str, list[Tensor]] = field(default_factory=dict)
    precision: torch.dtype = torch.float32


class MapRecorder:
    """Records the cross-attention maps of runs of one UNet at one size of latents.

    sizes: which layers, by how many times smaller than the latent they are (1, 2, 4, 8); none means all. By size only
    the first whole run tells which they are. Raises `Unsupported`, see `recordable_layers`.
    """

    def __init__(self, unet: nn.Module, latent_size: tuple[int, int], sizes: Collection[int] = ()) -> None:
        self.unet, self.latent_size, self.sizes = unet, latent_size, sizes
        self.layers = recordable_layers(unet)
        self._expected = None if sizes else frozenset(layer.name for layer in self.layers)
        self._run: _Run | None = None
        self._may_stop = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, `run` and `run_to_last` can be called, and gradients be taken of their maps with
        respect to what the UNet is given, not to its weights. Other runs of the UNet without gradients pass unchanged.
        Nothing is left behind."""
        blocks = dict(transformer_blocks(self.unet))
        holding = {layer.name.rpartition(".")[0] for layer in self.layers}
        with ExitStack() as stack:
            stack.enter_context(own_checkpointing_off(self.unet))
            stack.enter_context(frozen(self.unet))
            stack.enter_context(intercept((layer.module, self._watcher(layer)) for layer in self.layers))
            for name in holding:
                # after the block, not in its middle: where it is run again for its gradients it may not be left early
                stack.callback(blocks[name].register_forward_hook(self._after_block).remove)
            yield

    def run(self, unet_call: Callable[[], T]) -> tuple[Maps, T]:
        """Run the UNet to its end: the maps, and what the call returns. Slices of a batch are put together."""
        with self._recording() as run:
            result = unet_call()
        self._expected = frozenset(run.maps)
        return self._maps(run), result

    def run_to_last(self, unet_call: Callable[[], object]) -> Maps:
        """Run the UNet and leave it right after the last layer chosen; the first time to the end, where only that
        tells which it is. One run of the UNet, not slices."""
        with self._recording() as run:
            self._may_stop = self._expected is not None
            try:
                unet_call()
                self._expected = frozenset(run.maps)
            except _Stop:
                pass  # ours, raised once everything had been seen
        return self._maps(run)

    @contextmanager
    def _recording(self) -> Iterator[_Run]:
        if self._run is not None:
            raise RuntimeError("a run is being recorded already")
        self._run = _Run()
        try:
            yield self._run
        finally:
            self._run, self._may_stop = None, False

    def _maps(self, run: _Run) -> Maps:
        if not run.maps:
            raise Unsupported(
                "The chosen layers showed no attention to the prompt. Choose all layers, and turn off other "
                "extensions that replace the model's attention."
            )
        joined = {name: seen[0] if len(seen) == 1 else torch.cat(seen) for name, seen in run.maps.items()}
        return Maps(joined, self.latent_size, run.precision)

    def _watcher(self, layer: CrossAttention) -> Replacement:
        def watch(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
            prompt = prompt_input(args, kwargs)
            # with gradients on, always: a block that is run again must compute what it did the first time
            is_plain = self._run is None and not torch.is_grad_enabled()
            is_chosen = not self.sizes or size_factor(hidden.shape[1], self.latent_size) in self.sizes
            if prompt is None or is_plain or not is_chosen:
                return original(hidden, *args, **kwargs)
            maps = layer.probabilities(hidden, prompt)
            if self._run is not None and not is_running_again():
                self._run.maps.setdefault(layer.name, []).append(maps)
                self._run.precision = running_precision(hidden)
            return layer.attend(maps, prompt)

        return watch

    def _after_block(self, *_: object) -> None:
        run = self._run
        if run is not None and self._may_stop and self._expected is not None and self._expected <= run.maps.keys():
            raise _Stop


def word_share(maps: Maps, positions: Sequence[int]) -> Tensor:
    """How much of every pixel's attention goes to a word, (rows, 1, h, w) on the latents, fp32 in [0, 1].

    positions: the word's tokens in the prompt, counted from 0, which is the start token. The mean over heads and
    layers; those smaller than the latents are enlarged. Raises `Unsupported` for positions outside of the prompt.
    """
    if not positions:
        raise Unsupported("The word is not in the caption, so where it attends cannot be seen.")
    total: Tensor | None = None
    for name, seen in maps.by_layer.items():
        if min(positions) < 0 or max(positions) >= seen.shape[-1]:
            raise Unsupported("The word is not in the part of the caption that the model reads.")
        share = seen.detach()[..., list(positions)].float().sum(-1).mean(1)
        grid = share.unflatten(1, maps.grid(name))[:, None]
        enlarged = interpolate(grid, size=maps.latent_size, mode="bilinear", align_corners=False)
        total = enlarged if total is None else total + enlarged
    if total is None:
        raise ValueError("no maps were recorded")
    return (total / len(maps.by_layer)).clamp(0, 1)


class WordAttention:
    """The mean of `word_share` over the steps of a sampling."""

    def __init__(self, positions: Sequence[int]) -> None:
        self.positions = tuple(positions)
        self.steps = 0
        self._sum: Tensor | None = None

    def add(self, maps: Maps) -> None:
        """Count the maps of a step; all steps have the same rows and latents."""
        share = word_share(maps, self.positions)
        self._sum = share if self._sum is None else self._sum + share
        self.steps += 1

    def heat(self) -> Tensor:
        """Where the word attends, (rows, 1, h, w): 0 where least and 1 where most in each row."""
        if self._sum is None:
            raise ValueError("no maps were recorded")
        return normalised(self._sum / self.steps)


def normalised(share: Tensor) -> Tensor:
    """Stretched to [0, 1] in each row of (rows, 1, h, w); 1 everywhere in a row that knows no difference."""
    low, high = share.amin((1, 2, 3), keepdim=True), share.amax((1, 2, 3), keepdim=True)
    span = high - low
    is_flat = span <= 1e-6 * high.abs().clamp_min(1e-6)
    return torch.where(is_flat, torch.ones_like(share), (share - low) / torch.where(is_flat, 1.0, span))


def threshold(heat: Tensor, level: float, grow: int = 0) -> Tensor:
    """A hard mask of a heat map (n, 1, h, w): 1 from `level` up, 0 below, then `grow` positions larger all round."""
    hard = (heat >= level).to(heat.dtype)
    return max_pool2d(hard, 2 * grow + 1, stride=1, padding=grow) if grow > 0 else hard


def overlay(picture: Image.Image, mask: Tensor, opacity: float = 0.7) -> Image.Image:
    """The image in RGB with a mask of one row, (h, w) or (1, 1, h, w), laid over: untouched where it is 0, bright
    where it is 1.

    opacity: of the colour where the mask is 1, 0 to 1.
    """
    if mask.numel() != mask.shape[-2] * mask.shape[-1]:
        raise ValueError(f"one mask is shown at a time, not {tuple(mask.shape)}")
    values = mask.detach().float().nan_to_num(0).clamp(0, 1).reshape(1, 1, *mask.shape[-2:]).cpu()
    size = (picture.height, picture.width)
    share = interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
    places = share * (len(_RAMP) - 1)
    colours = np.stack([np.interp(places, range(len(_RAMP)), _RAMP[:, c]) for c in range(3)], -1)
    below = np.asarray(picture.convert("RGB"), dtype=np.float32)
    mixed = below + (opacity * share)[..., None] * (colours - below)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Images of one size side by side, each under its name; small ones stand apart, so that the names have room."""
    width, height = pictures[0][1].size
    column = max(width, LEAST_COLUMN)
    canvas = Image.new("RGB", (len(pictures) * (column + GAP) - GAP, height + LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, picture) in enumerate(pictures):
        left = index * (column + GAP)
        draw.text((left + 2, 5), name, fill="black")
        canvas.paste(picture.convert("RGB").resize((width, height)), (left, LINE))
    return canvas
