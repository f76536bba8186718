"""Samples while a model learns, their scores, and the weights that scored best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from lib_methods.dreambooth.model.model import Parts, TrainingModel
from lib_methods.dreambooth.photos.subjects import with_subject
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.processes import Processes
from lib_methods.dreambooth.training.sampler import generate
from lib_methods.errors import Cancelled, UserError, out_of_memory
from lib_methods.jobs.log import Report
from lib_methods.pictures.fit import to_image
from lib_methods.safetensors import read_tensors, write_tensors

BEST = "best.safetensors"
SAMPLES = "samples"
PATIENCE = 4  # looks without a better score, after which the training ends early
PLAIN = ("a {subject}",)
VARIED = ("a {subject}", "a {subject} in the snow", "a {subject} on a beach", "a painting of a {subject}")
STEPS, CFG_SCALE = 20, 7.0
_MOST_AT_ONCE = 8  # images; a judge looks at so many


class Judge(Protocol):
    """Says how good images of the subject are. templates: prompts to judge by, with `{subject}`; may be empty."""

    templates: Sequence[str]

    def score(self, images: Tensor, prompts: Sequence[str]) -> tuple[float, float]:
        """Fidelity to the subject and to the prompts, higher is better, neither below 0. images: (B, 3, H, W) in
        [-1, 1], one for each prompt."""


@dataclass
class Best:
    """The best look so far. Its score is the geometric mean of both fidelities, which needs no common scale."""

    step: int = 0
    score: float = -1.0
    waited: int = 0

    @property
    def given_up(self) -> bool:
        return self.waited >= PATIENCE

    def take(self, step: int, score: float, kept: bool) -> None:
        """Notes a look; kept: whether its weights are the best now."""
        if kept:
            self.step, self.score, self.waited = step, score, 0
        else:
            self.waited += 1


class Viewer:
    """Generates the same prompts with the same seeds at each look, and has them judged where there is a judge."""

    cfg_scale = CFG_SCALE

    def __init__(
        self,
        model: TrainingModel,
        settings: TrainingSettings,
        folder: Path,
        report: Report,
        judge: Judge | None = None,
        *,
        parts: Parts | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        processes: Processes | None = None,
    ) -> None:
        """parts: how the model's parts come to the device, and the precision. cancelled: ends a look in its middle.
        processes: those that generate together."""
        self.processes = processes or Processes()
        self.model, self.settings, self.folder, self.report = model, settings, folder, report
        self.parts, self.cancelled = parts or Parts(model), cancelled
        self._at_once = _MOST_AT_ONCE
        self.judge = judge if settings.select_best else None
        templates = settings.sample_prompts or (VARIED if self.judge else PLAIN)
        self.prompts = [prompt for template in templates for prompt in prompts_of(template, settings)]
        judged = (self.judge.templates if self.judge else ()) or templates
        self.judged = [with_subject(template, settings) for template in judged]

    def _may_stop(self, done: int, total: int) -> None:
        if self.processes.any_says(self.cancelled):
            raise Cancelled("Stopped while generating samples.")

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], each_step: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] on the CPU, one for each prompt and seed; where memory is short with one
        part of the model on the device at a time, then with fewer images together."""
        side = self.settings.resolution or self.model.resolution
        while True:
            try:
                images = generate(
                    self.model,
                    prompts,
                    size=(side, side),
                    steps=STEPS,
                    cfg_scale=self.cfg_scale,
                    seeds=seeds,
                    each_step=each_step,
                    at_once=self._at_once,
                    parts=self.parts,
                )
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or not self._spare(len(prompts)):
                    raise
                continue
            return images.float().clamp(-1, 1).cpu()

    def _spare(self, images: int) -> bool:
        """Takes less memory from here on; False where there is nothing left to spare."""
        if not self.parts.movable:  # all devices generate together then, and one cannot change its way alone
            return False
        together = min(self._at_once, images)
        if self.parts.spare():
            return True
        self._at_once = max(1, together // 2)
        return together > 1

    def preview(self) -> Image.Image | None:
        """The subject as the model generates it now; None, with a warning, where memory runs out."""
        try:
            return to_image(self.generate(self.prompts[:1], [self.settings.seed])[0])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not self.parts.movable:
                raise
            self.report.warning("There was not enough memory for a preview image, so the result has none.")
            return None

    def look(self, step: int, best: Best, weights: Callable[[], Mapping[str, Tensor]]) -> bool:
        """Generates, saves and judges; False when it was cancelled, which leaves `best` as it was.

        weights: gives what the model has now; the best are kept in a file. What fails here is said and stops nothing.
        """
        try:
            seeds = [self.settings.seed + number for number in range(len(self.prompts))]
            images = self.generate(self.prompts, seeds, self._may_stop)
            self.processes.on_main(lambda: self._save(step, images, seeds), None)
            if self.judge is not None:
                self._judge(self.judge, step, best, weights)
        except Cancelled:
            return False
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not self.parts.movable:
                raise
            self.report.warning(f"There was not enough memory for samples at step {step}. Training continues.")
        return True

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """A disk that does not take what is written in the block is said and stops nothing."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or "the disk may be full"
            self.report.warning(f"The samples of step {step} could not be saved ({reason}). Training continues.")

    def _save(self, step: int, images: Tensor, seeds: Sequence[int]) -> None:
        with self._writing(step):
            (self.folder / SAMPLES).mkdir(exist_ok=True)
            files = [self.folder / SAMPLES / f"step-{step:06d}-{n + 1}.png" for n in range(len(images))]
            for file, image in zip(files, images):
                to_image(image).save(file)
            beside = self.report.folder or self.folder  # the log's; of a cascade's stage the one above
            names = [file.relative_to(beside).as_posix() for file in files]
            self.report.event("sample", step=step, files=names, prompts=self.prompts, seeds=seeds)

    def _judge(self, judge: Judge, step: int, best: Best, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        prompts = [prompt for prompt in self.judged for _ in range(2)]
        seeds = [self.settings.seed + 1000 + number for number in range(len(prompts))]
        images = self.generate(prompts, seeds, self._may_stop)
        subject, prompt = self.processes.on_main(lambda: judge.score(images, prompts), (0.0, 0.0))
        score = math.sqrt(max(0.0, subject) * max(0.0, prompt))
        better = self.processes.main_says(lambda: score > best.score)
        if better:
            found = weights()
            if not self.processes.main_says(lambda: self._keep(step, found)):
                return
        best.take(step, score, better)
        self.report.event("score", step=step, subject=subject, prompt=prompt, total=score, best=better)
        self.report.say(f"Scores at step {step}: subject {subject:.3f}, prompt {prompt:.3f}{', the best' * better}")

    def _keep(self, step: int, weights: Mapping[str, Tensor]) -> bool:
        """Whether the best weights so far are on the disk now."""
        with self._writing(step):
            write_tensors(self.folder / BEST, dict(weights), {"step": str(step)}, finite=False)
            return True
        return False


def prompts_of(template: str, settings: TrainingSettings) -> list[str]:
    """What the model gets for a prompt: one with `{subject}` for each subject, else one that names a subject."""
    first, *more = (settings.about(concept) for concept in settings.all_concepts)
    if "{subject}" in template:
        return [with_subject(template, about) for about in (first, *more)]
    if any(with_subject(template, about) == template for about in more):
        return [template]
    return [with_subject(template, first)]


def best_weights(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights that were kept at a look. UserError when they are not there or of another step."""
    if not (folder / BEST).exists():
        raise UserError(f"{BEST} is missing; start again under another name.")
    weights, metadata = read_tensors(folder / BEST)
    if metadata.get("step") != str(step):
        raise UserError(f"{BEST} belongs to another step than the best one. Start training again.")
    return weights
