"""Refuses other websites in the user's browser, files outside the served folders, and oversized requests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib_methods.files import is_file_inside
from lib_methods.webui.door import NO_LOGIN, NOT_UPLOADED, READING, Door, is_json, is_own

from .errors import problem

MAX_BODY = 256 * 1024 * 1024
# gradio's routes for things that this page does not have: a proxy to other servers, traces, code editing
_CLOSED = re.compile(
    r"^(?:/gradio_api)?/(?:proxy=|monitoring|profiling|vibe|undo-vibe|runs|run-history|dev/|"
    r"process_recording|stream/|deep_link|token|component_server)"
)
_FILE = re.compile(r"^(?:/gradio_api)?/file[=/](?P<path>.*)$", re.DOTALL)
_FORMS = re.compile(r"^(?:(?:/gradio_api)?/upload|/login)/?$")  # the only bodies that are not JSON
_PAGE_CALL = re.compile(r"^/gradio_api/")
_API, _INTERNAL = re.compile(r"^/(?:sdapi|docs)(?:/|$)"), re.compile(r"^/internal(?:/|$)")
_RANGE = re.compile(rb"bytes=(?P<first>\d{1,18})-(?P<last>\d{0,18})|bytes=-\d{1,18}")
_LARGE = 256 * 1024  # a body above this is checked in a thread, so that other requests need not wait
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
_FILE_POLICY = "default-src 'none'; sandbox"
# what a browser shows without running anything in it; every other file is downloaded
_INERT = {f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "avif", "bmp")}


class _TooLarge(Exception):
    """The body grew past the limit while it was read."""


class Guard:
    """ASGI middleware around the whole app.

    `roots` are the folders whose files may be given out, `uploads` those whose files an event of the page may name.
    `page_login` says whether the headers carry the login of the page; None where the page asks for none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        door: Door,
        roots: Sequence[Path],
        uploads: Sequence[Path] = (),
        page_login: Callable[[Headers], bool] | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        self.app = app
        self.door = door
        self.roots = _both_ways(roots)
        self.uploads = _both_ways(uploads)
        self.page_login = page_login
        self.max_body = max_body

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence when the request must not be answered, by its head alone."""
        headers, path = Headers(scope=scope), scope["path"]
        method = "GET" if scope["type"] == "websocket" else scope["method"]
        refused = self.door.refusal("GET" if _FORMS.match(path) else method, headers)
        if refused is not None:
            return refused
        if _CLOSED.match(path):
            return 404, "There is nothing here."
        if not self._may_enter(path, headers):
            return 401, NO_LOGIN
        found_file = _FILE.match(path)
        if found_file and not is_file_inside(found_file["path"], self.roots):
            return 403, "This file is not served."
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "The length of the request is not a number."
        if int(length) > self.max_body:
            return 413, f"The request is larger than {self.max_body // 2**20} MiB."
        return None

    def _may_enter(self, path: str, headers: Headers) -> bool:
        """Whether the request has the login, where one is needed. The page itself asks in gradio's way."""
        by_page = self.page_login is not None and self.page_login(headers)
        if _API.match(path):
            return by_page or self.door.knows(headers)
        return not _INTERNAL.match(path) or self.page_login is None or by_page

    def _check_upload(self, scope: Scope) -> Callable[[Mapping[str, Any]], None] | None:
        """What looks at the objects in a call of the page: a file must be one that was uploaded. None: other requests.

        gradio checks this itself for applications that it has started, not for those inside another one.
        """
        if not _PAGE_CALL.match(scope["path"]):
            return None
        host = Headers(scope=scope).get("host", "")

        def check(found: Mapping[str, Any]) -> None:
            path, url = found.get("path"), found.get("url")
            if isinstance(path, str) and not is_file_inside(path, self.uploads):
                raise BadBody(NOT_UPLOADED)
            if isinstance(url, str) and not _is_of_page(url, host):
                raise BadBody(NOT_UPLOADED)

        return check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and self.refusal(scope) is not None:
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        refused = self.refusal(scope)
        if refused is not None:
            answer = problem(*refused)
            if refused[0] == 401 and _API.match(scope["path"]):  # else the browser asks beside the login page
                answer.headers["www-authenticate"] = "Basic"
            await answer(scope, receive, send)
            return
        await self._limited(_without_bad_range(scope), receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, too_large, started = 0, False, False
        is_file = _FILE.match(scope["path"]) is not None

        async def counted() -> Message:
            nonlocal size, too_large
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                too_large = True
                raise _TooLarge
            return message

        async def with_headers(message: Message) -> None:
            nonlocal started
            if too_large and not started:
                return  # the application's own words for a body that broke off
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": _with_safety(message.get("headers", []), is_file)}
            await send(message)

        with contextlib.suppress(_TooLarge):
            try:
                scope, read = await _json_checked(scope, counted, self._check_upload(scope))
            except BadBody as error:
                await problem(422, str(error), "RequestValidationError")(scope, counted, with_headers)
                return
            await self.app(scope, read, with_headers)
        if too_large and not started:
            await problem(413, f"The request is larger than {self.max_body // 2**20} MiB.")(scope, receive, send)


def _both_ways(folders: Sequence[Path]) -> list[Path]:
    """Each folder as it is written and as it is after symbolic links."""
    return [way for folder in folders for way in (Path(os.path.normpath(folder)), folder.resolve())]


def _is_of_page(url: str, host: str) -> bool:
    """Whether an address in a file's description is data, or on this server: no other is ever requested."""
    scheme = re.match(r"[a-z][a-z0-9+.-]*:", url.strip(), re.IGNORECASE)
    if scheme is None:
        return not url.strip().startswith(("//", "\\"))
    return scheme[0].lower() in ("data:", "blob:") or is_own(url, host)


def _with_safety(headers: Sequence[tuple[bytes, bytes]], is_file: bool) -> list[tuple[bytes, bytes]]:
    """An answer's headers with those that keep a browser from running what it gets."""
    kind = next((value for key, value in headers if key.lower() == b"content-type"), b"")
    named = kind.split(b";")[0].strip().decode("latin-1").lower()
    kept = [(key, value) for key, value in headers if not (is_file and key.lower() == b"content-security-policy")]
    if is_file and named not in _INERT and named != "application/json":
        shown = (b"content-type", b"content-disposition")
        disposition = next((value for key, value in kept if key.lower() == shown[1]), b"")
        name = disposition.partition(b";")[2]
        kept = [pair for pair in kept if pair[0].lower() not in shown]
        kept += [(shown[0], b"application/octet-stream"), (shown[1], b"attachment" + (b";" + name if name else b""))]
    kept += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
    if is_file:
        kept.append((b"content-security-policy", _FILE_POLICY.encode()))
    elif named == "text/html":
        kept.append((b"content-security-policy", _POLICY.encode()))
    return kept


async def _json_checked(
    scope: Scope, receive: Receive, check_object: Callable[[Mapping[str, Any]], None] | None
) -> tuple[Scope, Receive]:
    """The request with its JSON body read and checked; other requests as they are. Raises BadBody."""
    if scope["method"] in READING or not is_json(Headers(scope=scope).get("content-type")):
        return scope, receive
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return scope, _replay(message, receive)
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(pieces)
    pieces.clear()
    if body:
        look = functools.partial(checked, body, check_object)
        body = await asyncio.to_thread(look) if len(body) > _LARGE else look()
        own = (b"content-length", b"content-type")
        headers = [pair for pair in scope["headers"] if pair[0].lower() not in own]
        headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        scope = {**scope, "headers": headers}
    return scope, _replay({"type": "http.request", "body": body, "more_body": False}, receive)


def _replay(message: Message, receive: Receive) -> Receive:
    """What gives `message` first and then what `receive` gives."""
    waiting = [message]

    async def read() -> Message:
        return waiting.pop() if waiting else await receive()

    return read


def _without_bad_range(scope: Scope) -> Scope:
    """The request without a Range header that is malformed or names several ranges: a server may ignore those."""

    def is_one_range(value: bytes) -> bool:
        found = _RANGE.fullmatch(value.strip())
        return found is not None and (not found["last"] or int(found["first"]) <= int(found["last"]))

    headers = [pair for pair in scope["headers"] if pair[0].lower() != b"range" or is_one_range(pair[1])]
    return scope if len(headers) == len(scope["headers"]) else {**scope, "headers": headers}


DEEPEST = 100
# half a character beyond U+FFFF: what is left when text was cut inside an emoji
_HALF = re.compile(
    r"(?P<before>(?<!\\)(?:\\\\)*)"
    r"(?:(?P<pair>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


class BadBody(Exception):
    """The body is refused; the text is a sentence."""


def _no_constant(name: str) -> NoReturn:
    raise BadBody(f"The request has {name} in it, which is not a number.")


def checked(body: bytes, check_object: Callable[[Mapping[str, Any]], None] | None = None) -> bytes:
    """`body` as UTF-8, with the replacement character for text that cannot be encoded. Raises BadBody.

    Refuses what is not JSON, NaN, infinite numbers, and more than 100 levels of nesting. `check_object` is called with
    every object in it, and raises BadBody.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    if "\\u" in text:
        text = _HALF.sub(lambda found: found[0] if found["pair"] else found["before"] + "\\ufffd", text)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise BadBody(f"The request is nested more than {DEEPEST} levels deep.") from None
    except ValueError:
        raise BadBody("The request is not valid JSON.") from None
    _check(value, check_object or (lambda found: None))
    return text.encode()


def _check(value: Any, check_object: Callable[[Mapping[str, Any]], None]) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                check_object(item)
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise BadBody("The request has a number in it that is too large.")
        if not inner:
            return
        level = inner
    raise BadBody(f"The request is nested more than {DEEPEST} levels deep.")
