"""Apply an edit to one sampling: invert the image, or take a kept inversion, then edit beside the reference."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_methods.attention import pad_tokens
from lib_methods.denoiser import (
    NO_EDITING,
    NO_FLOW,
    ChosenSampler,
    Conditioning,
    LoadedModel,
    Sampling,
    Unsupported,
    editing_of,
)
from lib_methods.pix2pix_zero.edit import Edit, Shift
from lib_methods.pix2pix_zero.inversion import (
    DDPM,
    AncestralSettings,
    InversionError,
    InversionSettings,
    Trajectory,
    invert,
    invert_ancestral,
    noise_of,
)
from lib_methods.pix2pix_zero.maps import recordable_layers
from lib_methods.pix2pix_zero.noise import StepNoise
from lib_methods.pix2pix_zero.reference import Reference
from lib_methods.pix2pix_zero.settings import Pix2PixZeroSettings

Progress = Callable[[int, int], bool]

NEEDS_STEADY_SAMPLER = (
    "This sampler needs new noise at every step, so the image cannot be recovered. "
    "Choose another one, such as Euler, Euler a, DPM++ 2M or DDIM."
)
NEEDS_EULER_A = (
    'The inversion "ddpm" is for the sampler Euler a, with an eta above 0. Choose that sampler, or another inversion.'
)
WITHOUT_NOISE = (
    "The sampler ran without the noise that it adds at every step (eta and churn at 0), so only the edit changes "
    "the image."
)
NEEDS_ORDINARY_MODEL = "This is an InstructPix2Pix checkpoint. Choose a plain one, or use the method InstructPix2Pix."


class InversionCache:
    """Inversions by key, the least recently used given up first. Held in main memory. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Trajectory] = OrderedDict()

    def get(self, key: Hashable) -> Trajectory | None:
        """What is kept under the key, on the CPU and perhaps partial, or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, inverted: Trajectory, limit: int) -> bool:
        """Keep an inversion if it fits into `limit` bytes, in place of older ones; says whether it was kept."""
        held = inverted.to("cpu")
        with self._lock:
            self._kept.pop(key, None)
            fits = held.size <= limit
            if fits:
                self._kept[key] = held
            while self._size() > limit:
                self._kept.popitem(last=False)
            return fits

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()

    @property
    def size(self) -> int:
        """Bytes held."""
        with self._lock:
            return self._size()

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    def _size(self) -> int:
        return sum(inverted.size for inverted in self._kept.values())


CACHE = InversionCache()
CACHE_LIMIT = 512 * 2**20  # bytes; an inversion of 50 steps at 512x512 is 3 MB


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and values, in hexadecimal digits; the device does not count."""
    plain = tensor.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def inversion_key(picture: Tensor, model: Hashable, caption: str, sigmas: Tensor, settings: Hashable) -> Hashable:
    """All that an inversion depends on.

    picture: the latents (batch, 4, h, w) that it starts from. model: checkpoint, VAE and LoRAs with their strengths.
    caption: as the model gets it. sigmas: the sampler's levels. settings: how it is inverted.
    """
    levels = sigmas.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return tensor_hash(picture), model, caption, levels, settings


@dataclass(frozen=True)
class Words:
    """What an edit needs besides its settings, one entry per image of the batch.

    captions: what the images show. negatives: the negative prompts. directions: what is added to the prompt's
    embedding at strength 1, (tokens, dim). word_positions: the tokens of the mask's word in each caption, counted from
    0, which is the start token. vectors: what is added to SDXL's pooled text and sizes, (width,); none for others.
    """

    captions: tuple[str, ...]
    negatives: tuple[str, ...]
    directions: tuple[Tensor, ...]
    word_positions: tuple[tuple[int, ...], ...] = ()
    vectors: tuple[Tensor | None, ...] = ()


def unsuited(model: LoadedModel) -> str:
    """Why no edit can be made with this checkpoint, in one sentence; empty where one can."""
    if not model.has_editing:
        return NO_EDITING
    if model.sees_picture:
        return NEEDS_ORDINARY_MODEL
    if model.is_flow:
        return NO_FLOW
    try:
        recordable_layers(model.unet)
    except Unsupported as error:
        return str(error)
    return ""


def unsuited_sampler(sampler: ChosenSampler, settings: Pix2PixZeroSettings, is_img2img: bool) -> str:
    """Why no edit can be made with this sampler, as `check` will find in the job; empty where one can."""
    if sampler.obstacle:
        return sampler.obstacle
    if sampler.needs_noise:
        return NEEDS_STEADY_SAMPLER
    return NEEDS_EULER_A if settings.inversion == DDPM and is_img2img and not sampler.has_own_noise else ""


def check(sampling: Sampling, inversion: str) -> None:
    """Raise `Unsupported` with a sentence for the user where a first pass of this sampler and model cannot be edited
    with this inversion."""
    editing = editing_of(sampling)
    _ = editing.sigmas  # first, as in `unsuited`: where a host has none, no other checkpoint helps
    if sampling.picture is not None and sampling.picture.has_channels:
        raise Unsupported(NEEDS_ORDINARY_MODEL)
    if editing.needs_noise:
        raise Unsupported(NEEDS_STEADY_SAMPLER)
    if inversion == DDPM and editing.own_noise is None and editing.own_latent() is not None:
        raise Unsupported(NEEDS_EULER_A)


def attach(
    sampling: Sampling,
    settings: Pix2PixZeroSettings,
    words: Words,
    cfg_scale: float,
    *,
    seed: int = 0,
    mask: Tensor | None = None,
    progress: Progress | None = None,
    cache: InversionCache = CACHE,
) -> Edit | None:
    """Let the edit guide a sampling. Inverts the image first, where there is one.

    seed: of the inversion, see `InversionSettings`. mask: where the image may change, (1, 1, h, w); None everywhere,
    or by word. progress: told the inversion's steps; returning False interrupts it, and what is done is kept for the
    next time.

    Returns what can be asked afterwards; None after an interrupt, and in the second pass of Hires.fix, where only the
    direction is added.

    Raises `Unsupported` with a sentence for the user.
    """
    if sampling.is_hires:
        sampling.add_hook(Shift(sampling, words.directions, words.vectors, settings.strength))
        return None
    check(sampling, settings.inversion)
    editing = editing_of(sampling)
    cond = editing.embed(words.captions)
    own = editing.own_latent()
    trajectory, uncond, noise = None, None, None
    if own is not None:
        try:
            cond = replace(cond, image=editing.own_image())
            trajectory = _inverted(sampling, settings, own, cond, words.captions, seed, progress, cache)
        except InversionError as error:
            raise Unsupported(str(error)) from error
        if not trajectory.complete:
            return None
        noise = noise_of(trajectory) if isinstance(trajectory.settings, AncestralSettings) else None
    else:
        if cfg_scale != 1:
            uncond = editing.embed(words.negatives, negative=True)
        if editing.own_noise is not None:  # the image that would be generated, with its noise
            noise = StepNoise(editing.sigmas.tolist(), editing.own_noise, lambda _: editing.draw_noise())
    # a direction of more tokens makes the prompt longer, and the reference's maps must be as long
    tokens = max(len(direction) for direction in words.directions)
    cond = replace(cond, context=pad_tokens(cond.context, tokens))
    start = editing.start_latent() if trajectory is None else trajectory.start
    reference = Reference(editing, cond, start, trajectory, uncond, cfg_scale, noise)
    positions = words.word_positions
    edit = Edit(sampling, settings, reference, cond, words.directions, words.vectors, positions, mask)
    if noise is not None:
        editing.give_noise(noise.next)
    elif editing.is_stochastic:
        editing.without_noise()
        edit.remarks[WITHOUT_NOISE] = None
    if trajectory is not None:
        editing.start_from(start)
    sampling.add_hook(edit)
    editing.add_editor(edit)
    sampling.add_guide(edit)
    return edit


def _inverted(
    sampling: Sampling,
    settings: Pix2PixZeroSettings,
    own: Tensor,
    cond: Conditioning,
    captions: Sequence[str],
    seed: int,
    progress: Progress | None,
    cache: InversionCache,
) -> Trajectory:
    """The image's trajectory; equal rows of a batch are inverted once."""
    editing = editing_of(sampling)
    how: InversionSettings | AncestralSettings
    if settings.inversion == DDPM:
        noise = editing.own_noise
        assert noise is not None  # as checked
        how = AncestralSettings(noise.eta, noise.scale, seed % 2**32)
    else:
        how = InversionSettings(settings.inversion, settings.refinements, settings.regularisation, seed % 2**32)
    latents = editing.at_end(own).float()
    distinct: dict[Hashable, int] = {}
    rows = []
    for index, caption in enumerate(captions):
        name = (caption, *(tensor_hash(part[index]) for part in (latents, cond.image) if part is not None))
        rows.append(distinct.setdefault(name, index))
    chosen = sorted(set(rows))
    few = cond.rows(chosen)
    # as embedded, not as written: settings of the host, embeddings and the padding by longer prompts count
    told = " ".join(tensor_hash(part) for part in (few.context, few.vector, few.image) if part is not None)
    key = inversion_key(latents[chosen], sampling.model_key(), told, editing.sigmas, how)
    kept = cache.get(key)

    def predict(x: Tensor, sigma: float) -> Tensor:
        return editing.predict(x, sigma, few)

    if isinstance(how, AncestralSettings):
        found = invert_ancestral(latents[chosen], editing.sigmas, predict, how, progress, kept)
    else:
        found = invert(latents[chosen], editing.sigmas, predict, how, progress, kept)
    if kept is None or found.done > kept.done:
        cache.put(key, found, CACHE_LIMIT)
    return found.rows([chosen.index(row) for row in rows])
