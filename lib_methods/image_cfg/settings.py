"""What the user asks of an InstructPix2Pix model: one validated, immutable object."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lib_methods.checks import SettingsError, check_choice, check_number, check_switch
from lib_methods.image_cfg.schedules import SCHEDULES, scale_at
from lib_methods.pictures.fit import FITS
from lib_methods.pictures.store import is_image_id

HIRES_SOURCES = ("input picture", "first pass")
LATENT_SCALES = ("auto", "unscaled", "scaled")
MAX_TEXT_SCALE = 30.0
MAX_IMAGE_SCALE = 10.0
MAX_IMAGES = 64


@dataclass(frozen=True)
class ImageCfgSettings:
    """Settings of image conditioning with two scales (arXiv 2211.09800) for one job.

    Important:
        images: the pictures to edit, by hash. One serves the whole job; of several, the job's images take turns. None
        in img2img means the tab's own picture, elsewhere that the model draws from the words alone.
        image_scale: s_I, how close to the picture, 0 to 10; 1.2 to 2.2 are usual, 1 is faster.
        text_scale: s_T, how close to the instruction, 0 to 30; 0 takes the CFG scale of the job.
        fit: how a picture of another aspect is brought to the size: "crop", "pad" or "stretch".
    To tinker with:
        start, end: the part of the sampling steps that is guided, shares in [0, 1]; outside both scales are 1, at the
        cost of one row an image.
        image_schedule, text_schedule: "constant", or "linear" or "cosine" from the scale at the first guided step to
        image_end_scale or text_end_scale at the last.
        hires_source: what the second pass of Hires.fix sees, the "input picture" at the new size or what the "first
        pass" has drawn.
        hires_image_scale, hires_text_scale: the scales of the second pass; 0 takes those of the first.
        latents: whether the picture's latents are "scaled" as the sampler's are; "auto" takes the checkpoint's way.
        mask: where which image scale counts, a picture by hash; none if empty. Black takes image_scale (in the second
        pass of Hires.fix its own), white mask_image_scale, 0 to 10, and greys what lies between. It is fitted as the
        picture is. Both scales follow image_schedule.
        tab_mask: the mask is the one painted in img2img's inpaint tab, in place of inpainting.

    Raises `SettingsError` with a sentence for the user.
    """

    images: tuple[str, ...] = ()
    image_scale: float = 1.5
    text_scale: float = 0.0
    fit: str = "crop"
    start: float = 0.0
    end: float = 1.0
    image_schedule: str = "constant"
    image_end_scale: float = 1.0
    text_schedule: str = "constant"
    text_end_scale: float = 1.0
    hires_source: str = "input picture"
    hires_image_scale: float = 0.0
    hires_text_scale: float = 0.0
    latents: str = "auto"
    mask: str = ""
    mask_image_scale: float = 1.0
    tab_mask: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.images, tuple) or not all(is_image_id(name) for name in self.images):
            raise SettingsError("A picture is named by its hash, not by a file name or path.")
        if len(self.images) > MAX_IMAGES:
            raise SettingsError(f"There are {len(self.images)} pictures; at most {MAX_IMAGES} are possible.")
        for name, value, top in (
            ("Image scale", self.image_scale, MAX_IMAGE_SCALE),
            ("Image scale at the end", self.image_end_scale, MAX_IMAGE_SCALE),
            ("Image scale where white", self.mask_image_scale, MAX_IMAGE_SCALE),
            ("Hires image scale", self.hires_image_scale, MAX_IMAGE_SCALE),
            ("Text scale", self.text_scale, MAX_TEXT_SCALE),
            ("Text scale at the end", self.text_end_scale, MAX_TEXT_SCALE),
            ("Hires text scale", self.hires_text_scale, MAX_TEXT_SCALE),
            ("Start", self.start, 1.0),
            ("End", self.end, 1.0),
        ):
            check_number(name, value, 0, top)
        if self.mask != "" and not is_image_id(self.mask):
            raise SettingsError("The mask is named by its hash, not by a file name or path.")
        check_switch("The tab's mask", self.tab_mask)
        if self.start > self.end:
            raise SettingsError(
                f"Start ({self.start:g}) lies after End ({self.end:g}): no step would be guided. Swap them."
            )
        check_choice("Fit", self.fit, FITS)
        check_choice("Image schedule", self.image_schedule, SCHEDULES)
        check_choice("Text schedule", self.text_schedule, SCHEDULES)
        check_choice("In Hires.fix", self.hires_source, HIRES_SOURCES)
        check_choice("Latents", self.latents, LATENT_SCALES)

    def for_hires(self) -> ImageCfgSettings:
        """The settings of the second pass of Hires.fix."""
        return replace(
            self,
            image_scale=self.hires_image_scale or self.image_scale,
            text_scale=self.hires_text_scale or self.text_scale,
        )

    def guided_steps(self, steps: int) -> tuple[int, int]:
        """First guided step and the one after the last, counted from 0."""
        return round(self.start * steps), round(self.end * steps)

    def scales_at(self, step: int, steps: int, cfg_scale: float) -> tuple[float, float]:
        """s_T and s_I at sampling step `step` (from 0) of `steps`; `cfg_scale` is the job's own."""
        progress = self._progress(step, steps)
        if progress is None:
            return 1.0, 1.0
        text = scale_at(self.text_schedule, self.text_scale or cfg_scale, self.text_end_scale, progress)
        image = scale_at(self.image_schedule, self.image_scale, self.image_end_scale, progress)
        return text, image

    def mask_scale_at(self, step: int, steps: int) -> float:
        """s_I at sampling step `step` (from 0) of `steps` where the mask is white."""
        progress = self._progress(step, steps)
        if progress is None:
            return 1.0
        return scale_at(self.image_schedule, self.mask_image_scale, self.image_end_scale, progress)

    def _progress(self, step: int, steps: int) -> float | None:
        """The part of the guided steps that lies behind, 0 to 1; None on a step that is not guided."""
        first, last = self.guided_steps(steps)
        return (step - first) / max(1, last - first - 1) if first <= step < last else None

    def describe(self, is_img2img: bool, tab_is_empty: bool = False) -> str:
        """What will happen, in one plain line. tab_is_empty: img2img's own box is known to hold no image."""
        if self.images:
            count = f"{len(self.images)} images in turn" if len(self.images) > 1 else "1 image"
            parts = [f"{count}, fitted by {self.fit}"]
        elif not is_img2img:
            parts = ["No image yet: generated from the words alone"]
        else:
            parts = ["No image yet: put one into the tab" if tab_is_empty else "The tab's own image"]
        parts.append(f"image scale {_path(self.image_scale, self.image_schedule, self.image_end_scale)}")
        if self.mask or (self.tab_mask and is_img2img):
            whose = "tab's mask" if self.tab_mask and is_img2img else "mask"
            white = _path(self.mask_image_scale, self.image_schedule, self.image_end_scale)
            parts.append(f"{white} where the {whose} is white")
        text = f"{self.text_scale:g}" if self.text_scale else "the CFG scale"
        parts.append("text scale " + _path(text, self.text_schedule, self.text_end_scale))
        if (self.start, self.end) != (0, 1):
            parts.append(f"guided from {self.start:.0%} to {self.end:.0%} of the steps")
        return ", ".join(parts)


def _path(first: float | str, schedule: str, last: float) -> str:
    shown = first if isinstance(first, str) else f"{first:g}"
    return shown if schedule == "constant" else f"{shown} to {last:g} ({schedule})"
