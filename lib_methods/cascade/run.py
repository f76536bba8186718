"""A whole job of the cascade: text, then stage after stage; what a stage has finished stays, whatever comes after."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from lib_methods.cascade.candidate import to_images
from lib_methods.cascade.folder import Stage
from lib_methods.cascade.images import REQUEST, Images, Item
from lib_methods.cascade.parts import Parts
from lib_methods.cascade.plan import plan_cascade
from lib_methods.cascade.settings import CascadeRequest, to_json
from lib_methods.cascade.stages import Texts, generators, pixel_stage, stage_timesteps
from lib_methods.cascade.text import embeddings
from lib_methods.cascade.upscaler import decoded, latent_stage
from lib_methods.device import release_memory, repeatable
from lib_methods.errors import Cancelled, UserError, out_of_memory, reason
from lib_methods.jobs.files import write_json
from lib_methods.jobs.log import Pace, Report, Say, duration

CANCEL, LOCK = "cancel", "run.lock"


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

    The log has the events start, plan, phase, step (with stage, its step and steps, and seconds_left of the whole job),
    sample (step is the stage, files its images so far) and done, cancelled or error. Raises Cancelled when cancelled
    and UserError, both with a sentence.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = request.folder.expanduser()
    memory = "Choose one part at a time, a smaller batch or fp16; finished stages are kept."
    words = "The cascade", memory, "Finished images are kept."
    if plan_only:
        with Report(None, say).ending(*words) as report:
            _Job(request, report, device, cancelled, parts or Parts(), resume)
        return CascadeResult((), {})
    with _taken(folder, resume):
        with Report(folder, say, tensorboard=False).ending(*words) as report, repeatable(device):
            stop = folder / CANCEL
            with contextlib.closing(Parts()) as own:
                asked = lambda: cancelled() or stop.exists()  # noqa: E731
                return _Job(request, report, device, asked, parts or own, resume).run()


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
    except OSError as error:
        raise UserError(f"The folder {folder.name} cannot be used. {reason(error)}") from error


class _Job:
    """The parts of one run: its images, the plan, and the texts once they are encoded."""

    def __init__(
        self,
        request: CascadeRequest,
        report: Report,
        device: torch.device,
        cancelled: Callable[[], bool],
        parts: Parts,
        resume: bool,
    ) -> None:
        self.request, self.report, self.device, self.cancelled, self.parts = request, report, device, cancelled, parts
        self.images = images = Images(request, resume)
        self.settings = images.settings
        self.plan = plan_cascade(images.cascade, self.settings, device, sizes=images.sizes, count=len(images.items))
        self.parts.keep_all = self.plan.keep_all
        self.texts: dict[tuple[int, str], Tensor] = {}
        self._tell(resume)

    def _tell(self, resumed: bool) -> None:
        report, plan, stages = self.report, self.plan, self.images.stages
        report.event(
            "start",
            name=self.request.name,
            kind="cascade",
            prompt=self.settings.prompt,
            count=len(self.images.items),
            seed=self.settings.seed,
            stages=[stage.number for stage in stages],
            resumed=resumed,
            pid=os.getpid(),
        )
        names = ", ".join(stage.folder.name for stage in stages)
        height, width = self.images.sizes[stages[-1].number]
        seed = f", seed {self.settings.seed}" if self.settings.seed >= 0 else ""
        report.say(f"{len(self.images.items)} images of {width}x{height} pixels with {names}{seed}.")
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

    def run(self) -> CascadeResult:
        started, images = time.monotonic(), self.images
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        write_json(images.folder / REQUEST, to_json(self.request.with_settings(seed=self.settings.seed)))
        self._encode()
        for stage in images.stages:
            self._stage(stage)
        by_stage = {stage.number: tuple(file for _, file in images.there(stage)) for stage in images.stages}
        files = by_stage[images.stages[-1].number]
        seconds = time.monotonic() - started
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else None
        self.report.event("done", files=[file.name for file in files], seconds=round(seconds, 1), peak_memory=peak)
        self.report.say(f"Done after {duration(seconds)}.")
        return CascadeResult(files, by_stage)

    def _stop(self) -> None:
        if self.cancelled():
            raise Cancelled("The cascade was cancelled. Finished stages are kept.")

    def _encode(self) -> None:
        """All texts of all stages: an encoder that several stages share is loaded once."""
        wanted: dict[Any, list[tuple[int, str]]] = {}
        for stage in self.images.stages:
            if not self.images.waiting(stage):
                continue
            if stage.number not in self.plan.encoders:
                raise UserError(
                    f"The folder {stage.folder.name} has no text_encoder, and no other stage has one that fits. "
                    "Download the text encoder of stage I."
                )
            encoder = self.plan.encoders[stage.number]
            prompts = [prompt for item in self.images.waiting(stage) for prompt in item.prompts(stage)]
            wanted.setdefault(encoder, []).extend((stage.number, prompt) for prompt in dict.fromkeys(prompts))
        for encoder, asked in wanted.items():
            self._stop()
            self.report.phase("Encoding the text", 0, 1)
            prompts = [prompt for _, prompt in asked]
            found = embeddings(encoder, prompts, self.request.kept_embeddings, self.parts, self.report.warning)
            self.texts.update({(number, prompt): found[prompt] for number, prompt in asked})
            self.report.phase("Encoding the text", 1, 1)

    def _texts(self, stage: Stage, items: Sequence[Item]) -> Texts:
        columns = zip(*(item.prompts(stage) for item in items))
        embedded = [torch.cat([self.texts[stage.number, prompt] for prompt in column]) for column in columns]
        return Texts(embedded[0], embedded[1] if len(embedded) > 1 else None)

    def _stage(self, stage: Stage) -> None:
        """One stage for all images, in slices; each slice is on disk before the next one begins."""
        waiting = self.images.waiting(stage)
        size = self.plan.batch[stage.number]
        slices = [waiting[start : start + size] for start in range(0, len(waiting), size)]
        latents = self._denoise(stage, slices) if slices else []
        if stage.vae is not None and latents:
            with self.parts.use(stage.vae, self.device, torch.float32) as vae:
                for item, row in zip(waiting, torch.cat(latents)):
                    self._stop()
                    self._keep(stage, [item], decoded(vae, row[None].to(self.device)))

    def _denoise(self, stage: Stage, slices: Sequence[Sequence[Item]]) -> list[Tensor]:
        """Keeps the images of a pixel stage, and returns the latents of the latent one. The UNet is gone at its end."""
        self._stop()
        self.report.phase(f"Loading {stage.folder.name}", 0, 1)
        latents: list[Tensor] = []
        later = [other for other in self.images.stages if other.number > stage.number]
        work = self._work(stage), sum(map(self._work, later))
        with self.parts.use(stage.unet, self.device, self.plan.dtype) as unet:
            self.report.phase(f"Loading {stage.folder.name}", 1, 1)
            progress = _Progress(self.report, stage.number, len(slices), *work)
            for number, items in enumerate(slices):

                def tick(done: int, total: int, number: int = number) -> None:
                    progress.step(number, done, total)
                    self._stop()

                self._stop()
                made = self._split(unet, stage, items, tick)
                if stage.number == 3:
                    latents.append(made.cpu())
                else:
                    self._keep(stage, items, made)
        return latents

    def _work(self, stage: Stage) -> float:
        """The operations that a stage still has before it."""
        settings = self.settings
        steps = settings.stage3_steps
        if stage.number < 3:
            steps = len(stage_timesteps(stage, settings, self.images.start(stage)))
        return float(len(self.images.waiting(stage)) * steps * self.plan.operations[stage.number])

    def _split(self, unet: Any, stage: Stage, items: Sequence[Item], tick: Callable[[int, int], None]) -> Tensor:
        """As `_made`, in halves where the memory turns out to be too small for all at once."""
        try:
            return self._made(unet, stage, items, tick)
        except Exception as error:
            if len(items) == 1 or not out_of_memory(error):
                raise
        release_memory(self.device)
        half = (len(items) + 1) // 2
        self.report.warning(f"Memory is too small for {len(items)} images at once in stage {stage.number}; now {half}.")
        return torch.cat([self._split(unet, stage, part, tick) for part in (items[:half], items[half:])])

    def _made(self, unet: Any, stage: Stage, items: Sequence[Item], tick: Callable[[int, int], None]) -> Tensor:
        """The pixels of one slice, in stage III its latents."""
        number = stage.number
        chance = generators([item.seed(number) for item in items])
        texts = self._texts(stage, items)
        small = self.images.small(stage, items)
        if number == 3:
            assert small is not None
            asked = self.settings.stage(3)
            return latent_stage(unet, stage, asked, texts, chance, small, device=self.device, tick=tick)
        size, start = self.images.sizes[number], self.images.start(stage)
        return pixel_stage(
            unet, stage, self.settings, texts, chance, size, small=small, start=start, device=self.device, tick=tick
        )

    def _keep(self, stage: Stage, items: Sequence[Item], pixels: Tensor) -> None:
        if not bool(pixels.isfinite().all()):
            raise UserError(
                f"{stage.folder.name} made numbers that are not finite (NaN). Choose fp32 or bf16 as precision."
            )
        for item, image in zip(items, to_images(pixels)):
            self.images.keep(item, stage, image)
        there = self.images.there(stage)
        prompts = [item.settings.stage(stage.number).prompt for item, _ in there]
        self.report.event("sample", step=stage.number, files=[file.name for _, file in there], prompts=prompts)


class _Progress:
    """Tells how far a stage is, over all its slices, and how long the job still takes. work, later: the operations of
    the stage and of those after it."""

    def __init__(self, report: Report, stage: int, slices: int, work: float, later: float) -> None:
        self.report, self.stage, self.slices = report, stage, slices
        self.after = later / max(1.0, work)
        self.pace, self.last = Pace(), time.monotonic()

    def step(self, number: int, done: int, total: int) -> None:
        now = time.monotonic()
        self.pace.add(now - self.last)
        self.last = now
        step, steps = number * total + done, self.slices * total
        left = None if self.pace.seconds is None else self.pace.seconds * (steps - step + self.after * steps)
        self.report.event("step", stage=self.stage, step=step, steps=steps, seconds_left=left)
        self.report.progress(f"Stage {self.stage}: step {step} of {steps}", step >= steps, left)
