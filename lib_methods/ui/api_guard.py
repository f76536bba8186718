"""Refuse bad REST requests before their job starts.

WebUIs swallow what a script raises and go on without it. So a request is checked in front of the route, where it can
still be answered with "422" and a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

ROUTES = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")


def guard_script(app: Any, script_title: str, check: Callable[[Any], object]) -> int:
    """Check a script's arguments in every generation request; returns how many routes are guarded.

    Args:
        app: the host's FastAPI application, its routes already added.
        script_title: the script's key in "alwayson_scripts"; upper and lower case are the same.
        check: called with the value of "args" in a worker thread; raises `ValueError` with a sentence for the caller.
    """
    from fastapi import Depends, HTTPException, Request
    from fastapi.dependencies.utils import get_parameterless_sub_dependant
    from fastapi.routing import APIRoute
    from starlette.concurrency import run_in_threadpool

    async def refuse_bad_arguments(request: Request) -> None:
        try:
            body = await request.json()
        except ValueError:  # not JSON: the route itself says so
            return
        for arguments in _arguments(body, script_title):
            try:
                await run_in_threadpool(check, arguments)
            except ValueError as error:
                raise HTTPException(status_code=422, detail=f"{script_title}: {error}") from None

    # The module has postponed annotations, and `Request` is local to this function: give FastAPI the class itself.
    refuse_bad_arguments.__annotations__["request"] = Request

    guarded = 0
    for route in _all_routes(app.routes):
        if isinstance(route, APIRoute) and route.path in ROUTES:
            depends = Depends(refuse_bad_arguments)
            # what the route asks for now, and what FastAPI works that out from again for an included router
            route.dependant.dependencies.append(
                get_parameterless_sub_dependant(depends=depends, path=route.path_format)
            )
            route.dependencies.append(depends)
            guarded += 1
    return guarded


def _all_routes(routes: Iterable[Any]) -> Iterator[Any]:
    """Routes, and those of included routers, which newer versions of FastAPI do not copy into the application."""
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is None:
            yield route
        else:
            yield from _all_routes(router.routes)


def _arguments(body: Any, script_title: str) -> Iterator[Any]:
    scripts = body.get("alwayson_scripts") if isinstance(body, Mapping) else None
    if not isinstance(scripts, Mapping):
        return
    for name, request in scripts.items():
        if name.lower() == script_title.lower() and isinstance(request, Mapping) and "args" in request:
            yield request["args"]
