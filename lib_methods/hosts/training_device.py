"""The device that a training will get, as it is while the host still runs on it.

A training is a process of its own, which takes the GPU if there is one; the host's model leaves before it starts.
"""

from __future__ import annotations

import torch


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
    """Bytes that a training will find free there: what is free, and what this process holds, the host's model.

    occupied: by a training, whose memory will be free again; then, as where asking would take memory, this is all that
    the device has.
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
