"""REST routes of the runs, for programs.

- `GET /dreambooth/v1/status`: the last run, how far it is, what it told.
- `POST /dreambooth/v1/start` with {"photos": [base64, {"image": base64, "caption": text}], "class_noun", "base", ...}:
  the fields of `TrainingSettings`; "base" is the title of a checkpoint, by default the one in use.
- `POST /dreambooth/v1/plan` with the same fields: what that run would take. "photos" may be their number alone.
- `POST /dreambooth/v1/cancel`, `/resume`, `/use`. `use` answers the prompt (and the checkpoint) that draw the subject.

What cannot be done is answered with 422 and a sentence. The host's logins are asked for, and other websites refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lib_methods.dreambooth.tab.handlers import TabHandlers
from lib_methods.errors import UserError
from lib_methods.webui.door import Door, guarded_router

PREFIX = "/dreambooth/v1"
_MOST_BYTES = 256 * 2**20


def add_routes(app: Any, handlers: TabHandlers, door: Door | None = None) -> None:
    """Adds the routes to a FastAPI application. door: whom they answer."""
    from fastapi import HTTPException, Request
    from starlette.concurrency import run_in_threadpool

    router = guarded_router(door or Door())

    async def answer(action: Callable[[], Any]) -> Any:
        try:
            return await run_in_threadpool(action)
        except UserError as error:
            raise HTTPException(422, str(error)) from None

    async def fields_of(request: Request) -> dict[str, Any]:
        if int(request.headers.get("content-length") or 0) > _MOST_BYTES:
            raise HTTPException(413, "The photos are too large.")
        try:
            fields = await request.json()
        except ValueError:
            raise HTTPException(422, "The request is not JSON.") from None
        if not isinstance(fields, dict):
            raise HTTPException(422, "The request must be an object of named fields.")
        return {"base": await run_in_threadpool(handlers.lists.loaded), **fields}

    async def start(request: Request) -> Any:
        wanted = await fields_of(request)
        settings = await answer(lambda: handlers.begin(wanted, wanted.pop("photos", None) or []))
        return {"name": settings.name}

    async def plan(request: Request) -> Any:
        wanted = await fields_of(request)
        return await answer(lambda: handlers.plan(wanted, wanted.pop("photos", None)))

    async def status(request: Request) -> Any:
        return await answer(lambda: describe(handlers))

    async def cancel(request: Request) -> Any:
        return await answer(handlers.trainings.cancel) or {}

    async def resume(request: Request) -> Any:
        return await answer(handlers.trainings.resume) or {}

    async def use(request: Request) -> Any:
        return await answer(handlers.usage)

    # The module has postponed annotations, and `Request` is local to this function: give FastAPI the class itself.
    for route in (start, plan, status, cancel, resume, use):
        route.__annotations__["request"] = Request
        method = "GET" if route is status else "POST"
        router.add_api_route(f"{PREFIX}/{route.__name__}", route, methods=[method])
    app.include_router(router)


def describe(handlers: TabHandlers) -> dict[str, Any]:
    """The answer to "status": names of files, never where they are."""
    state = handlers.trainings.state()
    progress = state.progress
    return {
        "training": None if state.record is None else asdict(state.record),
        "running": state.is_running,
        "stopping": state.stopping,
        "step": progress.step,
        "steps": progress.steps,
        "seconds_left": progress.seconds_left,
        "subject": progress.subject,
        "plan": {key: value for key, value in progress.of("plan").items() if key not in ("event", "time")},
        "phase": progress.of("phase").get("text", ""),
        "warnings": list(progress.warnings),
        "losses": [[step, *progress.losses[step]] for step in sorted(progress.losses)[-1000:]],
        "samples": [{"step": s.step, "files": [f.name for f in s.files]} for s in progress.samples],
    }
