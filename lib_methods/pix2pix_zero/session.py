"""What surrounds an edit of one sampling: words to directions and masks before it, something to show after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lib_methods.denoiser import PIXELS_PER_LATENT, Sampling, Unsupported, editing_of
from lib_methods.pictures.composites import MARK
from lib_methods.pictures.mask import cut_out
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero import apply, masks
from lib_methods.pix2pix_zero.apply import Edit, Words
from lib_methods.pix2pix_zero.inversion import psnr
from lib_methods.pix2pix_zero.library import DirectionLibrary
from lib_methods.pix2pix_zero.prompts import captions_for, directions_for, positions_of
from lib_methods.pix2pix_zero.settings import CONTROLS, Pix2PixZeroSettings
from lib_methods.pix2pix_zero.sheet import decibels, sheet

PSNR_KEY = f"{CONTROLS.title} reconstruction PSNR"
NOTE_KEY = f"{CONTROLS.title} note"


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
        state.textinfo = f"{CONTROLS.title}: finding the image's noise, step {done + 1} of {total}"
        return not (state.interrupted or state.skipped)

    text, first = TextEncoder(p.sd_model), int(getattr(p, "iteration", 0)) * int(p.batch_size)
    prompts = final_prompts(p), tuple(p.negative_prompts)
    return Job(*prompts, float(p.cfg_scale), first, go_on, clip_skip=text.clip_skip, checkpoint=text.checkpoint)


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
            made.append(sheet(shown))
            made[-1].info[MARK] = "source, reconstruction and edit"
        return made

    def sheet_text(self) -> str:
        """What stands below a sheet."""
        value = self.reconstruction_psnr()
        text = f"{CONTROLS.title}: source, reconstruction, edit, and where the word attends"
        return text if value is None else f"{text}. Reconstruction PSNR: {decibels(value)}"

    def told(self) -> dict[str, str]:
        """What an infotext says of the edit besides its settings."""
        told, value = {}, self.reconstruction_psnr()
        if self.remarks or self.notes:
            told[NOTE_KEY] = " ".join((*self.remarks, *self.notes))
        if value is not None:
            told[PSNR_KEY] = decibels(value)
        return told


def negatives(sampling: Sampling, settings: Pix2PixZeroSettings, job: Job, library: Path) -> list[str]:
    """The negative prompts of a batch that can be edited: the caption where one is empty, so that the guidance leads
    nowhere but along the edit (arXiv 2302.03027, section 4).

    library: the folder of ready directions. Raises `Unsupported` or `SettingsError` with a sentence for the user.
    """
    apply.check(sampling, settings.inversion)
    captions, _ = _words(sampling, settings, job, library)
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
