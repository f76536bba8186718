"""A whole job of the cascade: text, then stage after stage; what a stage has finished stays, whatever comes after."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from lib_methods.cascade.candidate import Candidate, open_source, read_candidate, to_images, to_pixels
from lib_methods.cascade.folder import NAMES, Cascade, Stage, read_cascade
from lib_methods.cascade.parts import Parts
from lib_methods.cascade.plan import CascadePlan, plan_cascade
from lib_methods.cascade.settings import MAX_SEED, CascadeRequest, CascadeSettings, to_json
from lib_methods.cascade.stages import Start, Texts, check_size, generators, pixel_stage
from lib_methods.cascade.text import embeddings
from lib_methods.cascade.upscaler import decoded, latent_stage
from lib_methods.device import repeatable
from lib_methods.errors import Cancelled, UserError, known_reason, out_of_memory
from lib_methods.jobs.files import read_json, write_json
from lib_methods.jobs.log import Pace, Report, Say, duration

REQUEST, CANCEL, LOCK = "request.json", "cancel", "run.lock"


@dataclass(frozen=True)
class CascadeResult:
    """files: of the last stage, one for each image. by_stage: all that the folder holds, by stage."""

    files: tuple[Path, ...]
    by_stage: dict[int, tuple[Path, ...]]


def run_cascade(
    request: CascadeRequest,
    *,
    resume: bool = False,
    plan_only: bool = False,
    say: Say = print,
    cancelled: Callable[[], bool] = lambda: False,
    device: torch.device | None = None,
    parts: Parts | None = None,
) -> CascadeResult:
    """Makes the images, and returns their files: `request.folder/003-stage1.png` and so on.

    resume: continue what was interrupted; finished images stay. plan_only: only say what would be done. cancelled:
    asked between any two steps, as is whether the folder has a file "cancel". device: None for the GPU if there is one.
    parts: keeps networks from one job to the next, where the caller has many.

    The log has the events start, plan, phase, step (with stage, step, steps and seconds_left, all of the stage),
    sample (step is the stage, files its images so far) and done, cancelled or error. Raises Cancelled when cancelled
    and UserError, both with a sentence.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = request.folder.expanduser()
    if plan_only:
        with _told(Report(None, say)) as report:
            _Job(request, report, device, cancelled, parts or Parts()).prepare(resume=False)
        return CascadeResult((), {})
    with _taken(folder, resume):
        with _told(Report(folder, say, tensorboard=False)) as report, repeatable(device):
            stop = folder / CANCEL
            job = _Job(request, report, device, lambda: cancelled() or stop.exists(), parts or Parts())
            try:
                job.prepare(resume)
                return job.run()
            finally:
                if parts is None:
                    job.parts.close()


@contextlib.contextmanager
def _taken(folder: Path, resume: bool) -> Iterator[None]:
    """The folder is this run's alone. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        with lock:
            if not resume and (folder / REQUEST).exists():
                raise UserError(
                    f'A run called "{folder.name}" already exists there. Choose another name, or resume it.'
                )
            (folder / CANCEL).unlink(missing_ok=True)
            yield
    except Timeout:
        raise UserError(f'The run "{folder.name}" is already running. Wait until it ends, or cancel it.') from None


@contextlib.contextmanager
def _told(report: Report) -> Iterator[Report]:
    """Ends in a sentence, which is in the log, too."""
    try:
        yield report
    except Cancelled:
        report.event("cancelled")
        raise
    except UserError as error:
        report.event("error", text=str(error))
        raise
    except Exception as error:
        text = None
        if out_of_memory(error):
            text = "Out of memory. Choose one part at a time, a smaller batch or fp16; finished stages are kept."
        elif isinstance(error, OSError):
            text = f"The disk gave an error. {known_reason(error) or error.strerror or ''} Finished images are kept."
        report.event("error", text=text or f"The cascade failed unexpectedly ({type(error).__name__}).")
        if text is None:
            raise  # a mistake of the program's, for the console to show whole
        raise UserError(text) from error
    finally:
        report.close()


@dataclass
class _Item:
    """One image on its way. settings: the job's, with its own seed. done: its newest candidate, None before stage I."""

    index: int
    settings: CascadeSettings
    done: Candidate | None = None

    def file(self, folder: Path, stage: int) -> Path:
        return folder / f"{self.index:03d}-stage{stage}.png"


class _Job:
    """The parts of one run. `prepare` sets cascade, settings (with the seed chosen), items and plan."""

    cascade: Cascade
    settings: CascadeSettings
    items: list[_Item]
    plan: CascadePlan
    sizes: dict[int, tuple[int, int]]
    source: Image.Image | None = None
    mask: Image.Image | None = None

    def __init__(
        self,
        request: CascadeRequest,
        report: Report,
        device: torch.device,
        cancelled: Callable[[], bool],
        parts: Parts,
    ) -> None:
        self.request, self.report, self.device, self.cancelled = request, report, device, cancelled
        self.parts, self.folder = parts, request.folder.expanduser()
        self.texts: dict[tuple[int, str], Tensor] = {}

    # -- before anything is loaded

    def prepare(self, resume: bool) -> None:
        """Reads folders, images and headers; plans, and tells it. Raises UserError."""
        self.settings = self._seeded(resume)
        whole = read_cascade(self.request.folders)
        self.items = self._items()
        first = min((item.done.stage for item in self.items if item.done is not None), default=0) + 1
        last = self.settings.last_stage
        self.cascade = Cascade(tuple(stage for stage in whole.stages if first <= stage.number <= last))
        self._check_order(whole, first)
        if self.request.image is not None:
            self.source = open_source(self.request.image)
            self.mask = None if self.request.mask is None else open_source(self.request.mask, mask=True)
        self.sizes = self._sizes(whole)
        if resume:
            self._find_finished()
        count = len(self.items)
        self.plan = plan_cascade(self.cascade, self.settings, self.device, sizes=self.sizes, count=count)
        self.parts.keep_all = self.plan.keep_all
        self._tell(resume)

    def _seeded(self, resume: bool) -> CascadeSettings:
        """The settings with a seed: of the run that is resumed, asked for, or random."""
        settings = self.request.settings
        if self.request.resume_from:
            return settings  # each has its own
        if resume:
            kept = read_json(self.folder / REQUEST).get("settings", {})
            seed = kept.get("seed") if isinstance(kept, dict) else None
            if isinstance(seed, int) and settings.seed < 0 <= seed:
                return replace(settings, seed=seed)
        return settings if settings.seed >= 0 else replace(settings, seed=random.randrange(2**31))

    def _items(self) -> list[_Item]:
        if not self.request.resume_from:
            seeds = [(self.settings.seed + number) % (MAX_SEED + 1) for number in range(self.settings.count)]
            return [_Item(number, replace(self.settings, seed=seed)) for number, seed in enumerate(seeds)]
        found = [read_candidate(path) for path in self.request.resume_from]
        return [_Item(number, each.continued(self.settings), each) for number, each in enumerate(found)]

    def _check_order(self, whole: Cascade, first: int) -> None:
        """Raises UserError where stages are missing between the images and the last stage."""
        if first > self.settings.last_stage:
            raise UserError(f"These images are of stage {first - 1} already. Choose a later stage to go up to.")
        numbers = [stage.number for stage in self.cascade.stages]
        if not numbers:
            raise UserError(
                f"The folders hold no stage to run: {NAMES[first]} is needed. Add its folder to the stages."
            )
        if first == 1 and numbers[0] != 1 and self.request.image is not None:
            if self.request.mask is not None:
                raise UserError("A mask needs stage I. Add its folder to the stages, before the others.")
            return  # an image of one's own goes into the first stage that is there
        wanted = list(range(first, max(numbers) + 1))
        missing = [number for number in wanted if number not in numbers]
        if missing:
            there = ", ".join(stage.folder.name for stage in whole.stages)
            raise UserError(
                f"{NAMES[missing[0]]} is missing: {there} cannot start without its images. Add its folder to the "
                "stages, before the others."
            )
        for item in self.items:
            if item.done is not None and item.done.stage != first - 1:
                raise UserError("The candidates are of different stages. Take up those of one stage at a time.")

    def _sizes(self, whole: Cascade) -> dict[int, tuple[int, int]]:
        """(height, width) of what each stage makes."""
        stages = {stage.number: stage for stage in self.cascade.stages}
        base = whole.stage(1)
        side = base.side if base is not None else 64
        before: tuple[int, int] | None = None
        candidate = self.items[0].done
        if candidate is not None:
            shapes = {item.done.image.size for item in self.items if item.done is not None}
            if len(shapes) > 1:
                raise UserError("The candidates have different sizes. Take up those of one size at a time.")
            side, before = candidate.side, (candidate.image.height, candidate.image.width)
        elif 1 not in stages and self.source is not None:
            before = self.source.height, self.source.width
            if 2 in stages:
                side = min(before)
        self.side = side
        found: dict[int, tuple[int, int]] = {}
        if 1 in stages:
            width, height = self.settings.width or side, self.settings.height or side
            if self.source is not None and not (self.settings.width or self.settings.height):
                step, scale = stages[1].multiple, side / min(self.source.size)
                width, height = (max(step, round(length * scale / step) * step) for length in self.source.size)
            found[1] = height, width
            check_size(stages[1], found[1][1], found[1][0])
            before = found[1]
        if 2 in stages and before is not None:
            factor = stages[2].side / side
            step = stages[2].multiple
            height, width = (max(step, round(length * factor / step) * step) for length in before)
            found[2] = before = height, width
        if 3 in stages and before is not None:
            check_size(stages[3], before[1], before[0])
            found[3] = before[0] * stages[3].factor, before[1] * stages[3].factor
        return found

    def _find_finished(self) -> None:
        """Takes up images that an earlier run has finished with the same settings."""
        for item in self.items:
            for stage in self.cascade.stages:
                path = item.file(self.folder, stage.number)
                try:
                    found = read_candidate(path) if path.is_file() else None
                except UserError:
                    found = None
                if found is None or found.data() != self._candidate(item, stage, found.image).data():
                    break
                item.done = found

    def _tell(self, resumed: bool) -> None:
        report, plan = self.report, self.plan
        report.event(
            "start",
            name=self.request.name,
            kind="cascade",
            prompt=self.settings.prompt,
            count=len(self.items),
            seed=self.settings.seed,
            stages=[stage.number for stage in self.cascade.stages],
            resumed=resumed,
            pid=os.getpid(),
        )
        names = ", ".join(stage.folder.name for stage in self.cascade.stages)
        size = self.sizes[self.cascade.stages[-1].number]
        report.say(f"{len(self.items)} images of {size[1]}x{size[0]} pixels with {names}, seed {self.settings.seed}.")
        for note in plan.notes():
            report.say(note)
        report.event(
            "plan",
            notes=plan.notes(),
            one_at_a_time=plan.one_at_a_time,
            together=plan.together,
            keep_all=plan.keep_all,
            precision=plan.precision,
            memory=plan.memory,
        )

    # -- the work

    def run(self) -> CascadeResult:
        started = time.monotonic()
        write_json(self.folder / REQUEST, to_json(self.request.with_settings(seed=self.settings.seed)))
        self._encode()
        for stage in self.cascade.stages:
            self._stage(stage)
        last = self.cascade.stages[-1].number
        files = tuple(item.file(self.folder, last) for item in self.items)
        seconds = time.monotonic() - started
        self.report.event("done", files=[file.name for file in files], seconds=round(seconds, 1))
        self.report.say(f"Done after {duration(seconds)}.")
        by_stage = {stage.number: self._there(stage.number) for stage in self.cascade.stages}
        return CascadeResult(files, by_stage)

    def _there(self, stage: int) -> tuple[Path, ...]:
        return tuple(path for item in self.items if (path := item.file(self.folder, stage)).is_file())

    def _stop(self) -> None:
        if self.cancelled():
            raise Cancelled("The cascade was cancelled. Finished stages are kept.")

    def _open(self, stage: Stage) -> list[_Item]:
        """The images that this stage has still to make."""
        return [item for item in self.items if item.done is None or item.done.stage < stage.number]

    def _prompts(self, stage: Stage, item: _Item) -> list[str]:
        asked = item.settings.stage(stage.number)
        return [asked.prompt, *([asked.negative_prompt] if asked.guidance > 1 else [])]

    def _encode(self) -> None:
        """All texts of all stages: an encoder that several stages share is loaded once."""
        wanted: dict[Any, list[tuple[int, str]]] = {}
        for stage in self.cascade.stages:
            if not self._open(stage):
                continue
            if stage.number not in self.plan.encoders:
                raise UserError(
                    f"The folder {stage.folder.name} has no text_encoder, and no other stage has one that fits. "
                    "Download the text encoder of stage I."
                )
            encoder = self.plan.encoders[stage.number]
            prompts = [prompt for item in self._open(stage) for prompt in self._prompts(stage, item)]
            wanted.setdefault(encoder, []).extend((stage.number, prompt) for prompt in dict.fromkeys(prompts))
        for encoder, asked in wanted.items():
            self._stop()
            self.report.phase("Encoding the text", 0, 1)
            prompts = [prompt for _, prompt in asked]
            found = embeddings(encoder, prompts, self.request.kept_embeddings, self.parts, self.report.warning)
            self.texts.update({(number, prompt): found[prompt] for number, prompt in asked})
            self.report.phase("Encoding the text", 1, 1)

    def _texts(self, stage: Stage, items: Sequence[_Item]) -> Texts:
        columns = zip(*(self._prompts(stage, item) for item in items))
        embedded = [torch.cat([self.texts[stage.number, prompt] for prompt in column]) for column in columns]
        return Texts(embedded[0], embedded[1] if len(embedded) > 1 else None)

    def _stage(self, stage: Stage) -> None:
        """One stage for all images, in slices; each slice is on disk before the next one begins."""
        waiting = self._open(stage)
        if not waiting:
            return
        self._stop()
        size = self.plan.batch[stage.number]
        slices = [waiting[start : start + size] for start in range(0, len(waiting), size)]
        self.report.phase(f"Loading {stage.folder.name}", 0, 1)
        latents: list[Tensor] = []
        progress = _Progress(self.report, stage.number, len(slices))
        with self.parts.use(stage.unet, self.device, self.plan.dtype) as unet:
            self.report.phase(f"Loading {stage.folder.name}", 1, 1)
            for number, items in enumerate(slices):

                def tick(done: int, total: int, number: int = number) -> None:
                    progress.step(number, done, total)
                    self._stop()

                self._stop()
                made = self._made(unet, stage, items, tick)
                if stage.number == 3:
                    latents.append(made.cpu())
                else:
                    self._keep(stage, items, made)
        if stage.vae is None:
            return
        with self.parts.use(stage.vae, self.device, torch.float32) as vae:
            for items, rows in zip(slices, latents):
                for item, row in zip(items, rows):
                    self._stop()
                    self._keep(stage, [item], decoded(vae, row[None].to(self.device)))

    def _made(self, unet: Any, stage: Stage, items: Sequence[_Item], tick: Callable[[int, int], None]) -> Tensor:
        """The pixels of one slice, in stage III its latents."""
        number = stage.number
        chance = generators([item.settings.seed_of(number, item.settings.seed) for item in items])
        texts = self._texts(stage, items)
        small = self._small(stage, items)
        if number == 3:
            assert small is not None
            asked = self.settings.stage(3)
            return latent_stage(unet, stage, asked, texts, chance, small, device=self.device, tick=tick)
        size = self.sizes[number]
        start = self._start(stage, size)
        return pixel_stage(
            unet, stage, self.settings, texts, chance, size, small=small, start=start, device=self.device, tick=tick
        )

    def _small(self, stage: Stage, items: Sequence[_Item]) -> Tensor | None:
        """The images that a later stage enlarges."""
        if stage.number == 1:
            return None
        images = [item.done.image if item.done is not None else self.source for item in items]
        return to_pixels([image for image in images if image is not None])

    def _start(self, stage: Stage, size: tuple[int, int]) -> Start | None:
        """The image to change in a stage's own size, where there is one."""
        if self.source is None or all(other.number != 1 for other in self.cascade.stages):
            return None
        shape = size[1], size[0]
        mask = None
        if self.mask is not None:
            grey = to_pixels([self.mask.convert("RGB").resize(shape, Image.Resampling.BICUBIC)])[:, :1]
            mask = (grey >= 0).float()
        strength = self.settings.strength if stage.number == 1 else self.settings.stage2_strength
        return Start(to_pixels([self.source.resize(shape, Image.Resampling.BICUBIC)]), strength, mask)

    def _candidate(self, item: _Item, stage: Stage, image: Image.Image) -> Candidate:
        before = dict(item.done.models) if item.done is not None else {}
        models = {**before, str(stage.number): f"{stage.folder.name} {stage.unet.digest}"}
        source = ""
        if self.source is not None:
            pieces = [self.source.tobytes(), b"" if self.mask is None else self.mask.tobytes()]
            source = hashlib.sha256(b"".join(pieces)).hexdigest()[:16]
        elif item.done is not None:
            source = item.done.source
        return Candidate(image, stage.number, item.settings, models, self.side, source)

    def _keep(self, stage: Stage, items: Sequence[_Item], pixels: Tensor) -> None:
        if not bool(pixels.isfinite().all()):
            raise UserError(
                f"{stage.folder.name} made numbers that are not finite (NaN). Choose fp32 or bf16 as precision."
            )
        for item, image in zip(items, to_images(pixels)):
            made = self._candidate(item, stage, image)
            made.save(item.file(self.folder, stage.number))
            item.done = made
        names = [path.name for path in self._there(stage.number)]
        prompts = [item.settings.stage(stage.number).prompt for item in self.items]
        self.report.event("sample", step=stage.number, files=names, prompts=prompts[: len(names)])


class _Progress:
    """Tells how far a stage is, over all its slices."""

    def __init__(self, report: Report, stage: int, slices: int) -> None:
        self.report, self.stage, self.slices = report, stage, slices
        self.pace, self.last = Pace(), time.monotonic()

    def step(self, number: int, done: int, total: int) -> None:
        now = time.monotonic()
        self.pace.add(now - self.last)
        self.last = now
        step, steps = number * total + done, self.slices * total
        left = None if self.pace.seconds is None else self.pace.seconds * (steps - step)
        self.report.event("step", stage=self.stage, step=step, steps=steps, seconds_left=left)
        self.report.progress(f"Stage {self.stage}: step {step} of {steps}", step >= steps, left)
