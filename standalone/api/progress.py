"""Progress of the current job: the API's view (/sdapi/v1/progress) and the page's (/internal/progress)."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

from PIL import Image

from standalone.host import shared
from standalone.host.jobs.queue import JobQueue

from .codec import encode_image
from .models import ProgressResponse, TaskProgressRequest, TaskProgressResponse


def api_progress(queue: JobQueue, skip_current_image: bool) -> ProgressResponse:
    """The answer to GET /sdapi/v1/progress, with the WebUI's formula. `current_task` says whose job it is."""
    state = shared.state
    current = queue.current
    known: dict[str, Any] = {"state": state.dict(), "textinfo": state.textinfo}
    known["current_task"] = current.task_id if current is not None else None
    if state.job_count == 0:
        return ProgressResponse(progress=0, eta_relative=0, **known)
    progress = 0.01
    if state.job_count > 0:
        progress += state.job_no / state.job_count
        if state.sampling_steps > 0:
            progress += state.sampling_step / state.sampling_steps / state.job_count
    elapsed = time.time() - state.time_start
    eta = elapsed / progress - elapsed
    image: str | None = None
    if not skip_current_image:
        state.set_current_image()
        if state.current_image is not None:
            image = encode_image(state.current_image)
    return ProgressResponse(progress=min(progress, 1), eta_relative=eta, current_image=image, **known)


def data_url(image: Image.Image, kind: str) -> str:
    """`image` as a data URL of `kind`, "jpeg" or "png"."""
    buffer = io.BytesIO()
    if kind == "jpeg":
        image.convert("RGB").save(buffer, format="JPEG", quality=80)
    else:
        image.save(buffer, format="PNG", compress_level=1)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def task_progress(queue: JobQueue, request: TaskProgressRequest) -> TaskProgressResponse:
    """The answer to POST /internal/progress: where the page's own task is in the queue, and its preview."""
    job = queue.find(request.id_task) if request.id_task else None
    status = job.status if job is not None else None
    if job is None or status != "running":
        queued = status == "queued"
        text = f"In queue: {queue.position(job)} before" if job is not None and queued else "Waiting..."
        return TaskProgressResponse(
            active=False,
            queued=queued,
            completed=status in ("done", "failed", "cancelled"),
            id_live_preview=-1,
            textinfo=text,
        )
    state = shared.state
    fields: dict[str, Any] = {}
    if request.live_preview and shared.opts.live_previews_enable:
        state.set_current_image()
        if state.current_image is not None and state.id_live_preview != request.id_live_preview:
            kind = "png" if shared.opts.live_previews_image_format == "png" else "jpeg"
            fields = {"live_preview": data_url(state.current_image, kind)}
    return TaskProgressResponse(
        active=True,
        queued=False,
        completed=False,
        progress=state.progress(),
        eta=state.eta(),
        id_live_preview=state.id_live_preview,
        textinfo=state.textinfo,
        **fields,
    )
