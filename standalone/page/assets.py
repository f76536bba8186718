"""The page's own scripts and styles and those of the extensions, each under its own address."""

from __future__ import annotations

import html
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from standalone.host.scripts import loading

STATIC = Path(__file__).resolve().parent / "static"
OWN = ("host.js", "progress.js", "memory.js", "lightbox.js", "page.css")
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"}


class Assets:
    """A fixed table from address to file, made once: no part of a request ever becomes a path."""

    def __init__(self) -> None:
        files = [STATIC / name for name in OWN]
        files += [Path(file.path) for file in loading.list_scripts("javascript", ".js")]
        files += [Path(file.path) for file in loading.list_scripts("javascript", ".mjs")]
        files += [Path(path) for path in loading.list_files_with_name("style.css")]
        self.files = {f"{number}/{path.name}": path for number, path in enumerate(files)}

    def head(self) -> str:
        """The tags for the page's head, in order: the host's helpers first, since the others use them."""
        tags = []
        for name, path in self.files.items():
            address = f"/steer/{html.escape(name, quote=True)}?{int(path.stat().st_mtime)}"
            if path.suffix == ".css":
                tags.append(f'<link rel="stylesheet" href="{address}">')
            elif path.suffix == ".mjs":
                tags.append(f'<script type="module" src="{address}"></script>')
            else:
                tags.append(f'<script src="{address}"></script>')
        return "\n".join(tags)

    def router(self) -> APIRouter:
        """The route that serves them."""
        router = APIRouter()

        @router.get("/steer/{name:path}", include_in_schema=False)
        async def asset(name: str) -> FileResponse:
            path = self.files.get(name)
            if path is None:
                raise HTTPException(404, "There is nothing here.")
            return FileResponse(path, media_type=_TYPES[path.suffix], headers={"cache-control": "no-cache"})

        return router


class HeadTags:
    """ASGI middleware that puts tags at the end of the page's head.

    gradio adds what it is given as `head` when its own script runs: out of order, and after the page is parsed.
    """

    def __init__(self, app: ASGIApp, *, tags: str) -> None:
        self.app = app
        self.tags = tags.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("", "/") or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        # uncompressed, or there would be no </head> to find
        plain = {**scope, "headers": [(key, value) for key, value in scope["headers"] if key != b"accept-encoding"]}
        start: Message = {}
        body = b""

        async def with_tags(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            page = body.replace(b"</head>", self.tags + b"</head>", 1)
            headers = [(key, value) for key, value in start["headers"] if key.lower() != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(page)).encode())]})
            await send({"type": "http.response.body", "body": page})

        await self.app(plain, receive, with_tags)
