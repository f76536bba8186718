"""The DreamBooth tab: a LoRA or checkpoint from photos of a subject. What it does is in
lib_methods/dreambooth.

API, where the host offers one: `/dreambooth/v1/status`, `/plan`, `/start`, `/cancel`, `/resume` and `/use`, see
lib_methods/dreambooth/tab/handlers.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import paths, script_callbacks, scripts, shared, ui_components

from lib_methods.jobs.files import deliver_to
from lib_methods.dreambooth.tab.handlers import TabHandlers, add_routes
from lib_methods.dreambooth.tab.page import build_tab
from lib_methods.hosts import models, training
from lib_methods.hosts.training import device_environment, room_of_host
from lib_methods.jobs.job import Jobs
from lib_methods.webui.door import Door
from lib_methods.webui.gradio_compat import warn

TITLE = "DreamBooth"
ROOM = room_of_host()
JOBS = Jobs.in_folder(Path(paths.data_path) / "dreambooth", ROOM, deliver_to(models.folder_of), device_environment())
HANDLERS = TabHandlers(JOBS, models, training)


class DreamBoothScript(scripts.Script):
    """No controls: a job that comes while a run or the cascade has the device gets the model back, or a message says
    why not."""

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        return []

    def before_process(self, p: Any, *args: Any) -> None:
        sentence = ROOM.before_job()
        if sentence:
            p.comment(sentence)
            if not getattr(p, "is_api", False):
                warn(sentence)
            shared.state.interrupt()


def make_tab() -> list[tuple[Any, str, str]]:
    """The tab, as the host's callback wants it."""
    return [(build_tab(HANDLERS, ui_components.ToolButton), TITLE, "dreambooth")]


def _add_api(demo: Any, app: Any) -> None:
    if getattr(shared.cmd_opts, "api", False):
        add_routes(app, HANDLERS, Door.of_host(shared.cmd_opts))


script_callbacks.on_ui_tabs(make_tab)
script_callbacks.on_app_started(_add_api)
