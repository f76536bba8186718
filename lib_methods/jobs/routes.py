"""REST routes of a kind of jobs. The host's logins are asked for, and other websites refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lib_methods.errors import UserError
from lib_methods.webui.door import Door, guarded_router

MOST_BYTES = 256 * 2**20
Fields = dict[str, Any]


def add_routes(
    app: Any,
    prefix: str,
    door: Door,
    *,
    asking: Mapping[str, Callable[[Fields], Any]],
    doing: Mapping[str, Callable[[Fields], Any]],
) -> None:
    """Adds routes to a FastAPI application. asking: GET, with the fields of the address. doing: POST, with those of a
    JSON object. Each runs in a thread; a UserError is answered with 422 and its sentence."""
    from fastapi import HTTPException, Request
    from starlette.concurrency import run_in_threadpool

    router = guarded_router(door)

    async def fields_of(request: Request) -> Fields:
        if request.method == "GET":
            return dict(request.query_params)
        if int(request.headers.get("content-length") or 0) > MOST_BYTES:
            raise HTTPException(413, "The images are too large.")
        if not await request.body():
            return {}
        try:
            fields = await request.json()
        except ValueError:
            raise HTTPException(422, "The request is not JSON.") from None
        if not isinstance(fields, dict):
            raise HTTPException(422, "The request must be an object of named fields.")
        return fields

    def add(name: str, action: Callable[[Fields], Any], method: str) -> None:
        async def route(request: Request) -> Any:
            fields = await fields_of(request)
            try:
                answer = await run_in_threadpool(action, fields)
            except UserError as error:
                raise HTTPException(422, str(error)) from None
            return {} if answer is None else answer

        # The module has postponed annotations, and `Request` is local to this function: give FastAPI the class itself.
        route.__annotations__["request"] = Request
        router.add_api_route(f"{prefix}/{name}", route, methods=[method], response_model=None)

    for name, action in asking.items():
        add(name, action, "GET")
    for name, action in doing.items():
        add(name, action, "POST")
    app.include_router(router)
