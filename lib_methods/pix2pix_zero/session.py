"""What surrounds an edit of one sampling: words to directions and masks before it, something to show after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lib_methods.denoiser import EditSampling, Unsupported
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero import apply, masks, page
from lib_methods.pix2pix_zero.apply import Edit, Words
from lib_methods.pix2pix_zero.inversion import psnr
from lib_methods.pix2pix_zero.prompts import directions_for, positions_of
from lib_methods.pix2pix_zero.settings import Pix2PixZeroSettings


@dataclass(frozen=True)
class Job:
    """What the host knows of the pass that is about to start.

    prompts, negatives: of each image of the batch. first: the number of the batch's first image in the job. go_on:
    told how many steps of the inversion are done, of how many; False interrupts.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    cfg_scale: float
    seed: int
    first: int
    go_on: Callable[[int, int], bool]


@dataclass
class Session:
    """One batch's edit, and what is needed to show it."""

    sampling: EditSampling
    edit: Edit
    first: int


def begin(
    sampling: EditSampling, settings: Pix2PixZeroSettings, job: Job, store: ImageStore, library: Path
) -> Session | None:
    """Attach the edit to a sampling; None where there is nothing to ask afterwards (see `apply.attach`).

    store: where the mask is. library: the folder of ready directions.

    Raises `Unsupported` or `SettingsError` with a sentence for the user.
    """
    captions = tuple(settings.caption or prompt for prompt in job.prompts)
    if not all(caption.strip() for caption in captions):
        raise Unsupported("Say what the picture shows: write it into the prompt, or into the caption.")
    shifts = directions_for(sampling, settings, library, job.first, len(captions))
    wants_word = settings.mask_mode == "by word" or settings.show
    word = settings.mask_word or settings.source
    positions = tuple(positions_of(sampling, caption, word) if wants_word and word else () for caption in captions)
    if settings.mask_mode == "by word" and not all(positions):
        raise Unsupported(f'The word "{word}" is not in the caption, so where it attends cannot be seen.')
    words = Words(captions, job.negatives, shifts, positions)
    edit = apply.attach(
        sampling,
        settings,
        words,
        job.cfg_scale,
        seed=job.seed,
        mask=_painted(sampling, settings, store),
        progress=job.go_on,
    )
    return None if edit is None else Session(sampling, edit, job.first)


def _painted(sampling: EditSampling, settings: Pix2PixZeroSettings, store: ImageStore) -> Tensor | None:
    if settings.mask_mode not in ("change white", "keep white"):
        return None
    picture = store.load(settings.mask)
    keep = settings.mask_mode == "keep white"
    return masks.from_picture(picture, sampling.latent_size, sampling.pixels_per_latent, keep=keep)


def reconstruction_psnr(session: Session) -> float | None:
    """How close the reconstruction's latents come to the picture's, in decibels over the latents' own range, the mean
    over the images; infinite where it is exact, None where there was no picture to reconstruct."""
    trajectory = session.edit.reference.trajectory
    if trajectory is None:
        return None
    original, found = session.edit.original(), session.edit.reference.final()
    values = psnr(found.float(), original.to(found).float(), peak=float(original.max() - original.min()) or 1.0)
    return sum(values) / len(values)


def sheets(sessions: Sequence[Session], results: Sequence[Image.Image]) -> list[Image.Image]:
    """For every image of the job: the source, its reconstruction, the edit, and where the word attends."""
    made = []
    for session in sessions:
        edit = session.edit
        with torch.no_grad():
            source, found = (session.sampling.decode(z) for z in (edit.original(), edit.reference.final()))
        heat = edit.heat() if edit.has_heat else None
        for index, (before, again) in enumerate(zip(source, found)):
            place = session.first + index
            if place >= len(results):
                break
            shown = [("source", _picture(before)), ("reconstruction", _picture(again)), ("edit", results[place])]
            if edit.reference.trajectory is None:
                del shown[1]  # drawn, not found again
            if heat is not None:
                shown.append(("attention", masks.overlay(_picture(before), heat[index])))
            made.append(page.sheet(shown))
    return made


def _picture(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as a picture."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values)
