"""One edit from start to end: directions and masks before the sampling, the comparison sheet after it."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lib_methods.checks import SettingsError
from lib_methods.denoiser import PIXELS_PER_LATENT, Sampling, Unsupported, editing_of
from lib_methods.pictures.composites import MARK
from lib_methods.pictures.fit import cut_out, on_latents, to_image
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero import apply, maps
from lib_methods.pix2pix_zero.apply import Edit, Words
from lib_methods.pix2pix_zero.directions import CHUNK, Direction, Origin, make_direction
from lib_methods.pix2pix_zero.inversion import psnr
from lib_methods.pix2pix_zero.library import DirectionLibrary, combined
from lib_methods.pix2pix_zero.sentences import built_in_sentences
from lib_methods.pix2pix_zero.settings import ALTERNATIVES, CAPTION, CONTROLS, Pix2PixZeroSettings
from lib_methods.pix2pix_zero.words import plural_of, swapped, without_article

PSNR_KEY = f"{CONTROLS.title} reconstruction PSNR"
NOTE_KEY = f"{CONTROLS.title} note"
FINDING, EDITING = "Finding the noise {}/{}", "Editing"
"""What the page shows while an edit is in these phases."""
CHUNK_TEXT = CHUNK - 2  # tokens of a chunk between its start and its end
KEPT = 64
"""Directions made from words that are kept for the next job: SD1's are 237 KB each."""

_TAG = re.compile(r"<\w+:[^<>]*>")  # LoRAs and the like, which hosts take out of a prompt

_kept: OrderedDict[Hashable, Direction] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Job:
    """What the host knows of the pass that is about to start.

    prompts, negatives: of each image of the batch. first: the number of the batch's first image in the job. go_on:
    told how many steps of the inversion are done, of how many; False interrupts. clip_skip, checkpoint: for the record
    of a direction that is kept.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    cfg_scale: float
    first: int
    go_on: Callable[[int, int], bool]
    clip_skip: int = 1
    checkpoint: str = ""


def job_of(p: Any, state: Any) -> Job:
    """What a batch of the host's job `p` says. state: the host's, which shows how far the inversion is."""
    from lib_methods.hosts.a1111.text import TextEncoder, final_prompts

    def go_on(done: int, total: int) -> bool:
        state.textinfo = FINDING.format(done + 1, total)
        return not (state.interrupted or state.skipped)

    text, first = TextEncoder(p.sd_model), int(getattr(p, "iteration", 0)) * int(p.batch_size)
    prompts = final_prompts(p), tuple(p.negative_prompts)
    return Job(*prompts, float(p.cfg_scale), first, go_on, clip_skip=text.clip_skip, checkpoint=text.checkpoint)


@dataclass(frozen=True)
class Session:
    """One batch's edit, once it is done. Nothing here runs the UNet."""

    sampling: Sampling
    edit: Edit

    @property
    def notes(self) -> tuple[str, ...]:
        """What went wrong on the way, in sentences for the user."""
        return tuple(self.edit.notes)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else there is to know of it, in sentences for the user."""
        return tuple(self.edit.remarks)

    def reconstruction_psnr(self) -> float | None:
        """How close the reconstruction's latents come to the image's, in decibels over the latents' own range, the
        mean over the images; infinite where it is exact, None where there was no image to reconstruct, or the job was
        interrupted."""
        trajectory, found = self.edit.reference.trajectory, self.edit.reference.known_final
        if trajectory is None or found is None:
            return None
        original = trajectory.latents[-1].to(found).float()
        values = psnr(found.float(), original, peak=float(original.max() - original.min()) or 1.0)
        return sum(values) / len(values)

    def sheets(self, results: Iterable[Tensor]) -> list[Image.Image]:
        """For every image of the batch: the source, its reconstruction, the edit, and where the word attends.

        results: the host's images, each (3, H, W) in [0, 1].
        """
        edit = self.edit
        original, final = edit.original(), edit.reference.known_final
        if original is None:
            return []
        decode = editing_of(self.sampling).decode
        source = decode(original)
        # an image that was generated, not inverted, has nothing to reconstruct
        again = None if final is None or edit.reference.trajectory is None else decode(final)
        heat = edit.heat() if edit.has_heat else None
        made = []
        for index, result in enumerate(results):
            before = to_image(source[index])
            shown = [("source", before)]
            if again is not None:
                shown.append(("reconstruction", to_image(again[index])))
            shown.append(("edit", to_image(result * 2 - 1)))
            if heat is not None:
                shown.append(("attention", maps.overlay(before, heat[index])))
            made.append(maps.sheet(shown))
            made[-1].info[MARK] = "source, reconstruction and edit"
        return made

    def sheet_text(self) -> str:
        """What stands below a sheet."""
        text, told = f"{CONTROLS.title}: source, reconstruction, edit, and where the word attends", self._decibels()
        return f"{text}. Reconstruction PSNR: {told}" if told else text

    def told(self) -> dict[str, str]:
        """What an infotext says of the edit besides its settings."""
        told = {NOTE_KEY: " ".join((*self.remarks, *self.notes)), PSNR_KEY: self._decibels()}
        return {key: text for key, text in told.items() if text}

    def _decibels(self) -> str:
        """How close the reconstruction came, for a message; empty where there is none."""
        value = self.reconstruction_psnr()
        return "" if value is None else "exact" if math.isinf(value) else f"{value:.1f} dB"


def negatives(sampling: Sampling, settings: Pix2PixZeroSettings, job: Job, library: Path) -> list[str]:
    """The negative prompts of a batch that can be edited: the caption where one is empty, so that the guidance leads
    nowhere but along the edit (arXiv 2302.03027, section 4).

    library: the folder of ready directions. Raises `Unsupported` or `SettingsError` with a sentence for the user.
    """
    apply.check(sampling, settings.inversion)
    captions = _words(sampling, settings, job, library).captions
    if not settings.caption_is_negative:
        return list(job.negatives)
    return [negative if negative.strip() else caption for negative, caption in zip(job.negatives, captions)]


def begin(
    sampling: Sampling, settings: Pix2PixZeroSettings, job: Job, store: ImageStore, library: Path
) -> Session | None:
    """Attach the edit to a sampling; None where there is nothing to ask afterwards (see `apply.attach`).

    store: where the mask is. library: the folder of ready directions.

    Raises `Unsupported` or `SettingsError` with a sentence for the user.
    """
    words = _words(sampling, settings, job, library)
    if settings.save_as and job.first == 0 and not sampling.is_hires:
        made = directions_for(sampling, settings, library, 0, words.captions[:1])[0]
        if not settings.directions:  # those know what they were made from
            made = replace(made, origin=replace(made.origin, clip_skip=job.clip_skip, model=job.checkpoint))
        DirectionLibrary(library).save(settings.save_as, made)
    mask = _painted(sampling, settings, store)
    edit = apply.attach(sampling, settings, words, job.cfg_scale, mask=mask, progress=job.go_on)
    return None if edit is None else Session(sampling, edit)


def _words(sampling: Sampling, settings: Pix2PixZeroSettings, job: Job, library: Path) -> Words:
    captions = captions_for(settings, job.prompts)
    directions = directions_for(sampling, settings, library, job.first, captions)
    by_word = settings.mask_mode == "by word"
    words = tuple(settings.word(job.first + index) for index in range(len(captions)))
    wanted = all(words) and not sampling.is_hires and (by_word or settings.show)
    positions = tuple(positions_of(sampling, caption, word) if wanted else () for caption, word in zip(captions, words))
    for word, places in zip(words, positions):
        if by_word and wanted and not places:
            raise Unsupported(f'The word "{word}" is not in the caption, so where it attends cannot be seen.')
    contexts, vectors = (tuple(getattr(d, part) for d in directions) for part in ("context", "vector"))
    return Words(captions, job.negatives, contexts, positions, vectors)


def _painted(sampling: Sampling, settings: Pix2PixZeroSettings, store: ImageStore) -> Tensor | None:
    if settings.mask_mode not in ("change white", "keep white"):
        return None
    picture, how = store.load(settings.mask), "crop"
    if editing_of(sampling).own_latent() is not None and not sampling.is_hires:
        how, part = sampling.own_frame()
        picture = cut_out(picture, part)
    white = on_latents(picture, *sampling.latent_size, PIXELS_PER_LATENT, how)
    shares = white if isinstance(white, Tensor) else torch.full((1, 1, *sampling.latent_size), white)
    return 1 - shares if settings.mask_mode == "keep white" else shares


def captions_for(settings: Pix2PixZeroSettings, prompts: Sequence[str]) -> tuple[str, ...]:
    """What each image shows: the caption, or else the image's prompt; without the tags of extra networks.

    Raises `SettingsError` where there is neither.
    """
    caption = _TAG.sub("", settings.caption).strip()
    captions = tuple(caption or _TAG.sub("", prompt).strip() for prompt in prompts)
    if not all(captions):
        raise SettingsError("Describe the image: write it into the prompt or the caption.")
    return captions


def directions_for(
    sampling: Sampling, settings: Pix2PixZeroSettings, folder: Path, first: int, captions: Sequence[str]
) -> tuple[Direction, ...]:
    """What is added to each image's prompt at strength 1.

    folder: of the direction library. first: the number of the batch's first image in the job, counted from 0; targets
    and directions that are given as alternatives take turns over the job's images. captions: what each image shows.

    Raises `SettingsError` with a sentence for the user.
    """
    if settings.directions:
        library = DirectionLibrary(folder)
        choices = [combined(text, library) for text in settings.directions.split(ALTERNATIVES) if text.strip()]
        if not choices:
            raise SettingsError("There is no direction between the bars. Name one from the library.")
    elif settings.direction_from == CAPTION:
        pairs = settings.pairs
        return tuple(
            _from_caption(sampling, caption, *pairs[(first + index) % len(pairs)])
            for index, caption in enumerate(captions)
        )
    else:
        choices = [_from_words(sampling, *pair, settings.kind) for pair in settings.pairs]
    like = editing_of(sampling).embed([""])
    for choice in choices:
        choice.check_width(like.context.shape[-1], None if like.vector is None else like.vector.shape[-1])
    return tuple(choices[(first + index) % len(choices)] for index in range(len(captions)))


def _from_words(sampling: Sampling, source: str, target: str, kind: str) -> Direction:
    """The direction from the source to a target by sentences about both."""

    def make() -> Direction:
        before, after = built_in_sentences(source, kind), built_in_sentences(target, kind)
        return make_direction(source, target, before, after, editing_of(sampling).embed)

    return _remembered((sampling.model_key(), source, target, kind), make)


def _from_caption(sampling: Sampling, caption: str, source: str, target: str) -> Direction:
    """The direction from a caption to itself with the target in place of the source."""
    after = swapped(caption, source, target)

    def make() -> Direction:
        told = editing_of(sampling).embed([caption, after])
        vector = None if told.vector is None else told.vector[1] - told.vector[0]
        return Direction(told.context[1] - told.context[0], Origin(source, target), vector)

    return _remembered((sampling.model_key(), source, target, CAPTION, caption), make)


def _remembered(key: Hashable, make: Callable[[], Direction]) -> Direction:
    """The cached value for the key, recomputed if it was evicted. The model is part of every key."""
    with _lock:
        found = _kept.get(key)
    if found is None:
        found = make()
    with _lock:
        _kept[key] = found
        _kept.move_to_end(key)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return found


def positions_of(sampling: Sampling, caption: str, word: str) -> tuple[int, ...]:
    """The tokens of a word in a caption, every time that it occurs, also with a plural's ending; counted from 0, which
    is the start token. Empty where the caption does not have the word.

    Commas and emphasis of long captions may move the borders of 75-token chunks, which is not looked at.
    """
    tokenize, bare = editing_of(sampling).tokenize, without_article(word)
    tokens = list(tokenize(caption))
    found: set[int] = set()
    for form in dict.fromkeys((bare, bare + "s", plural_of(bare))):
        wanted = list(tokenize(form))
        for start in range(len(tokens) - len(wanted) + 1):
            if tokens[start : start + len(wanted)] == wanted:
                found.update(range(start, start + len(wanted)))
    return tuple(sorted(1 + place + 2 * (place // CHUNK_TEXT) for place in found))
