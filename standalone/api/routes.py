"""The API's routes. Quick ones answer at once; what needs the model waits its turn in the job queue."""

from __future__ import annotations

import asyncio
import contextlib
import html
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse

from lib_methods.errors import UserError
from standalone.host import callbacks, checkpoints, images, pasting, shared
from standalone.host.jobs.queue import SHUTTING_DOWN, Job, JobQueue, explain

from . import extras, listings, models
from .codec import decode_opened, open_encoded
from .errors import BadRequest, JobFailed, SafeJSONResponse
from .generation import Generation
from .progress import api_progress, task_progress

T = TypeVar("T")
MOST_WAITING = 64


async def in_turn(
    queue: JobQueue,
    work: Callable[[], T],
    name: str,
    task_id: str | None = None,
    is_gone: Callable[[], Awaitable[bool]] | None = None,
) -> T:
    """Runs `work` on the job queue and waits for it without holding a thread. BadRequest (503) if too many wait.

    `is_gone` says whether the client has closed the connection; the job then ends where the settings want that.
    """
    if len(queue.pending) >= MOST_WAITING:
        raise BadRequest(f"{MOST_WAITING} jobs are waiting already; try again later.", 503)
    if task_id is not None and (known := queue.find(task_id)) is not None and known.status in ("queued", "running"):
        raise BadRequest(f"force_task_id: there is a job '{task_id[:80]}' already.", 409)
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not finished.done():
            finished.set_result(None)

    def and_tell() -> T:
        try:
            return work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(wake)

    job = queue.submit(and_tell, name=name, task_id=task_id)
    while not finished.done() and job.status in ("queued", "running"):
        await asyncio.wait({finished}, timeout=1.0)  # a cancelled job never runs: look now and then
        if queue.refuses and not finished.done():
            raise BadRequest(SHUTTING_DOWN, 503)
        if is_gone is not None and shared.opts.cancel_jobs_without_client and await is_gone():
            stop_job(queue, job)
    try:
        value: T = await asyncio.to_thread(job.result, 60)
    except (UserError, HTTPException):
        raise
    except Exception as error:
        raise JobFailed(explain(error)) from None  # the queue has logged it; its frames would keep tensors alive
    return value


def stop_job(queue: JobQueue, job: Job | None) -> None:
    """Takes a waiting job out of the queue, or ends a running one at its next step."""
    if job is not None and not queue.cancel(job.task_id) and queue.current is job:
        shared.state.interrupt()


def make_router(queue: JobQueue) -> APIRouter:
    """All routes below /sdapi/v1, and the page's own /internal/progress."""
    router = APIRouter(default_response_class=SafeJSONResponse)

    async def generate(request: models.GenerationRequest, name: str, client: Request) -> models.GenerationResponse:
        generation = await asyncio.to_thread(Generation.from_api, request)
        processed = await in_turn(queue, generation.run, name, request.force_task_id, client.is_disconnected)
        return await asyncio.to_thread(generation.answer, processed)

    @router.post("/sdapi/v1/txt2img")
    async def txt2img(request: models.TextToImageRequest, client: Request) -> models.GenerationResponse:
        return await generate(request, "scripts_txt2img", client)

    @router.post("/sdapi/v1/img2img")
    async def img2img(request: models.ImageToImageRequest, client: Request) -> models.GenerationResponse:
        return await generate(request, "scripts_img2img", client)

    @router.get("/sdapi/v1/progress")
    async def progress(skip_current_image: bool = False) -> models.ProgressResponse:
        return await asyncio.to_thread(api_progress, queue, skip_current_image)

    @router.post("/internal/progress", include_in_schema=False)
    async def internal_progress(request: models.TaskProgressRequest) -> models.TaskProgressResponse:
        return await asyncio.to_thread(task_progress, queue, request)

    @router.get("/internal/pending-tasks", include_in_schema=False)
    async def pending() -> dict[str, Any]:
        names = [job.task_id for job in queue.pending if job.task_id]
        return {"size": len(names), "tasks": names}

    @router.get("/internal/ping", include_in_schema=False)
    async def ping() -> dict[str, Any]:
        return {}

    @router.post("/sdapi/v1/interrupt")
    async def interrupt() -> dict[str, Any]:
        shared.state.interrupt()
        return {}

    @router.post("/sdapi/v1/skip")
    async def skip() -> None:
        shared.state.skip()

    @router.post("/internal/interrupt", include_in_schema=False)
    async def internal_interrupt(task: models.TaskRequest) -> dict[str, Any]:
        stop_job(queue, queue.find(task.id_task))
        return {}

    @router.post("/internal/skip", include_in_schema=False)
    async def internal_skip(task: models.TaskRequest) -> dict[str, Any]:
        job = queue.find(task.id_task)
        if job is not None and job.status == "running":
            shared.state.skip()
        return {}

    @router.post("/sdapi/v1/png-info")
    async def png_info(request: models.PNGInfoRequest) -> models.PNGInfoResponse:
        text, items, params = await asyncio.to_thread(_info_of, request.image)
        readable = {key: value for key, value in items.items() if isinstance(value, (str, int, float))}
        return models.PNGInfoResponse(info=text or "", items=readable, parameters=params)

    @router.post("/sdapi/v1/extra-single-image")
    async def extra_single_image(request: extras.ExtrasSingleImageRequest) -> extras.ExtrasSingleImageResponse:
        work = await asyncio.to_thread(extras.Extras, request)
        found, told = await in_turn(queue, work.run, "extras")
        return extras.ExtrasSingleImageResponse(html_info=told, image=found[0])

    @router.post("/sdapi/v1/extra-batch-images")
    async def extra_batch_images(request: extras.ExtrasBatchImagesRequest) -> extras.ExtrasBatchImagesResponse:
        work = await asyncio.to_thread(extras.Extras, request)
        found, told = await in_turn(queue, work.run, "extras")
        return extras.ExtrasBatchImagesResponse(html_info=told, images=found)

    @router.post("/sdapi/v1/interrogate")
    async def interrogate_image(request: extras.InterrogateRequest) -> extras.InterrogateResponse:
        return await asyncio.to_thread(extras.interrogate, request)

    @router.post("/sdapi/v1/unload-checkpoint")
    async def unload_checkpoint() -> dict[str, Any]:
        await in_turn(queue, checkpoints.unload_model_weights, "unload-checkpoint")
        return {}

    @router.post("/sdapi/v1/reload-checkpoint")
    async def reload_checkpoint() -> dict[str, Any]:
        await in_turn(queue, lambda: checkpoints.send_model_to_device(shared.sd_model), "reload-checkpoint")
        return {}

    @router.get("/sdapi/v1/options", response_model=None)  # pydantic fails where a file has text that cannot be encoded
    async def get_options() -> dict[str, Any]:
        return listings.options()

    @router.get("/internal/options", response_model=None, include_in_schema=False)
    async def internal_options() -> dict[str, Any]:
        return listings.options()  # the page's way to them, with the page's login

    @router.post("/sdapi/v1/options")
    async def set_options(wanted: Annotated[dict[str, Any], Body()]) -> None:
        listings.check_options(wanted)
        await in_turn(queue, lambda: listings.set_options(wanted), "options")

    @router.post("/sdapi/v1/refresh-checkpoints")
    async def refresh_checkpoints() -> None:
        await in_turn(queue, checkpoints.list_models, "refresh-checkpoints")

    router.add_api_route("/sdapi/v1/refresh-loras", listings.refresh_loras, methods=["POST"])
    for path in ("refresh-vae", "refresh-embeddings"):
        router.add_api_route(f"/sdapi/v1/{path}", _done, methods=["POST"])

    for path, listing in (
        ("samplers", listings.samplers),
        ("schedulers", listings.schedulers),
        ("upscalers", listings.upscalers),
        ("latent-upscale-modes", listings.latent_upscale_modes),
        ("sd-models", listings.checkpoints),
        ("prompt-styles", listings.styles),
        ("scripts", listings.scripts_list),
        ("script-info", listings.script_info),
        ("memory", listings.memory),
        ("cmd-flags", listings.cmd_flags),
        ("loras", listings.loras),
    ):
        router.add_api_route(f"/sdapi/v1/{path}", listing, methods=["GET"])
    for path in ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "extensions"):
        router.add_api_route(f"/sdapi/v1/{path}", _nothing, methods=["GET"])
    router.add_api_route("/sdapi/v1/embeddings", _no_embeddings, methods=["GET"])
    return router


def _info_of(encoded: str) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """An image's infotext, its other texts, and what the infotext says."""
    image = open_encoded({"image": encoded})["image"]
    decode_opened(image, "image")  # a damaged file is refused, and a PNG's texts may lie behind its pixels
    text, items = images.read_info_from_image(image)
    params = pasting.parse_generation_parameters(text or "")
    callbacks.infotext_pasted_callback(text or "", params)
    return text, items, params


def _nothing() -> list[Any]:
    """This host has none of them; clients that ask at their start want a list."""
    return []


def _done() -> None:
    """This host has none of them to look for again."""


def _no_embeddings() -> dict[str, Any]:
    return {"loaded": {}, "skipped": {}}


def add_api(app: FastAPI, queue: JobQueue) -> None:
    """Adds the API to `app`, listed at /docs. Below its paths nothing else answers, not even the page's "not found"."""
    router = make_router(queue)
    app.include_router(router)
    known = {getattr(route, "path", "") for route in router.routes}

    async def otherwise(request: Request) -> None:
        raise HTTPException(
            405 if request.url.path in known else 404,
            "This address does not take that method." if request.url.path in known else "There is nothing here.",
        )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """All routes, in place of FastAPI's own page, which loads its scripts from another website."""
        routes = [(path, verb) for path, verbs in app.openapi()["paths"].items() for verb in verbs]
        rows = "".join(f"<tr><td>{verb.upper()}<td><code>{html.escape(path)}</code>" for path, verb in routes)
        return HTMLResponse(
            "<!DOCTYPE html><title>Steer: API</title><h1>API</h1><p>Fields and answers of every route: "
            f'<a href="{app.openapi_url}">{app.openapi_url}</a> (OpenAPI). Each method\'s arguments: '
            '<a href="/sdapi/v1/script-info">/sdapi/v1/script-info</a>.'
            f"<table>{rows}</table>"
        )

    for prefix in ("/sdapi", "/internal"):
        app.add_api_route(
            prefix + "/{rest:path}",
            otherwise,
            include_in_schema=False,
            methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        )
