"""The images of a job: their seeds, sizes and prompts, what they start from, and which of them are already there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from lib_methods.cascade.candidate import Candidate, open_source, read_candidate, to_pixels
from lib_methods.cascade.folder import NAMES, Cascade, Stage, read_cascade
from lib_methods.cascade.settings import MAX_SEED, CascadeRequest, CascadeSettings
from lib_methods.cascade.stages import Start, check_size
from lib_methods.cascade.thresholding import Threshold
from lib_methods.errors import UserError
from lib_methods.jobs.files import read_json

REQUEST = "request.json"
"""What the run was asked for, with its seed, in its folder."""


@dataclass
class Item:
    """One image on its way. settings: the job's, with its own seed. done: its newest candidate, None before stage I."""

    index: int
    settings: CascadeSettings
    done: Candidate | None = None

    def file(self, folder: Path, stage: int) -> Path:
        return folder / f"{self.index:03d}-stage{stage}.png"

    def seed(self, stage: int) -> int:
        return self.settings.seed_of(stage, self.settings.seed)

    def prompts(self, stage: Stage) -> list[str]:
        """What a stage is told: the prompt and, where there is guidance, the negative one."""
        asked = self.settings.stage(stage.number)
        return [asked.prompt, *([asked.negative_prompt] if asked.guidance > 1 else [])]


class Images:
    """All images of a request. cascade: the stages that run. sizes: (height, width) of what each one makes. source,
    mask: the image to change.
    enlarges_source: whether a later stage enlarges the source itself, without a candidate.

    Raises UserError, with the cause: folders, files, sizes, or stages that are missing in between.
    """

    source: Image.Image | None = None
    mask: Image.Image | None = None

    def __init__(self, request: CascadeRequest, resume: bool) -> None:
        self.folder = request.folder.expanduser()
        self.settings = _seeded(request, self.folder if resume else None)
        whole = read_cascade(request.folders)
        self.items = _items(request, self.settings)
        first = min((item.done.stage for item in self.items if item.done is not None), default=0) + 1
        last = self.settings.last_stage
        self.cascade = Cascade(tuple(stage for stage in whole.stages if first <= stage.number <= last))
        if request.image is not None:
            self.source = open_source(request.image)
            self.mask = None if request.mask is None else open_source(request.mask, mask=True)
        self.enlarges_source = request.image is not None and not request.resume_from and self.cascade.stage(1) is None
        self._check_order(whole, first)
        self._settle_noise()
        self._measure(whole)
        if resume:
            self._find_finished()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.cascade.stages

    def waiting(self, stage: Stage) -> list[Item]:
        """The images that a stage has still to make."""
        return [item for item in self.items if item.done is None or item.done.stage < stage.number]

    def there(self, stage: Stage) -> list[tuple[Item, Path]]:
        """The images that a stage has made."""
        files = [(item, item.file(self.folder, stage.number)) for item in self.items]
        return [(item, file) for item, file in files if file.is_file()]

    def small(self, stage: Stage, items: Sequence[Item]) -> Tensor | None:
        """What a later stage enlarges: (B, 3, h, w) in [-1, 1]; None in stage I."""
        if stage.number == 1:
            return None
        images = [item.done.image if item.done is not None else self.source for item in items]
        return to_pixels([image for image in images if image is not None])

    def start(self, stage: Stage) -> Start | None:
        """The image to change, in a stage's own size; None where a stage begins with noise."""
        if self.source is None or self.enlarges_source:
            return None
        height, width = self.sizes[stage.number]

        def fitted(image: Image.Image) -> Tensor:
            return to_pixels([image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)])

        mask = None if self.mask is None else (fitted(self.mask)[:, :1] >= 0).float()
        strength = self.settings.strength if stage.number == 1 else self.settings.stage2_strength
        return Start(fitted(self.source), strength, mask)

    def keep(self, item: Item, stage: Stage, image: Image.Image) -> None:
        """Writes an image that a stage has made. Raises UserError: the disk is full."""
        made = self._candidate(item, stage, image)
        made.save(item.file(self.folder, stage.number))
        item.done = made

    def _candidate(self, item: Item, stage: Stage, image: Image.Image) -> Candidate:
        before = item.done
        models = {**(before.models if before else {}), str(stage.number): f"{stage.folder.name} {stage.unet.digest}"}
        thresholds = dict(before.thresholds if before else {})
        if stage.number < 3:
            thresholds[str(stage.number)] = str(Threshold.of(item.settings, stage.scheduler))
        source = before.source if before else ""
        if self.source is not None:
            pieces = [self.source.tobytes(), b"" if self.mask is None else self.mask.tobytes()]
            source = hashlib.sha256(b"".join(pieces)).hexdigest()[:16]
        return Candidate(image, stage.number, item.settings, models, thresholds, self.side, source)

    def _check_order(self, whole: Cascade, first: int) -> None:
        """Raises UserError where stages are missing between the images and the last stage."""
        if first > self.settings.last_stage:
            raise UserError(f"These images are of stage {first - 1} already. Choose a later stage to go up to.")
        numbers = [stage.number for stage in self.stages]
        if not numbers:
            begun = f"These images are of stage {first - 1} already, and the" if first > 1 else "The"
            raise UserError(f"{begun} folders hold no stage to run: {NAMES[first]} is needed. Add its folder.")
        if self.enlarges_source and self.mask is not None:
            raise UserError("A mask needs stage I. Add its folder to the stages, before the others.")
        begin = numbers[0] if self.enlarges_source else first
        missing = [number for number in range(begin, max(numbers) + 1) if number not in numbers]
        if missing:
            there = ", ".join(stage.folder.name for stage in whole.stages)
            raise UserError(
                f"The folder of {NAMES[missing[0]]} is missing: {there} cannot do without its images. Add it to the "
                "stages, in order."
            )
        if any(item.done is not None and item.done.stage != first - 1 for item in self.items):
            raise UserError("The candidates are of different stages. Take up those of one stage at a time.")

    def _settle_noise(self) -> None:
        """Stage II's own noise level in place of -1, so that the images say which it was."""
        if (second := self.cascade.stage(2)) is None:
            return
        for item in self.items:
            if item.settings.stage2_noise_level < 0:
                item.settings = replace(item.settings, stage2_noise_level=second.noise_level)

    def _measure(self, whole: Cascade) -> None:
        """Sets the sizes, and `side`: that of stage I's usual images, which says how much stage II enlarges."""
        stages = {stage.number: stage for stage in self.stages}
        base = whole.stage(1)
        self.side = base.side if base is not None else 64
        self.sizes: dict[int, tuple[int, int]] = {}
        before = 0, 0
        candidate = self.items[0].done
        if candidate is not None:
            if len({item.done.image.size for item in self.items if item.done is not None}) > 1:
                raise UserError("The candidates have different sizes. Take up those of one size at a time.")
            self.side, before = candidate.side, (candidate.image.height, candidate.image.width)
        elif self.source is not None and self.enlarges_source:
            before = self.source.height, self.source.width
            self.side = min(before) if 2 in stages else self.side
        if 1 in stages:
            before = self._first_size(stages[1])
            self.sizes[1] = before
        if 2 in stages:
            step, factor = stages[2].multiple, stages[2].side / self.side
            before = _rounded(before[0] * factor, step), _rounded(before[1] * factor, step)
            self.sizes[2] = before
        if 3 in stages:
            check_size(stages[3], before[1], before[0])
            self.sizes[3] = before[0] * stages[3].factor, before[1] * stages[3].factor

    def _first_size(self, stage: Stage) -> tuple[int, int]:
        """(height, width) as asked for; of an image to change, as it is shaped."""
        asked = self.settings.height, self.settings.width
        height, width = (length or self.side for length in asked)
        if self.source is not None and not any(asked):
            scale = self.side / min(self.source.size)
            height, width = (_rounded(length * scale, stage.multiple) for length in self.source.size[::-1])
        check_size(stage, width, height)
        return height, width

    def _find_finished(self) -> None:
        """Takes up images that an earlier run has finished with the same settings."""
        for item in self.items:
            for stage in self.stages:
                path = item.file(self.folder, stage.number)
                try:
                    found = read_candidate(path) if path.is_file() else None
                except UserError:
                    found = None
                if found is None or found.data() != self._candidate(item, stage, found.image).data():
                    break
                item.done = found


def _seeded(request: CascadeRequest, resumed: Path | None) -> CascadeSettings:
    """The settings with a seed: the one asked for, that of the run that is resumed, or a random one."""
    settings = request.settings
    if settings.seed >= 0 or request.resume_from:
        return settings
    kept = read_json(resumed / REQUEST).get("settings") if resumed is not None else None
    seed = kept.get("seed") if isinstance(kept, dict) else None
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        seed = random.randrange(2**31)
    return replace(settings, seed=seed)


def _items(request: CascadeRequest, settings: CascadeSettings) -> list[Item]:
    if not request.resume_from:
        seeds = [(settings.seed + number) % (MAX_SEED + 1) for number in range(settings.count)]
        return [Item(number, replace(settings, seed=seed)) for number, seed in enumerate(seeds)]
    found = [read_candidate(path) for path in request.resume_from]
    return [Item(number, each.continued(settings), each) for number, each in enumerate(found)]


def _rounded(length: float, step: int) -> int:
    return max(step, round(length / step) * step)
