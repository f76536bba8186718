"""Look at a UNet's cross-attention: which pixels attend to which tokens of the prompt.

The layers chosen compute their attention in plain sight while a run is recorded, with the result that they would have
given. Gradients go through the maps, also where blocks are run twice for them (`lib_methods.attention.checkpointed`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
from lib_methods.attention.intercept import Original
from lib_methods.attention.layers import running_precision, size_factor, token_grid
from lib_methods.denoiser import Unsupported

T = TypeVar("T")


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

    def _watcher(self, layer: CrossAttention) -> Any:
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
