"""The host's current state: progress bars read it, buttons set it."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from typing import Any

from standalone.host import devices, errors
from standalone.host.settings.table import opts


class State:
    """One object, `shared.state`. Set by the job in progress; read by any thread."""

    def __init__(self) -> None:
        self.skipped = False
        self.interrupted = False
        self.stopping_generation = False
        self.job = ""
        self.job_no = 0
        self.job_count = 0
        self.processing_has_refined_job_count = False
        self.job_timestamp = "0"
        self.sampling_step = 0
        self.sampling_steps = 0
        self.current_latent: Any = None
        self.current_image: Any = None
        self.current_image_sampling_step = 0
        self.id_live_preview = 0
        self.textinfo: str | None = None
        self.time_start: float = time.time()
        self.server_start = time.time()
        self.need_restart = False
        self._preview_lock = threading.Lock()
        self.preview_of: Callable[[Any], Any] = lambda latents: None  # `sampling.base` draws it

    def skip(self) -> None:
        """Ends the batch in progress; the job continues with the next batch."""
        self.skipped = True

    def interrupt(self) -> None:
        """Ends the job at the next step."""
        self.interrupted = True

    def stop_generating(self) -> None:
        """Ends the job after the batch in progress."""
        self.stopping_generation = True

    def nextjob(self) -> None:
        """Called after every pass (a batch, or the second pass of Hires. fix)."""
        if opts.live_previews_enable and opts.show_progress_every_n_steps == -1:
            self.do_set_current_image()
        self.job_no += 1
        self.sampling_step = 0
        self.current_image_sampling_step = 0

    def dict(self) -> dict[str, Any]:
        """The fields that the API shows."""
        names = (
            "skipped interrupted stopping_generation job job_count job_timestamp job_no sampling_step sampling_steps"
        )
        return {name: getattr(self, name) for name in names.split()}

    def begin(self, job: str = "(unknown)") -> None:
        """Starts a job: everything is set back."""
        self.sampling_step = self.sampling_steps = 0
        self.time_start = time.time()
        self.job_count = -1
        self.processing_has_refined_job_count = False
        self.job_no = 0
        self.job_timestamp = datetime.datetime.now().strftime("%Y%m%d%H%M%S")
        self.current_latent = self.current_image = None
        self.current_image_sampling_step = 0
        self.id_live_preview = 0
        self.skipped = self.interrupted = self.stopping_generation = False
        self.textinfo = None
        self.job = job
        devices.torch_gc()

    def end(self) -> None:
        """Ends the job."""
        self.job = ""
        self.job_count = 0
        self.current_latent = None
        devices.torch_gc()

    def progress(self) -> float:
        """How much of the job is done, 0 to 1."""
        if self.job_count <= 0:
            return 0.0
        done = self.job_no / self.job_count
        if self.sampling_steps > 0:
            done += self.sampling_step / self.sampling_steps / self.job_count
        return min(done, 1.0)

    def eta(self) -> float | None:
        """Seconds left, guessed from the progress so far; None before the first step."""
        progress = self.progress()
        elapsed = time.time() - self.time_start
        return elapsed / progress - elapsed if progress > 0 else None

    def set_current_image(self) -> None:
        """Makes a preview of the latents if enough steps have passed since the last one."""
        every = opts.show_progress_every_n_steps
        if not opts.live_previews_enable or every == -1:
            return
        if self.sampling_step - self.current_image_sampling_step >= every or self.current_image is None:
            self.do_set_current_image()

    def do_set_current_image(self) -> None:
        """Makes a preview of the latents now."""
        if self.current_latent is None or not self._preview_lock.acquire(blocking=False):
            return
        try:
            self.assign_current_image(self.preview_of(self.current_latent))
            self.current_image_sampling_step = self.sampling_step
        except Exception:
            # a preview is a convenience: the job must not suffer when memory is short or the model changes meanwhile
            errors.record_exception()
        finally:
            self._preview_lock.release()

    def assign_current_image(self, image: Any) -> None:
        """Shows `image`, a PIL image, as the preview."""
        if opts.live_previews_image_format == "jpeg" and image.mode in ("RGBA", "P"):
            image = image.convert("RGB")
        self.current_image = image
        self.id_live_preview += 1


class TotalTQDM:
    """Counts all steps of a job. The page has its own progress bar, so nothing is printed."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def reset(self) -> None:
        self.total = self.done = 0

    def update(self) -> None:
        self.done += 1

    def updateTotal(self, new_total: int) -> None:
        self.total = int(new_total)

    def clear(self) -> None:
        self.reset()
