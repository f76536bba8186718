"""Lists samplers, schedules, upscalers, checkpoints, scripts, settings and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lib_methods.errors import UserError, reason
from standalone.host import lora, shared
from standalone.host.checkpoints import checkpoints_list
from standalone.host.sampling import registry
from standalone.host.sampling.schedulers import schedulers as all_schedulers
from standalone.host.scripts import loading
from standalone.host.scripts.script import ScriptInfo
from standalone.host.settings.rules import as_text
from standalone.host.upscalers import latent_upscale_modes as latent_modes
from standalone.host.upscalers import sd_upscalers

from . import webui_settings
from .checks import check_setting
from .errors import BadRequest
from .models import (
    LatentUpscalerModeItem,
    MemoryResponse,
    PromptStyleItem,
    SamplerItem,
    SchedulerItem,
    ScriptsList,
    SDModelItem,
    UpscalerItem,
)


def samplers() -> list[SamplerItem]:
    return [
        SamplerItem(name=s.name, aliases=s.aliases, options={k: str(v) for k, v in s.options.items()})
        for s in registry.all_samplers
    ]


def schedulers() -> list[SchedulerItem]:
    return [
        SchedulerItem(
            name=s.name,
            label=s.label,
            aliases=s.aliases,
            default_rho=s.default_rho,
            need_inner_model=s.need_inner_model,
        )
        for s in all_schedulers
    ]


def upscalers() -> list[UpscalerItem]:
    return [
        UpscalerItem(
            name=u.name,
            model_name=getattr(u.scaler, "model_name", None),
            model_path=None,
            model_url=None,
            scale=u.scale,
        )
        for u in sd_upscalers
    ]


def latent_upscale_modes() -> list[LatentUpscalerModeItem]:
    return [LatentUpscalerModeItem(name=name) for name in latent_modes]


def checkpoints() -> list[SDModelItem]:
    """The checkpoints. `filename` is the name of the file alone: where it is on the server is nobody's business."""
    return [
        SDModelItem(
            title=c.title,
            model_name=c.model_name,
            hash=c.shorthash,
            sha256=c.sha256,
            filename=Path(c.filename).name,
            config=None,
        )
        for c in checkpoints_list.values()
    ]


def styles() -> list[PromptStyleItem]:
    return [PromptStyleItem(name=s[0], prompt=s[1], negative_prompt=s[2]) for s in shared.prompt_styles.styles.values()]


def loras() -> list[dict[str, Any]]:
    """All LoRAs that prompts can name. `path` is within models/Lora, for the same reason."""
    folder = lora.folder()
    return [
        {
            "name": found.name,
            "alias": found.alias,
            "path": Path(found.filename).relative_to(folder.folder).as_posix(),
            "metadata": found.metadata,
        }
        for found in folder.all()
    ]


def refresh_loras() -> None:
    """Looks through the folder of LoRAs again."""
    lora.folder().refresh()


def scripts_list() -> ScriptsList:
    return ScriptsList(
        txt2img=[s.name for s in loading.scripts_txt2img.scripts if s.name],
        img2img=[s.name for s in loading.scripts_img2img.scripts if s.name],
    )


def script_info() -> list[ScriptInfo]:
    runners = (loading.scripts_txt2img, loading.scripts_img2img)
    return [script.api_info for runner in runners for script in runner.scripts if script.api_info is not None]


def _shown(key: str) -> bool:
    """Settings with folders of the server in them are not shown."""
    info = shared.opts.data_labels.get(key)
    return not (info is not None and info.restrict_api) and not key.startswith("outdir_")


def options() -> dict[str, Any]:
    """All settings and their values; folders of the server are left empty."""
    return {key: value if _shown(key) else "" for key, value in shared.opts.data.items()}


def check_options(wanted: dict[str, Any]) -> dict[str, Any]:
    """The settings in `wanted` as they are kept, without the WebUI's that this host does not have.

    BadRequest unless each is there and can have its value.
    """
    for key in wanted:
        if key not in shared.opts.data_labels and key not in webui_settings.NAMES:
            raise BadRequest(f"There is no setting named {as_text(key)}.")
    known = {key: value for key, value in wanted.items() if key in shared.opts.data_labels}
    # what `options` leaves empty comes back empty
    return {key: check_setting(key, value, "options") for key, value in known.items() if value != "" or _shown(key)}


def set_options(wanted: dict[str, Any]) -> None:
    """Sets and saves settings, all or none. Call it on the job queue's thread: a job must not meet the change.

    A checkpoint is loaded at once. BadRequest, or UserError when it cannot be loaded or the file cannot be written.
    """
    with shared.opts.undone_on_error():
        for key, value in check_options(wanted).items():
            if not shared.opts.set(key, value, is_api=True) and shared.opts.data.get(key) != value and _shown(key):
                raise BadRequest(f"The setting '{key}' could not be changed to {as_text(value)}.", 500)
        try:
            shared.opts.save(shared.config_filename)
        except OSError as error:
            raise UserError(f"The settings cannot be saved. {reason(error)}") from error


def cmd_flags() -> dict[str, Any]:
    """The command line options that scripts look at, without the folders and logins of the server."""
    hidden = ("dir", "path", "ckpt", "auth")
    flags = {key: value for key, value in vars(shared.cmd_opts).items() if not any(part in key for part in hidden)}
    return {
        key: value if isinstance(value, (bool, int, float, str, type(None), list)) else str(value)
        for key, value in flags.items()
    }


def _ram() -> dict[str, Any]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
        used = page * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (AttributeError, ValueError, OSError, IndexError):
        return {"error": "unavailable"}
    return {"free": total - used, "used": used, "total": total}


def _cuda() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"error": "unavailable"}
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    found: dict[str, Any] = {"system": {"free": free, "used": total - free, "total": total}}
    for name, key in (
        ("active", "active_bytes"),
        ("allocated", "allocated_bytes"),
        ("reserved", "reserved_bytes"),
        ("inactive", "inactive_split_bytes"),
    ):
        found[name] = {"current": stats.get(f"{key}.all.current", 0), "peak": stats.get(f"{key}.all.peak", 0)}
    found["events"] = {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)}
    return found


def memory() -> MemoryResponse:
    """Memory of this process and of the GPU, in bytes."""
    return MemoryResponse(ram=_ram(), cuda=_cuda())
