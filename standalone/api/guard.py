"""Keeps strangers out: other websites in the user's browser, files outside the served folders, oversized requests."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import problem
from .json_body import BadBody, checked, is_json

MAX_BODY = 256 * 1024 * 1024
# gradio's routes for things that this page does not have: a proxy to other servers, traces, code editing
_CLOSED = re.compile(
    r"^(?:/gradio_api)?/(?:proxy=|monitoring|profiling|vibe|undo-vibe|runs|run-history|dev/|"
    r"process_recording|stream/|deep_link|token|component_server)"
)
_FILE = re.compile(r"^(?:/gradio_api)?/file[=/](?P<path>.*)$", re.DOTALL)
_RANGE = re.compile(rb"bytes=(?P<first>\d{1,18})-(?P<last>\d{0,18})|bytes=-\d{1,18}")
_LARGE = 256 * 1024  # a body above this is checked in a thread, so that other requests need not wait
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)


class _TooLarge(Exception):
    """The body grew past the limit while it was read."""


def is_loopback_name(name: str) -> bool:
    """Whether a host name or address, without its port, means this very machine."""
    if name.lower().rstrip(".") == "localhost" or name.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(host_header: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host_header}").hostname or ""
    except ValueError:
        return ""


def _is_own(origin: str, host_header: str) -> bool:
    """Whether an Origin header names this server, as the Host header calls it."""
    try:
        found = urlsplit(origin)
    except ValueError:
        return False
    return found.scheme in ("http", "https") and found.netloc.lower() == host_header.lower()


def may_serve(text: str, roots: Sequence[Path]) -> bool:
    """Whether the file route may give out `text`: an absolute path inside one of `roots`, also after symbolic links.

    The text is compared before the file system is asked: merely asking for a UNC path makes Windows call that machine.
    """
    if "\0" in text or not Path(text).is_absolute() or text.startswith(("\\\\", "//")):
        return False
    plain = Path(os.path.normpath(text))
    if ".." in Path(text).parts or not any(_inside(plain, root) for root in roots):
        return False
    try:
        real = plain.resolve(strict=True)
        return real.is_file() and any(_inside(real, root.resolve()) for root in roots)
    except (OSError, RuntimeError):
        return False


def _inside(path: Path, folder: Path) -> bool:
    return folder == path or folder in path.parents


class Guard:
    """ASGI middleware around the whole app.

    `roots` are the folders whose files may be given out; `local_only` says that the server listens on loopback, where
    a name other than this machine's in the Host header means DNS rebinding.
    """

    def __init__(self, app: ASGIApp, *, roots: Sequence[Path], local_only: bool, max_body: int = MAX_BODY) -> None:
        self.app = app
        self.roots = [Path(os.path.normpath(root)) for root in roots]
        self.local_only = local_only
        self.max_body = max_body

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence when the request must not be answered, by its head alone."""
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        host = host_name(headers.get("host", ""))
        if self.local_only and not is_loopback_name(host):
            return 403, "This server answers on this machine only, as localhost or 127.0.0.1."
        origin = headers.get("origin")
        if origin is not None and not _is_own(origin, headers.get("host", "")):
            return 403, "Requests from other websites are refused."
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, "Requests from other websites are refused."
        path = scope["path"]
        if _CLOSED.match(path):
            return 404, "There is nothing here."
        found_file = _FILE.match(path)
        if found_file and not may_serve(found_file["path"], self.roots):
            return 403, "This file is not served."
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "The length of the request is not a number."
        if int(length) > self.max_body:
            return 413, f"The request is larger than {self.max_body // 2**20} MiB."
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and self.refusal(scope) is not None:
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        refused = self.refusal(scope)
        if refused is not None:
            await problem(*refused)(scope, receive, send)
            return
        await self._limited(_without_bad_range(scope), receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, too_large, started = 0, False, False

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
                headers: list[Any] = list(message.get("headers", []))
                headers += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                if any(key.lower() == b"content-type" and b"text/html" in value for key, value in headers):
                    headers.append((b"content-security-policy", _POLICY.encode()))
                message = {**message, "headers": headers}
            await send(message)

        with contextlib.suppress(_TooLarge):
            try:
                scope, read = await _json_checked(scope, counted)
            except BadBody as error:
                await problem(422, str(error), "RequestValidationError")(scope, counted, with_headers)
                return
            await self.app(scope, read, with_headers)
        if too_large and not started:
            await problem(413, f"The request is larger than {self.max_body // 2**20} MiB.")(scope, receive, send)


async def _json_checked(scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """The request with its JSON body read and checked; other requests as they are. Raises BadBody."""
    types = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"content-type"]
    if scope["method"] in ("GET", "HEAD", "OPTIONS") or not is_json(types[0] if types else None):
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
        body = await asyncio.to_thread(checked, body) if len(body) > _LARGE else checked(body)
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
    headers = [pair for pair in scope["headers"] if pair[0].lower() != b"range" or _is_one_range(pair[1])]
    return scope if len(headers) == len(scope["headers"]) else {**scope, "headers": headers}


def _is_one_range(value: bytes) -> bool:
    found = _RANGE.fullmatch(value.strip())
    return found is not None and (not found["last"] or int(found["first"]) <= int(found["last"]))
