"""The server: API and page in one application, behind the guard."""

from __future__ import annotations

import dataclasses
import functools
import html
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import FileResponse, Response
from gradio.routes import App
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib_methods.webui.door import Door, is_account, page_accounts
from standalone.api.errors import add_handlers
from standalone.api.guard import MAX_BODY, Guard
from standalone.api.routes import add_api
from standalone.history.index import History
from standalone.history.routes import make_router as history_router
from standalone.host import callbacks, localization, shared
from standalone.host.scripts import loading
from standalone.setup.environment import stay_local

from .layout import build_page, theme
from .results import clean_scratch

STATIC = Path(__file__).resolve().parent / "static"
OWN = (
    *("host.js", "localize.js", "progress.js", "memory.js", "lightbox.js", "prompt_keys.js"),
    *("history_grid.js", "history.js", "history_viewer.js", "page.css", "history.css"),
)
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
        tags = ['<script src="/steer/localization.js"></script>']
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

        @router.get("/steer/localization.js", include_in_schema=False)
        def translations() -> Response:
            text = localization.script(shared.opts.localization)
            return Response(text, media_type="text/javascript", headers={"cache-control": "no-store"})

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


def served_folders(host: Any) -> list[Path]:
    """The folders whose files a browser may get: outputs, feedback images, and gradio's copies for the galleries."""
    data_dir = Path(host.data_dir)
    folders = [Path(host.output_dir), data_dir / "feedback", data_dir / "tmp" / "gradio", data_dir / "tmp" / "page"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return [folder.resolve() for folder in folders]


def build_app(
    host: Any,
    *,
    local_only: bool = True,
    max_body: int = MAX_BODY,
    allowed_hosts: Sequence[str] = (),
    gradio_auth: str | None = None,
    gradio_auth_path: Path | None = None,
    api_auth: str | None = None,
) -> FastAPI:
    """The application for a started host.

    `local_only`: only requests that name this machine, or one of `allowed_hosts`, are answered. The logins are written
    "name:password,name:password" and guard the page and the API. Raises ValueError with a sentence for bad ones.
    """
    logins = {"gradio_auth": gradio_auth, "gradio_auth_path": gradio_auth_path, "api_auth": api_auth}
    vars(shared.cmd_opts).update(listen=not local_only, allowed_hosts=list(allowed_hosts), **logins)
    door = dataclasses.replace(Door.of_host(shared.cmd_opts), local_only=local_only)
    accounts = page_accounts(shared.cmd_opts)
    stay_local(Path(host.data_dir))
    clean_scratch(Path(host.data_dir))
    folders = served_folders(host)
    history = History(Path(host.output_dir), Path(host.data_dir))
    page = build_page(host.queue, Path(host.data_dir), history)
    assets = Assets()
    app = FastAPI(title="Steer", docs_url=None, redoc_url=None, openapi_url="/sdapi/v1/openapi.json")
    add_handlers(app)
    app.include_router(history_router(history))  # first: nothing below /internal comes after the API
    add_api(app, host.queue)
    app.include_router(assets.router())
    page.has_launched = True  # else gradio does not check what files an event names
    app = gr.mount_gradio_app(
        app,
        page,
        path="",
        auth=functools.partial(is_account, accounts) if accounts else None,
        allowed_paths=[str(folder) for folder in folders],
        show_error=False,
        max_file_size=max_body,
        theme=theme(),
        footer_links=[],
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    # by it a page that kept a task's id sees that the server of that task has stopped meanwhile
    stamp = f'<meta name="steer-server" content="{secrets.token_hex(8)}">'
    app.add_middleware(HeadTags, tags=stamp + assets.head())
    app.add_middleware(GZipMiddleware, compresslevel=5)
    app.add_middleware(
        Guard,
        door=door,
        roots=folders,
        uploads=[Path(get_upload_folder())],
        page_login=_page_login(app) if accounts else None,
        max_body=max_body,
    )
    _call_app_started(app)
    return app


def _page_login(app: FastAPI) -> Callable[[Headers], bool]:
    """Whether a request has the cookie that gradio gives after the login on its page."""
    inner = next(inner for route in app.routes if isinstance(inner := getattr(route, "app", None), App))

    def is_known(headers: Headers) -> bool:
        cookies = cookie_parser(headers.get("cookie", ""))
        names = (f"access-token-{inner.cookie_id}", f"access-token-unsecure-{inner.cookie_id}")
        return any(inner.tokens.get(cookies.get(name)) is not None for name in names)

    return is_known


def _call_app_started(app: FastAPI) -> None:
    """Lets extensions add routes, and puts those before the page, which would answer to every address."""
    before = len(app.router.routes)
    callbacks.app_started_callback(shared.demo, app)
    added = app.router.routes[before:]
    del app.router.routes[before:]
    app.router.routes[:0] = added
