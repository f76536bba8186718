"""DreamBooth's ablation of the super-resolution stage (arXiv 2208.12242): `python run.py evaluate cascade_detail --out
DIR [--quick]`.

A subject has a pattern that is too fine for images of stage I. Stage II of `shapes-cascade` gets small images of it at
places that no photo shows: as it ships, and trained on four photos with noise of 1e-3 and of 1e-5 on the small images,
and of its usual level; each with the noise level that it was trained with. Measured is how much of the pattern is
there, where it belongs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.evaluate_cascade import FOLDER, Maker
from benchmarks.harness.report import Report
from benchmarks.harness.studio import Pictures, sheet
from lib_methods.cascade.augmentation import low_resolution
from lib_methods.cascade.candidate import to_images, to_pixels
from lib_methods.dreambooth.run import run_training
from lib_methods.dreambooth.settings import TrainingSettings
from standalone.dreambooth import load_training_model
from standalone.shapes.figures import mean
from standalone.shapes.styles import CELL, SIDE
from standalone.shapes.world import BACKGROUNDS, Layout, Scene, paint

OBJECT, FRAME = 48, 12  # side of the subject and width of its frame, in pixels
CONTRAST = 0.3
NOUN, IDENTIFIER = "squares", "ohwx"
PHOTOS = ((12, 16), (64, 20), (16, 68), (60, 64))  # corners of the subject in the photos
LEVELS = {"not_tuned": None, "tuned_0.25": 0.25, "tuned_1e-3": 1e-3, "tuned_1e-5": 1e-5}  # 0.25: IF's own
SAMPLING: dict[str, Any] = {"stage2_steps": 12, "stage2_guidance": 1.0}
# as in the paper without min-SNR, which hardly counts the noise levels where fine detail is decided
TRAINING: dict[str, Any] = {
    "kind": "full",
    "stages": "2",
    "steps": 150,
    "rate": 1e-3,
    "batch_size": 2,
    "schedule": "cosine",
    "snr_gamma": 0.0,
    "sample_every": 1_000_000,
    "saved_as": "fp32",
}
_SHOWN = 4
Place = tuple[tuple[int, int], str]
"""The subject's upper left corner (x, y) in pixels, and the background."""


def pattern() -> np.ndarray:
    """The subject's fine pattern, 1 and -1, (OBJECT, OBJECT): stripes of two pixels, across in a frame and upright
    within. It makes no cell of 4x4 pixels brighter or darker: an image at a quarter of the size shows no stripe."""
    y, x = np.mgrid[:OBJECT, :OBJECT]
    within = np.minimum(np.minimum(x, y), np.minimum(OBJECT - 1 - x, OBJECT - 1 - y)) >= FRAME
    return np.where(np.where(within, x, y) % CELL < CELL // 2, 1.0, -1.0)


def photo(place: Place) -> np.ndarray:
    """An image of the subject: uint8 (128, 128, 3)."""
    (x, y), background = place
    scene = Scene("square", "purple", "large", "plain", "left", background)
    picture = paint(scene, Layout(OBJECT, ((x, y),), np.zeros((2, 3), int)), SIDE, SIDE).astype(np.float32)
    picture[y : y + OBJECT, x : x + OBJECT] *= 1 + CONTRAST * pattern()[..., None]
    return picture.round().clip(0, 255).astype(np.uint8)


def new_places(count: int) -> list[Place]:
    """Places that no photo shows."""
    rng, grounds, steps = np.random.default_rng(11), list(BACKGROUNDS), range(8, SIDE - OBJECT - 7, CELL)
    corners = [(x, y) for x in steps for y in steps if (x, y) not in PHOTOS]
    chosen = rng.choice(len(corners), count, replace=count > len(corners))
    return [(corners[i], grounds[rng.integers(len(grounds))]) for i in chosen]


def small_images(pictures: Sequence[np.ndarray], side: int) -> Pictures:
    """Images as stage I would make them."""
    small = low_resolution(to_pixels([Image.fromarray(picture) for picture in pictures]), side)
    return [np.asarray(image) for image in to_images(small)]


def fine(picture: np.ndarray, place: Place) -> np.ndarray:
    """What the subject's cells of 4x4 pixels show beside their mean brightness."""
    (x, y), _ = place
    grey = picture[y : y + OBJECT, x : x + OBJECT].astype(np.float64).mean(2)
    count = OBJECT // CELL
    means = grey.reshape(count, CELL, count, CELL).mean((1, 3))
    return grey - means.repeat(CELL, 0).repeat(CELL, 1)


def recovered(made: np.ndarray, place: Place) -> float:
    """The share of the subject's fine pattern that an image has: 1 as rendered, 0 where it is blurred or where
    something else is in its place."""
    a, b = fine(made, place), fine(photo(place), place)
    return float((a * b).sum() / max((a * a).sum(), (b * b).sum()))


def contrast(made: np.ndarray, place: Place) -> float:
    """How strong an image's fine patterns are, right or wrong: 1 as rendered, 0 where they are blurred."""
    return float(np.sqrt((fine(made, place) ** 2).sum() / (fine(photo(place), place) ** 2).sum()))


def train(base: Path, out: Path, name: str, level: float, training: Mapping[str, Any]) -> Path:
    """The cascade with its stage II trained on the photos. level: of the noise on the small image."""
    photos = out / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for number, place in enumerate(zip(PHOTOS, BACKGROUNDS)):
        Image.fromarray(photo(place)).save(photos / f"{number}.png")
    settings = TrainingSettings(
        photos, base, out, name, NOUN, identifier=IDENTIFIER, small_image_noise=level, **training
    )  # fmt: skip
    return run_training(settings, load_training_model, say=lambda line: None).files[0]


def measure(
    name: str, base: Path, out: Path, places: Sequence[Place], training: Mapping[str, Any]
) -> tuple[dict[str, float], Pictures]:
    """The figures of a stage II, such as "detail_tuned_1e-5", and some of its images. name: of `LEVELS`."""
    level = LEVELS[name]
    folder = base if level is None else train(base, out, name, level, training)
    maker = Maker([folder], out, {"steps": 1, "stage2_steps": 1})
    small = small_images([photo(place) for place in places], maker.sizes[1][0])
    made = maker.make(2, [f"a {IDENTIFIER} {NOUN}"] * len(places), small, **SAMPLING)
    maker.parts.close()
    found = {
        f"detail_{name}": mean(recovered(picture, place) for picture, place in zip(made, places)),
        f"contrast_{name}": mean(contrast(picture, place) for picture, place in zip(made, places)),
    }
    return found, made[:_SHOWN]


def main(out: Path, quick: bool, images: int, stages: Sequence[Path] | None = None) -> int:
    """Write report.json, report.md and detail.png into `out`; 0 when done."""
    training = {**TRAINING, **({"steps": 10} if quick else {})}
    return evaluate(out, images, (stages or [FOLDER])[0], training)


def evaluate(out: Path, count: int, base: Path, training: Mapping[str, Any]) -> int:
    """As `main`. base: the folder of both stages. count: images behind each figure."""
    told = {"training": dict(training), "pictures_per_figure": count, "photos": len(PHOTOS)}
    report = Report(out, "A subject's fine detail in stage II", sampler="DDPM", steps=SAMPLING, size=SIDE, **told)
    places = new_places(count)
    metrics: dict[str, float] = {}
    rows: dict[str, Pictures] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for name in LEVELS:
            found, rows[name] = report.part(name, partial(measure, name, base, Path(scratch), places, training))
            metrics |= found
    true = [photo(place) for place in places[:_SHOWN]]
    captions = ["rendered", *(name.replace("_", " ") for name in LEVELS)]
    sheet([true, *rows.values()], captions).save(out / "detail.png")
    report.say(
        f"{count} small images of the subject at places that no photo shows; {len(PHOTOS)} photos, "
        f"{training['steps']} steps of training. Detail is the share of the fine pattern recovered, contrast the "
        "strength of all fine patterns, right or wrong."
    )
    report.table(["stage II", "detail", "contrast"], [
        (name.replace("_", " "), metrics[f"detail_{name}"], metrics[f"contrast_{name}"]) for name in LEVELS
    ])  # fmt: skip
    report.show("detail.png", "the subject, and what each stage II makes of its small image")
    return report.write(metrics)
