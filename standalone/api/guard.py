"""Keeps strangers out: other websites in the user's browser, files outside the served folders, oversized requests."""

from __future__ import annotations

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

MAX_BODY = 256 * 1024 * 1024
# gradio's routes for things that this page does not have: a proxy to other servers, traces, code editing
_CLOSED = re.compile(
    r"^(?:/gradio_api)?/(?:proxy=|monitoring|profiling|vibe|undo-vibe|runs|run-history|dev/|"
    r"process_recording|stream/|deep_link|token|component_server)"
)
_FILE = re.compile(r"^(?:/gradio_api)?/file[=/](?P<path>.*)$", re.DOTALL)
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
        if origin is not None:
            found = urlsplit(origin)
            same = found.scheme in ("http", "https") and found.netloc.lower() == headers.get("host", "").lower()
            if not same:
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
        if not length.isdigit():
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
        await self._limited(scope, receive, send)

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
            await self.app(scope, counted, with_headers)
        if too_large and not started:
            await problem(413, f"The request is larger than {self.max_body // 2**20} MiB.")(scope, receive, send)
