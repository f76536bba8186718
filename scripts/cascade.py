"""The Cascade tab: small candidates from a pixel cascade (DeepFloyd IF), and larger images of the chosen ones. What it
does is in lib_methods/cascade.

API, where the host offers one: `/cascade/v1/...`, see lib_methods/cascade/tab/handlers.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import paths, script_callbacks, shared, ui_components

from lib_methods.cascade.tab.handlers import TabHandlers, add_routes
from lib_methods.cascade.tab.page import build_tab
from lib_methods.hosts.models import cascade_places
from lib_methods.hosts.training import device_environment, room_of_host
from lib_methods.jobs.files import CASCADE
from lib_methods.jobs.job import Jobs
from lib_methods.webui.door import Door, is_reachable

JOBS = Jobs.in_folder(
    Path(paths.data_path) / "cascade",
    room_of_host(),
    lambda files, settings, names: list(names),
    device_environment(),
    CASCADE,
)
HANDLERS = TabHandlers(JOBS, cascade_places, paths=not is_reachable(shared.cmd_opts))


def make_tab() -> list[tuple[Any, str, str]]:
    """The tab, as the host's callback wants it."""
    return [(build_tab(HANDLERS, ui_components.ToolButton), CASCADE.title, "cascade")]


def _add_api(demo: Any, app: Any) -> None:
    if getattr(shared.cmd_opts, "api", False):
        add_routes(app, HANDLERS, Door.of_host(shared.cmd_opts))


script_callbacks.on_ui_tabs(make_tab)
script_callbacks.on_app_started(_add_api)
