"""The server: API and page in one application, behind the guard."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from modules import script_callbacks, shared
from standalone.api.errors import add_handlers
from standalone.api.guard import MAX_BODY, Guard
from standalone.api.routes import add_api
from standalone.setup.quiet import stay_local

from .assets import Assets, HeadTags
from .page import build_page, theme
from .results import clean_scratch


def served_folders(host: Any) -> list[Path]:
    """The folders whose files a browser may get: outputs, feedback images, and gradio's copies for the galleries."""
    data_dir = Path(host.data_dir)
    folders = [Path(host.output_dir), data_dir / "feedback", data_dir / "tmp" / "gradio", data_dir / "tmp" / "page"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return [folder.resolve() for folder in folders]


def build_app(host: Any, *, local_only: bool = True, max_body: int = MAX_BODY) -> FastAPI:
    """The application for a started host. `local_only`: only requests that name this machine are answered."""
    stay_local(Path(host.data_dir))
    clean_scratch(Path(host.data_dir))
    folders = served_folders(host)
    page = build_page(host.queue, Path(host.data_dir))
    assets = Assets()
    app = FastAPI(title="Steer", docs_url=None, redoc_url=None, openapi_url="/sdapi/v1/openapi.json")
    add_handlers(app)
    add_api(app, host.queue)
    app.include_router(assets.router())
    app = gr.mount_gradio_app(
        app,
        page,
        path="",
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
    app.add_middleware(Guard, roots=folders, local_only=local_only, max_body=max_body)
    _call_app_started(app)
    return app


def _call_app_started(app: FastAPI) -> None:
    """Lets extensions add routes, and puts those before the page, which would answer to every address."""
    before = len(app.router.routes)
    script_callbacks.app_started_callback(shared.demo, app)
    added = app.router.routes[before:]
    del app.router.routes[before:]
    app.router.routes[:0] = added
