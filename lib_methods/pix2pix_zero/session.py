"""What surrounds an edit of one sampling: words to directions and masks before it, something to show after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lib_methods.denoiser import PIXELS_PER_LATENT, Sampling, Unsupported, editing_of
from lib_methods.pictures.mask import cut_out
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero import apply, masks, page
from lib_methods.pix2pix_zero.apply import Edit, Words
from lib_methods.pix2pix_zero.inversion import psnr
from lib_methods.pix2pix_zero.library import DirectionLibrary
from lib_methods.pix2pix_zero.prompts import captions_for, directions_for, positions_of
from lib_methods.pix2pix_zero.settings import Pix2PixZeroSettings


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


@dataclass(frozen=True)
class Session:
    """One batch's edit, once it was drawn. No run of the UNet is needed for what is asked here."""

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
        """How close the reconstruction's latents come to the picture's, in decibels over the latents' own range, the
        mean over the images; infinite where it is exact, None where there was no picture to reconstruct, or the job was
        interrupted."""
        trajectory, found = self.edit.reference.trajectory, self.edit.reference.known_final
        if trajectory is None or found is None:
            return None
        original = trajectory.latents[-1].to(found).float()
        values = psnr(found.float(), original, peak=float(original.max() - original.min()) or 1.0)
        return sum(values) / len(values)

    def sheets(self, results: Iterable[Tensor]) -> list[Image.Image]:
        """For every image of the batch: the source, its reconstruction, the edit, and where the word attends.

        results: the host's pictures, each (3, H, W) in [0, 1].
        """
        edit = self.edit
        original, final = edit.original(), edit.reference.known_final
        if original is None:
            return []
        decode = editing_of(self.sampling).decode
        source = decode(original)
        # where the picture was drawn, not found again, there is nothing to reconstruct
        again = None if final is None or edit.reference.trajectory is None else decode(final)
        heat = edit.heat() if edit.has_heat else None
        made = []
        for index, result in enumerate(results):
            before = _picture(source[index])
            shown = [("source", before)]
            if again is not None:
                shown.append(("reconstruction", _picture(again[index])))
            shown.append(("edit", _picture(result * 2 - 1)))
            if heat is not None:
                shown.append(("attention", masks.overlay(before, heat[index])))
            made.append(page.sheet(shown))
        return made


def check(sampling: Sampling, settings: Pix2PixZeroSettings, job: Job, library: Path) -> tuple[str, ...]:
    """The captions of a batch that can be edited.

    library: the folder of ready directions. Raises `Unsupported` or `SettingsError` with a sentence for the user.
    """
    apply.check(sampling, settings.inversion)
    captions, _ = _words(sampling, settings, job, library)
    return captions


def begin(
    sampling: Sampling, settings: Pix2PixZeroSettings, job: Job, store: ImageStore, library: Path
) -> Session | None:
    """Attach the edit to a sampling; None where there is nothing to ask afterwards (see `apply.attach`).

    store: where the mask is. library: the folder of ready directions.

    Raises `Unsupported` or `SettingsError` with a sentence for the user.
    """
    captions, words = _words(sampling, settings, job, library)
    if settings.save_as and job.first == 0 and not sampling.is_hires:
        made = directions_for(sampling, settings, library, 0, captions[:1])[0]
        if not settings.directions:  # those know what they were made from
            made = replace(made, origin=replace(made.origin, clip_skip=job.clip_skip, model=job.checkpoint))
        DirectionLibrary(library).save(settings.save_as, made)
    mask = _painted(sampling, settings, store)
    edit = apply.attach(sampling, settings, words, job.cfg_scale, mask=mask, progress=job.go_on)
    return None if edit is None else Session(sampling, edit)


def _words(sampling: Sampling, settings: Pix2PixZeroSettings, job: Job, library: Path) -> tuple[tuple[str, ...], Words]:
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
    return captions, Words(captions, job.negatives, contexts, positions, vectors)


def _painted(sampling: Sampling, settings: Pix2PixZeroSettings, store: ImageStore) -> Tensor | None:
    if settings.mask_mode not in ("change white", "keep white"):
        return None
    picture, how = store.load(settings.mask), "crop"
    if editing_of(sampling).own_latent() is not None and not sampling.is_hires:
        how, part = sampling.own_frame()
        picture = cut_out(picture, part)
    keep = settings.mask_mode == "keep white"
    return masks.from_picture(picture, sampling.latent_size, PIXELS_PER_LATENT, how, keep)


def _picture(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as a picture."""
    values = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
