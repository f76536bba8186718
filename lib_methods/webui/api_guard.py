"""Refuse bad REST requests before their job starts, and know which of them are ours.

WebUIs swallow what a script raises and go on without it. So a request is checked in front of the route, where it can
still be answered with "422" and a sentence. And they find a script by its title, the first one with that title: so ours
have titles that no other extension has, and the short name of a method is translated where it is nobody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lib_methods.webui.door import Door, is_json
from lib_methods.webui.former import Former

ROUTES = ("/sdapi/v1/txt2img", "/sdapi/v1/img2img")


def own_title(method: str) -> str:
    """The title of a method's script, and so its name in "alwayson_scripts"."""
    return f"Steer {method}"


def namesake(scripts: Iterable[Any], method: str) -> Any | None:
    """The script of another extension whose title is a method's short name; None where there is none."""
    return next((script for script in scripts if str(script.title()).lower() == method.lower()), None)


Aliases = Mapping[str, Callable[[Any], Any]]
"""Further names of a script, and what makes their arguments the script's own."""


def guard_method(
    app: Any, scripts: Any, method: str, check: Callable[[Any], object], former: Former | None = None
) -> int:
    """As `guard_script`, for a method's script among the host's `scripts` (`scripts_txt2img`), under its own title, and
    under the method's short name and its former ones as long as they are no other extension's. Says in the log where
    the short name is."""
    other = namesake(scripts.scripts, method)
    if other is not None:
        logging.getLogger(__name__).warning(
            "%s: another extension has a script with this name, too (%s). Turn on only one of them for an image. "
            'In API requests "%s" is theirs and "%s" is ours.',
            method,
            getattr(other, "filename", "unknown file"),
            method,
            own_title(method),
        )
    names: dict[str, Callable[[Any], Any]] = {method: lambda arguments: arguments}
    if former is not None:
        names |= dict.fromkeys((own_title(former.title), former.title, *former.peers), former.request)

    def free() -> Aliases:
        return {name: read for name, read in names.items() if namesake(scripts.scripts, name) is None}

    return guard_script(app, own_title(method), check, method, free)


def guard_script(
    app: Any,
    script_title: str,
    check: Callable[[Any], object],
    short_name: str = "",
    aliases: Callable[[], Aliases] = dict,
) -> int:
    """Check a script's arguments in every generation request; returns how many routes are guarded.

    Args:
        app: the host's FastAPI application, its routes already added.
        script_title: the script's key in "alwayson_scripts"; upper and lower case are the same.
        check: called with the value of "args" in a worker thread; raises `ValueError` with a sentence for the caller.
        short_name: what sentences call it.
        aliases: asked for every request for further keys that are accepted; they are replaced by the title.
    """
    from fastapi import Depends, HTTPException, Request
    from fastapi.dependencies.utils import get_parameterless_sub_dependant
    from fastapi.routing import APIRoute
    from starlette.concurrency import run_in_threadpool

    async def refuse_bad_arguments(request: Request) -> None:
        declared = request.headers.get("content-type")
        if not is_json(declared):  # the route itself says so
            return
        try:
            body = await request.json()
        except ValueError:  # not JSON: the route itself says so
            return
        try:
            for arguments in _arguments(body, script_title, aliases()):
                # a browser sends a body without a type to other websites without asking them
                if not declared and (refused := Door().refusal(request.method, request.headers)):
                    raise HTTPException(*refused)
                await run_in_threadpool(check, arguments)
        except ValueError as error:
            raise HTTPException(status_code=422, detail=f"{short_name or script_title}: {error}") from None

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


def _arguments(body: Any, title: str, aliases: Aliases) -> Iterator[Any]:
    """The arguments that a request has for a script. Another name is replaced in the request itself, which the route
    has not read yet."""
    scripts = body.get("alwayson_scripts") if isinstance(body, Mapping) else None
    if not isinstance(scripts, dict):
        return
    readers = {name.lower(): read for name, read in aliases.items()}
    names = [name for name in scripts if name and name.strip().lower() in {title.lower(), *readers}]
    if len(names) > 1:
        raise ValueError(f'"{names[0]}" and "{names[1]}" are names of the same script. Send only one of them.')
    for name in names:
        request = scripts[name]
        if isinstance(request, Mapping) and "args" in request:
            read = readers.get(name.strip().lower())
            if read is not None:
                request = {**request, "args": read(request["args"])}
            yield request["args"]
        elif request and isinstance(request, Mapping):  # the host would go on without the script
            raise ValueError(f'its values belong into "args": "{title}": {{"args": [{{...}}]}}.')
        if name.lower() != title.lower():
            scripts[title] = request
            del scripts[name]
