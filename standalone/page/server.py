"""The server: API and page in one application, behind the guard."""

from __future__ import annotations

import dataclasses
import functools
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from lib_methods.webui.door import Door, is_account, page_accounts
from standalone.api.errors import add_handlers
from standalone.api.guard import MAX_BODY, Guard
from standalone.api.routes import add_api
from standalone.host import callbacks, shared
from standalone.setup.environment import stay_local

from .assets import Assets, HeadTags
from .layout import build_page, theme
from .results import clean_scratch


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
    page = build_page(host.queue, Path(host.data_dir))
    assets = Assets()
    app = FastAPI(title="Steer", docs_url=None, redoc_url=None, openapi_url="/sdapi/v1/openapi.json")
    add_handlers(app)
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
