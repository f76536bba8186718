"""The training itself: steps, saves, samples, and a stop or a failure at any moment that costs nothing but time.

Everything random of a step comes from the seed and the step's number, and everything else that it depends on is in the
state, so that a run with stops in between ends with the same weights as one without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TrainingModel, computing, device_of
from lib_methods.dreambooth.photos.subjects import caption_of
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training.batches import Batch, Batches, TrainingData
from lib_methods.dreambooth.training.loss import noised, training_loss
from lib_methods.dreambooth.training.optimizers import Group, build_optimizer
from lib_methods.dreambooth.training.plan import TrainingPlan
from lib_methods.dreambooth.training.processes import Processes
from lib_methods.dreambooth.training.samples import Best, Viewer
from lib_methods.dreambooth.training.state import STATE, State, load_state, save_state
from lib_methods.dreambooth.training.weights import Ema, TextSource, Trained
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs.log import Pace, Report

SAVE_AFTER = 60.0  # seconds between two saves of the state, at least
SAVE_SHARE = 20  # and this many times what the last one took
_TOO_MANY_SKIPPED = 25  # steps in a row whose gradients are no numbers
ASTRAY = (
    "Training diverged at step {step}: {what}. The last good state is from step {saved}. Start again with a lower "
    "learning rate{precision}."
)
NEVER_GOOD = (
    "The very first step gave a loss that is not a number, before anything was trained. The learning rate is not the "
    "cause: the base model does not work in {precision}. Try --precision fp32, or another base model."
)


@dataclass(frozen=True)
class StepReport:
    """The means of a step. subject, prior: before lambda, prior 0 without one. rate: of the UNet."""

    loss: float
    subject: float
    prior: float
    rate: float


def rate_scale(settings: TrainingSettings, step: int) -> float:
    """What the learning rates are multiplied by at a step (from 0 on): warm-up, then the schedule, never zero."""
    warm = min(1.0, (step + 1) / settings.warm_up) if settings.warm_up else 1.0
    if settings.schedule == "constant":
        return warm
    length = max(1, settings.steps - settings.warm_up)
    left = 1 - min(1.0, max(0.0, (step - settings.warm_up) / length))
    return warm * (0.5 * (1 - math.cos(math.pi * left)) if settings.schedule == "cosine" else left)


class Trainer:
    """A run that can be stopped after each step. The model's parts are on the device before; the VAE need not be.

    settings: with steps and rates chosen, prior resolved. lora: injected, for kind "LoRA". identity: names all that the
    steps depend on; a state of another one is refused, but for `older`, see `load_state`. viewer: generates and judges
    samples. keep: writes a result of the step, each `save_every` steps. class_texts: see `Batches`. condition: makes of
    clean latents and fresh noise, (B, C, h, w) each, what the UNet is shown beside the noisy ones. variance: see
    `training_loss`.
    """

    def __init__(
        self,
        model: TrainingModel,
        data: TrainingData,
        settings: TrainingSettings,
        plan: TrainingPlan,
        folder: Path,
        report: Report,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        lora: LoraSet | None = None,
        identity: str = "",
        older: str = "",
        class_texts: Sequence[str] = (),
        processes: Processes | None = None,
        viewer: Viewer | None = None,
        keep: Callable[[int], None] | None = None,
        condition: Callable[[Tensor, Tensor], Tensor] | None = None,
        variance: str = "",
    ) -> None:
        self.condition, self.variance = condition, variance
        self.model, self.settings, self.plan, self.folder = model, settings, plan, folder
        self.report, self.cancelled, self.identity, self.older = report, cancelled, identity, older
        self.viewer, self._keep = viewer, keep
        self.device = device_of(model.unet)
        self.processes = processes or Processes(self.device)
        self.trained = Trained(model, lora, text=settings.train_text)
        rates = {"unet": settings.rate, "text": settings.text_rate}
        self.stepper = build_optimizer(
            [Group(list(part.values()), rates[name]) for name, part in self.trained.parts.items()],
            plan.optimizer,
            weight_decay=settings.weight_decay,
            clip=settings.clip_gradients,
            fused=plan.fused_backward,
            scaled=plan.precision == "fp16",
            seed=settings.seed,
        )
        self.ema = Ema(self.trained.parameters(), settings.ema) if settings.ema else None
        self.alphas = model.alphas_cumprod.float().to(self.device)
        texts = class_texts or [caption_of(None, settings)]
        self.batches = Batches(
            data,
            settings,
            plan.batch_size,
            texts,
            len(self.alphas),
            self.processes.rank,
            self.processes.count,
            conditioned=condition is not None,
        )
        self.position = self.saved = self.looked = self.skipped = 0
        self.best = Best()
        self.pace = Pace()
        self.texts = TextSource(
            model,
            self.batches.texts(),
            self.trained,
            learns_until=math.ceil(settings.steps * settings.text_stop) if settings.train_text else 0,
            stays=settings.train_text,
            one_at_a_time=plan.one_part_at_a_time,
        )

    # -- one step

    def step(self) -> StepReport:
        """Moves the weights once. UserError when the numbers overflow; the saved state is still good."""
        scale = rate_scale(self.settings, self.position)
        parts = self.plan.accumulation
        losses = torch.zeros(3, device=self.device)
        for part in range(parts):
            loss, subject, prior = self._loss(self.batches.draw(self.position, part))
            self.stepper.backward(loss / parts, scale)
            losses += torch.stack([loss.detach(), subject, prior]) / parts
        self.processes.average_gradients(self.trained.parameters())
        moved = self.stepper.step(scale)
        self.stepper.zero()
        loss_, subject_, prior_ = (self.processes.mean(value) for value in losses.tolist())
        self.skipped = 0 if moved else self.skipped + 1
        if not math.isfinite(loss_):
            raise self._astray("the loss is NaN")
        if self.skipped >= _TOO_MANY_SKIPPED:
            raise self._astray(f"{self.skipped} steps in a row had gradients that are NaN or infinite")
        if self.ema is not None:
            self.ema.update()
        self.position += 1
        return StepReport(loss_, subject_, prior_, self.settings.rate * scale * self.stepper.step_size)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        latents, noise = batch.latents.to(self.device), batch.noise.to(self.device)
        timesteps, sizes = batch.timesteps.to(self.device), batch.sizes.to(self.device)
        noisy = noised(latents, noise, timesteps, self.alphas)
        if self.condition is not None and batch.condition_noise is not None:
            noisy = torch.cat([noisy, self.condition(latents, batch.condition_noise.to(self.device))], dim=1)
        prior_target = None
        if self.settings.prior == "model":
            mine = batch.is_prior.to(self.device)
            text = self.texts.frozen([told for told, prior in zip(batch.texts, batch.is_prior.tolist()) if prior])
            with torch.no_grad(), self.trained.frozen_model(), computing(self.device, self.plan.autocast):
                prior_target = self.model.predict(noisy[mine], timesteps[mine], text, sizes[mine])
                prior_target = prior_target[:, : latents.shape[1]]
        with computing(self.device, self.plan.autocast):
            out = self.model.predict(noisy, timesteps, self.texts.embed(batch.texts, self.position), sizes)
        loss, parts = training_loss(
            out,
            noise,
            latents,
            timesteps,
            self.alphas,
            self.model.parameterization,
            is_prior=batch.is_prior.to(self.device),
            prior_weight=self.settings.prior_weight,
            snr_gamma=self.settings.snr_gamma,
            mask=None if batch.mask is None else batch.mask.to(self.device),
            prior_target=prior_target,
            variance=self.variance,
        )
        zero = loss.new_zeros(())
        return loss, zero if parts.subject is None else parts.subject, zero if parts.prior is None else parts.prior

    # -- the whole

    def train(self) -> None:
        """Trains from where it is to the end. Raises Cancelled, the state saved, when it is cancelled, and
        UserError when it cannot continue."""
        steps, told = self.settings.steps, time.monotonic()
        cost = 0.0
        while True:
            if self.processes.any(self.cancelled()):
                self._stop()
            if not self._look():
                continue
            if self.position >= steps or self.processes.any(self.best.given_up):
                break
            started = time.monotonic()
            done = self.step()
            self.pace.add(time.monotonic() - started)
            losses = {"loss": done.loss, "subject": done.subject, "prior": done.prior}
            self.report.step(self.position, steps, losses, done.rate, self.pace.seconds)
            every = self.settings.save_every
            by_time = time.monotonic() - told >= max(SAVE_AFTER, SAVE_SHARE * cost)
            due = bool(every) and self.position % every == 0
            if due or self.processes.any(by_time):  # their clocks differ, and they may have to save together
                before = time.monotonic()
                self.save()
                if due and self.position < steps:
                    self.processes.once(self._keep_result, None)
                told, cost = time.monotonic(), time.monotonic() - before
        self.save()

    def _keep_result(self) -> None:
        """Writes a result of this step. A full disk is said and stops nothing."""
        if self._keep is None:
            return
        try:
            with self.averaged():
                self._keep(self.position)
        except (OSError, UserError) as error:
            reason = error if isinstance(error, UserError) else "the disk may be full"
            self.report.warning(f"The result of step {self.position} could not be kept: {reason}")

    def _stop(self) -> None:
        if not self.save():
            raise UserError(
                f"Training was stopped, but its state could not be saved. The last one is from step {self.saved}."
            )
        self.report.event("cancelled", step=self.position)
        raise Cancelled(f"Stopped after step {self.position} of {self.settings.steps}.")

    def _look(self) -> bool:
        """Generates and judges samples, where the step is one for that; False when it was cancelled meanwhile."""
        every = self.settings.sample_every
        due = bool(every) and (self.position % every == 0 or self.position == self.settings.steps)
        if self.viewer is None or not due or self.looked == self.position:
            return True
        viewer = self.viewer

        def look() -> bool:
            with self.averaged():
                return viewer.look(self.position, self.best, self.trained.state_dict)

        if self.processes.any(not self.processes.once(look, True)):
            return False
        self.looked = self.position
        return True

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the model has the averaged weights, where they are kept; else its own."""
        return nullcontext() if self.ema is None else self.ema.applied()

    # -- the state

    def save(self) -> bool:
        """Writes the state; False, with a warning, when the disk does not take it: the last one is then still there.
        UserError when the weights are spoiled."""
        if self.processes.any(not self.trained.healthy()):
            raise self._astray("weights are NaN or infinite")
        return self.processes.once(self._save, True)

    def _save(self) -> bool:
        parts = {
            "weights": self.trained.state_dict(),
            "optimizer": self.stepper.state_dict(),
            "average": None if self.ema is None else self.ema.state_dict(),
            "order": self.batches.order.state(),
            "best": asdict(self.best),
            "looked": self.looked,
            "skipped": self.skipped,
        }
        return self.processes.on_main(lambda: self._write(State(self.position, self.identity, parts)), True)

    def _write(self, state: State) -> bool:
        try:
            save_state(self.folder, state)
        except OSError as error:
            reason = error.strerror or "the disk may be full"
            self.report.warning(
                f"The state of step {self.position} could not be saved ({reason}); the last good one is of step "
                f"{self.saved}. Make room on the disk."
            )
            return False
        self.saved = self.position
        self.report.event("save", step=self.position, file=STATE)
        return True

    def restore(self) -> bool:
        """Continues from the saved state; False when there is none. UserError when it does not fit."""
        state = load_state(self.folder, self.identity, self.older)
        if state is None:
            return False
        try:
            self.trained.load_state_dict(state.parts["weights"])
            self.stepper.load_state_dict(state.parts["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state.parts["average"])
            self.batches.order.restore(state.parts["order"])
            self.best = Best(**state.parts["best"])
            self.looked, self.skipped = int(state.parts["looked"]), int(state.parts["skipped"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{STATE} is damaged; start again under another name.") from error
        self.position = self.saved = state.step
        return True

    def _astray(self, what: str) -> UserError:
        if not self.position:
            return UserError(NEVER_GOOD.format(precision=self.plan.precision))
        precision = ", or with --precision bf16 or fp32" if self.plan.precision == "fp16" else ""
        return UserError(ASTRAY.format(step=self.position, what=what, saved=self.saved, precision=precision))
