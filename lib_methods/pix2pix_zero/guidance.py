"""Cross-attention guidance: keeps an image's structure while its prompt changes.

Cross-attention guidance (arXiv 2302.03027, section 3.2) takes a gradient step on the latents, which brings the maps of
the edit back to those of the reference. The soft blend is the cheap form without gradients: it computes the edit's
attention with a mixture of both.

Latents are in sigma space, `x = x0 + sigma * eps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.attention import CrossAttention, cross_attentions, intercept, prompt_input
from lib_methods.attention.intercept import Original, Replacement
from lib_methods.denoiser import Unsupported
from lib_methods.pix2pix_zero.maps import Maps

_TRIES = 6
_QUIET = 2.0**-6  # a scaled gradient whose largest element is below this has lost others to zero in fp16 on its way
_LARGEST = 2.0**28

NO_GRADIENTS = "This WebUI's models give no gradients. Choose soft blend instead."


@dataclass(frozen=True)
class MapGradient:
    """How to change latents to bring their maps back.

    value: dL/dx, (batch, channels, h, w), at least fp32; zero for images in `dropped`. losses: L of every image,
    (batch,). dropped: the images whose gradient was not finite.
    """

    value: Tensor
    losses: Tensor
    dropped: tuple[int, ...] = ()


@dataclass
class LossScale:
    """The factor that keeps half precision gradients away from zero and infinity; kept from step to step, like the
    one of mixed precision training, but also grows at once where a gradient vanishes."""

    value: float = 2.0**12


def map_losses(maps: Maps, reference: Maps) -> Tensor:
    """How far the maps of each image are from the reference's: shape (images,), at least fp32.

    The squared difference is summed over pixels and tokens, averaged over heads, and summed over the layers of the
    reference (paper eq. 4). A reference of one row is everybody's. Raises `Unsupported` where the maps cannot be
    compared.
    """
    total: Tensor | None = None
    for name, wanted in reference.by_layer.items():
        found = _comparable(maps.by_layer.get(name), wanted)
        loss = (found - wanted.to(found)).square().sum((2, 3)).mean(1)
        total = loss if total is None else total + loss
    if total is None:
        raise ValueError("the reference has no maps")
    return total


def _comparable(found: Tensor | None, wanted: Tensor) -> Tensor:
    if found is None:
        raise Unsupported("The edit and its reference do not use the same attention layers of the model.")
    if found.shape[-1] != wanted.shape[-1]:
        raise Unsupported(
            f"The edit's prompt has {found.shape[-1]} tokens and the reference's {wanted.shape[-1]}: "
            "both must fill the same number of 77-token chunks."
        )
    if found.shape[2] != wanted.shape[2]:
        raise Unsupported("The edit and its reference must be of the same size.")
    if len(wanted) not in (1, len(found)):
        raise ValueError(f"{len(found)} rows cannot be compared with {len(wanted)}")
    if wanted.shape[1] != found.shape[1]:
        raise Unsupported("The edit and its reference must be computed with the same model.")
    return found


def gradient(
    x: Tensor,
    sigma: float,
    predict_with_maps: Callable[[Tensor, float], Maps],
    reference: Maps,
    scale: LossScale | None = None,
) -> MapGradient:
    """dL/dx of `map_losses` at latents x (batch, channels, h, w), in sigma space. Images do not see each other.

    predict_with_maps: runs the UNet with gradients on x and a sigma and gives its maps, as `MapRecorder.run_to_last`
    does. It is called once, and the recorder must be installed around this. scale: for UNets in fp16, kept from step to
    step by the caller; the gradient is tried again at another scale where it overflows or vanishes. Images whose
    gradient is not finite at any scale are dropped.

    Raises `Unsupported` where the maps carry no gradients, or see `map_losses`.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            wide = torch.promote_types(x.dtype, torch.float32)
            leaf = x.detach().clone().to(wide).requires_grad_()
            maps = predict_with_maps(leaf, sigma)
            if any(kept.is_inference() for kept in reference.by_layer.values()):
                reference = reference.each(Tensor.clone)  # what is made in inference mode no graph may keep
            losses = map_losses(maps, reference)
            if not losses.requires_grad:
                raise Unsupported(NO_GRADIENTS)
            is_narrow = maps.precision == torch.float16
            del maps
            value = _scaled(losses, leaf, scale or LossScale()) if is_narrow else _backward(losses, leaf)
    except RuntimeError as error:
        if str(error).startswith("Inference tensors") or "modified by an inplace operation" in str(error):
            raise Unsupported(NO_GRADIENTS) from error
        raise
    finite = torch.isfinite(value).flatten(1).all(1) & torch.isfinite(losses)
    dropped = tuple(int(row) for row in (~finite).nonzero().flatten())
    value = torch.where(finite.view(-1, *[1] * (value.ndim - 1)), value, torch.zeros_like(value))
    return MapGradient(value, losses.detach(), dropped)


def _backward(losses: Tensor, leaf: Tensor, retain: bool = False) -> Tensor:
    (value,) = torch.autograd.grad(losses.sum(), leaf, retain_graph=retain, allow_unused=True)
    if value is None:
        raise Unsupported(NO_GRADIENTS)
    return value


def _scaled(losses: Tensor, leaf: Tensor, scale: LossScale) -> Tensor:
    """The gradient through half precision, every image at the scale that suits it; not finite where none does."""
    scales = torch.full_like(losses, scale.value)
    best = torch.full_like(leaf, float("nan"))
    good = torch.zeros_like(scales)  # the scale of the best so far, 0 for none
    open_ = torch.isfinite(losses.detach())
    for attempt in range(_TRIES):
        is_last = attempt == _TRIES - 1
        found = _backward(losses * scales, leaf, retain=not is_last)
        peak = found.abs().flatten(1).amax(1)
        finite = torch.isfinite(peak)
        better = open_ & finite & (scales > good)
        shape = (-1, *[1] * (leaf.ndim - 1))
        best = torch.where(better.view(shape), found / scales.view(shape), best)
        overflowed = open_ & ~finite & (good == 0)
        vanished = open_ & finite & (peak < _QUIET) & (losses.detach() > 0) & (scales < _LARGEST)
        good = torch.where(better, scales, good)
        open_ = overflowed | vanished
        if is_last or not open_.any():
            break
        raised = torch.where(peak > 0, 2.0 ** torch.log2(1 / peak.clamp(1e-30)).ceil(), torch.full_like(peak, 2.0**10))
        factors = torch.where(overflowed, torch.full_like(peak, 2.0**-6), raised)
        scales = torch.where(open_, (scales * factors).clamp(2.0**-40, _LARGEST), scales)
    if bool((good > 0).any()):
        scale.value = float(good[good > 0].min())
    return best


def step(x: Tensor, sigma: float, gradient: Tensor, amount: float) -> Tensor:
    """The latents after a guidance step, in sigma space: `x - amount * (1 + sigma^2) * dL/dx`.

    amount: the paper's step (0.1 for real images, 0.15 for synthetic ones). The paper steps in latents of variance one,
    `x / sqrt(1 + sigma^2)`; going there and back is the factor. Images with a zero gradient come back unchanged to the
    last bit.
    """
    change = gradient.new_tensor(amount) * (1 + sigma**2) * gradient
    return (x.to(gradient.dtype) - change).to(x.dtype)


@contextmanager
def soft_blend(
    unet: nn.Module, reference: Maps, share: float, rows: Callable[[], Sequence[int | None]]
) -> Iterator[None]:
    """Within the block, attention to the prompt is computed with maps `(1 - share) * own + share * reference`.

    reference: maps of one row an image, or of one row that is everybody's. share: 0 to 1. rows: asked at every layer,
    for each row that is in the UNet its image, or None for a row that is left alone; where their number is not that of
    the rows, the call is somebody else's and passes unchanged.

    Direction-shifted contexts (`shifted_context`) are seen, whichever is entered first.
    Raises `Unsupported` where the maps do not fit, inside of the UNet's run.
    """
    layers = [layer for layer in cross_attentions(unet) if layer.name in reference.by_layer]
    if not layers:
        raise Unsupported("The reference was recorded with another model.")

    def reader(layer: CrossAttention) -> Replacement:
        kept = reference.by_layer[layer.name]

        def read(original: Original, hidden: Tensor, /, *args: Any, **kwargs: Any) -> Any:
            prompt, images = prompt_input(args, kwargs), rows()
            places = [row for row, image in enumerate(images) if image is not None]
            whose = [image for image in images if image is not None]
            if prompt is None or len(images) != len(hidden) or not places or not share:
                return original(hidden, *args, **kwargs)
            maps = layer.probabilities(hidden, prompt)
            wanted = kept if len(kept) == 1 else kept[whose]
            own = _comparable(maps[places], wanted)
            mixed = own + share * (wanted.to(own) - own)
            return layer.attend(maps.index_copy(0, torch.tensor(places, device=maps.device), mixed), prompt)

        return read

    with intercept((layer.module, reader(layer)) for layer in layers):
        yield
