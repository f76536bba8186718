"""The host's model leaves the device while something else needs the memory, and comes back.

AUTOMATIC1111's WebUI and the standalone host have the same functions for it. The forks load their model at each job by
themselves, in parts where memory is short: there it is enough to let it go.
"""

from __future__ import annotations

import gc
import os
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lib_methods.hosts.forge import memory_management
from lib_methods.hosts.models import current_model

MARGIN = 2**30
"""Bytes that generating an image needs beside the model's weights, at least."""


class HostModelRoom:
    """Remembers whether the model is away and why; the host's jobs and the pack's may come in any order."""

    def __init__(self) -> None:
        self._guard = threading.RLock()
        self._away = False
        self._why = ""

    def release(self, why: str) -> None:
        """The model leaves the device, after the job that runs now. why: as in "DreamBooth: Training is running"."""
        with _no_job():
            with self._guard:
                self._away, self._why = True, why
                _send_away()

    def restore(self) -> None:
        """The model comes back, after the job that runs now. Nothing happens if it is there."""
        with _no_job():
            with self._guard:
                if self._away:
                    self._away = False
                    _bring_back()

    def before_job(self) -> str:
        """Called within a job of the host, before it uses the model: a sentence where there is not enough memory.

        Where there is, the model is brought back for this job and those after it.
        """
        with self._guard:
            if not self._away:
                return ""
            if not _fits():
                return f"{self._why} and leaves no memory for generating images. Wait until it ends, or cancel it."
            self._away = False
            _bring_back()
            return ""


_ROOM = HostModelRoom()


def room_of_host() -> HostModelRoom:
    """The single one of this process, however often the host reloads its scripts."""
    return _ROOM


def device_environment() -> dict[str, str]:
    """The variables that let another process see the GPU of the host's `--device-id` as its first one."""
    from modules import shared

    chosen = getattr(shared.cmd_opts, "device_id", None)
    if chosen is None or not str(chosen).isdigit():
        return {}
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    index = int(chosen)
    return {"CUDA_VISIBLE_DEVICES": seen[index] if index < len(seen) else str(index)}


def _no_job() -> AbstractContextManager[Any]:
    """While inside, the host runs no job."""
    try:
        from modules.call_queue import queue_lock
    except ImportError:
        return nullcontext()
    lock: AbstractContextManager[Any] = queue_lock
    return lock


def _send_away() -> None:
    model, fork = current_model(), memory_management()
    if fork is not None:
        fork.unload_all_models()
    elif model is None:
        return
    else:
        from modules import sd_models

        others = getattr(getattr(sd_models, "model_data", None), "loaded_sd_models", ())
        for loaded in (model, *(other for other in others if other is not model)):
            sd_models.send_model_to_cpu(loaded)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _bring_back() -> None:
    model = current_model()
    if model is None or memory_management() is not None:
        return
    from modules import sd_models

    sd_models.send_model_to_device(model)


def _fits() -> bool:
    """Whether the device has room for the model and for generating. A fork leaves on the CPU what does not fit."""
    model, fork = current_model(), memory_management()
    if fork is None and (model is None or getattr(model, "lowvram", False)):
        return True
    from modules import devices

    device = torch.device(devices.device)
    if device.type != "cuda":
        return True
    parameters = {} if fork is not None else {id(value): value for value in model.parameters()}
    needed = sum(value.numel() * value.element_size() for value in parameters.values() if value.device != device)
    free, _ = torch.cuda.mem_get_info(device)
    return bool(free >= needed + MARGIN)


def device() -> torch.device:
    """The host's own GPU; where the host computes elsewhere, the first one that it was given."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = _of_host()
    if own.type == "cuda":
        return torch.device("cuda", 0 if own.index is None else own.index)
    from modules import shared

    chosen = str(getattr(shared.cmd_opts, "device_id", None) or 0)
    known = chosen.isdigit() and int(chosen) < torch.cuda.device_count()
    return torch.device("cuda", int(chosen) if known else 0)


def memory(device: torch.device, occupied: bool) -> int | None:
    """Bytes a new training run can use on a device: what is free, plus what the host's own model will release.

    None for the CPU. The device's total memory if `occupied` by a run that will end first, or if CUDA is not started
    here, since asking would take memory itself.
    """
    if device.type != "cuda":
        return None
    if occupied or not _is_used(device):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(torch.cuda.mem_get_info(device)[0]) + int(torch.cuda.memory_reserved(device))


def may_compute(device: torch.device) -> bool:
    """Whether the host does nothing on it, so that something may be measured there."""
    from modules import shared

    state = shared.state
    if getattr(state, "job", "") or getattr(state, "job_count", 0):
        return False
    return device.type != "cuda" or _is_used(device)


def _is_used(device: torch.device) -> bool:
    """Whether this process computes there. The first use of a GPU takes memory for as long as the process lives, and
    asking for its free memory is one."""
    return _of_host().type == "cuda" or (torch.cuda.is_initialized() and torch.cuda.memory_reserved(device) > 0)


def _of_host() -> torch.device:
    from modules import devices

    return torch.device(devices.device)
