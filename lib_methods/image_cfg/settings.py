"""Settings of InstructPix2Pix: one validated, immutable object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lib_methods.checks import SettingsError
from lib_methods.image_cfg.formulas import SCHEDULES, scale_at
from lib_methods.pictures.fit import FITS
from lib_methods.pictures.store import ImageStore, is_image_id, mask_name, picture_name
from lib_methods.webui.controls import Images, Span, check, checkbox, radio, slider, stored_images
from lib_methods.webui.table import Table

HIRES_SOURCES = ("input picture", "first pass")
LATENT_SCALES = ("auto", "unscaled", "scaled")
MAX_TEXT_SCALE = 30.0
MAX_IMAGE_SCALE = 10.0
MAX_IMAGES = 64


def parse_images(value: Any, store: ImageStore | None) -> tuple[str, ...]:
    """Hashes of images in any form in which they may come.

    Args:
        value: None, a line of hashes, or one image or a list of images as hash, base64 text or data URL.
        store: where images that come along are kept; with None only hashes are accepted.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        words = value.split()
        # one line of hashes; anything else is a single image, whose base64 may have line breaks
        value = words if all(map(is_image_id, words)) else [value]
    if not isinstance(value, (list, tuple)):
        raise SettingsError('"image" must be an image (base64, a data URL or a hash), or a list of images.')
    if len(value) > MAX_IMAGES:
        raise SettingsError(f'"image" holds {len(value)} images; at most {MAX_IMAGES} are possible.')
    names = []
    for position, item in enumerate(value, 1):
        place = f"Image {position} of {len(value)}" if len(value) > 1 else "The image"
        if not isinstance(item, str):
            raise SettingsError(f"{place} must be text: base64, a data URL, or the hash of a stored one.")
        names.append(picture_name(item, place, "image", store))
    return tuple(names)


@dataclass(frozen=True)
class ImageCfgSettings(Span):
    """Settings of image conditioning with two scales (arXiv 2211.09800) for one job.

    images: the images to edit, by hash. One serves the whole job; of several, the job's images take turns. None in
    img2img means the tab's own image, elsewhere that the model generates from the words alone.

    Raises `SettingsError` with a sentence for the user.
    """

    images: tuple[str, ...] = stored_images(
        (), Images(parse_images, " ".join), "Image to edit", name="image", important=True,
        about="one image, or several that the job's images take in turn. None: in img2img the tab's own, in txt2img"
        " the words alone",
    )  # fmt: skip
    image_scale: float = slider(
        1.5, 0.0, MAX_IMAGE_SCALE, 0.05, "Stay close to the image", "the image's CFG scale", important=True,
        axis="Image scale", subject="Image scale",
        about="how close to the image. 1.2 to 2.2 for most edits; 1 is faster",
    )  # fmt: skip
    text_scale: float = slider(
        0.0, 0.0, MAX_TEXT_SCALE, 0.05, "Follow the instruction", "the text's; 0: the CFG scale above",
        important=True, axis="Text scale", subject="Text scale",
        about="how close to the instruction. 0 uses the tab's CFG scale",
    )  # fmt: skip
    fit: str = radio(
        "crop", FITS, "Fit", "for an image of another aspect", important=True,
        about="for an image of another aspect ratio: *crop* its sides, *pad* it with its own border, or *stretch* "
        "it",
    )  # fmt: skip
    start: float = slider(
        0.0, 0.0, 1.0, 0.01, "Start", "share of the steps",
        about="where the guided share of the steps begins; on other steps both scales are 1, which is faster",
    )  # fmt: skip
    end: float = slider(
        1.0, 0.0, 1.0, 0.01, "End", "other steps are not guided, and faster",
        about="where the guided share of the steps ends",
    )  # fmt: skip
    image_schedule: str = radio(
        "constant", SCHEDULES, "Image schedule",
        about="over the guided steps, to the image scale at the end",
    )  # fmt: skip
    image_end_scale: float = slider(
        1.0, 0.0, MAX_IMAGE_SCALE, 0.05, "Image scale at the end", about="at the last guided step, with a schedule"
    )
    text_schedule: str = radio(
        "constant", SCHEDULES, "Text schedule", about="over the guided steps, to the text scale at the end"
    )
    text_end_scale: float = slider(
        1.0, 0.0, MAX_TEXT_SCALE, 0.05, "Text scale at the end", about="at the last guided step, with a schedule"
    )
    hires_source: str = radio(
        "input picture", HIRES_SOURCES, "In Hires.fix", "what the second pass sees", key="Hires source",
        about="what the second pass sees: the *input picture* or the *first pass*",
    )  # fmt: skip
    hires_image_scale: float = slider(
        0.0, 0.0, MAX_IMAGE_SCALE, 0.05, "Hires image scale", "0: as in the first pass", key="Hires image scale",
        about="image scale of the second pass; 0 uses that of the first",
    )  # fmt: skip
    hires_text_scale: float = slider(
        0.0, 0.0, MAX_TEXT_SCALE, 0.05, "Hires text scale", "0: as in the first pass", key="Hires text scale",
        about="text scale of the second pass; 0 uses that of the first",
    )  # fmt: skip
    latents: str = radio(
        "auto", LATENT_SCALES, "Latents", "scaled: CosXL-Edit and its like",
        about="whether the image's latents are *scaled* like the sampler's (CosXL-Edit). *auto* does so for SDXL "
        "with v-prediction",
    )  # fmt: skip
    mask: str = stored_images(
        "", Images(mask_name, kind="mask"), "Mask",
        about="black areas use the image scale, white areas the one below, greys lie between",
    )  # fmt: skip
    mask_image_scale: float = slider(
        1.0, 0.0, MAX_IMAGE_SCALE, 0.05, "Image scale where white", "lower: may change more",
        about="the image scale where the mask is white; lower: may change more", axis="Image scale where white",
    )  # fmt: skip
    tab_mask: bool = checkbox(
        False, "Use what is painted in the inpaint tab as this mask, instead of inpainting", subject="The tab's mask",
        about="in img2img: uses what is painted in the inpaint tab as the mask, and nothing is inpainted",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        self.check_span()

    def for_hires(self) -> ImageCfgSettings:
        """The settings of the second pass of Hires.fix."""
        return replace(
            self,
            image_scale=self.hires_image_scale or self.image_scale,
            text_scale=self.hires_text_scale or self.text_scale,
        )

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
            parts = ["No image yet: add one to the tab" if tab_is_empty else "The tab's own image"]
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


CONTROLS = Table("InstructPix2Pix", ImageCfgSettings, main="image_scale")
