"""How long a pass through a UNet takes that is not there yet: its operations over the device's speed.

The speed is measured by a short probe, products of matrices for less than a tenth of a second, once for each device and
precision in the life of a process.
"""

from __future__ import annotations

import threading
import time

import torch

from .memory import DTYPES
from .operations import Work
from .places import wait_for

# What a UNet gets of the speed of plain products; the rest goes into norms, activations and small matrices. CPU:
# measured on one core with UNets of 17, 66 and 224 million parameters, 1 to 8 latents of 16 x 16 or 32 x 32: .53 to
# .65. GPU: not measured, an assumption for SD1 and larger in half precision; it may be wrong by half.
_SHARE = {"cpu": 0.57, "cuda": 0.4}
# Seconds that a layer takes whatever its size. A CPU waits for it before it computes (measured: 65 to 130
# microseconds, UNets of 1 and 4 million parameters, latents of 8 x 8). A GPU computes meanwhile, and the longer of both
# counts (assumed).
_LAYER = {"cpu": 100e-6, "cuda": 90e-6}
_SIDES = {"cpu": 512, "cuda": 4096}  # of the probe's matrices
_PROBE = 0.07  # seconds
_KNOWN: dict[tuple[str, str], float] = {}
_GUARD = threading.Lock()


def forward_seconds(work: Work, rows: int, cells: tuple[int, int], device: torch.device, speed: float) -> float:
    """About what a forward pass takes. rows: pictures in it. cells: height and width of the latent. speed: as
    `known_speed` gives it."""
    computing = rows * work.multiply_adds(*cells) / (speed * _SHARE.get(device.type, _SHARE["cpu"]))
    starting = work.layers * _LAYER.get(device.type, _LAYER["cpu"])
    return max(computing, starting) if device.type == "cuda" else computing + starting


def known_speed(device: torch.device, precision: str, may_probe: bool = True) -> float | None:
    """Multiply-adds a second. None: it has not been measured, and may not be now, or cannot be, for lack of memory."""
    key = (str(device), precision)
    with _GUARD:
        if key not in _KNOWN and may_probe:
            measured = _probe(device, DTYPES[precision])
            if measured is not None:
                _KNOWN[key] = measured
        return _KNOWN.get(key)


@torch.no_grad()
def _probe(device: torch.device, dtype: torch.dtype) -> float | None:
    """The speed of the fastest product within the probe's time: others may use the machine meanwhile."""
    side = _SIDES.get(device.type, _SIDES["cpu"])
    try:
        matrix = torch.full((side, side), 0.01, device=device, dtype=dtype)
        wait_for(matrix @ matrix)  # the first one is slower
        end, least = time.perf_counter() + _PROBE, float("inf")
        while (started := time.perf_counter()) < end:
            wait_for(matrix @ matrix)
            least = min(least, time.perf_counter() - started)
        return side**3 / least
    except RuntimeError:  # no memory for it, or no such products on this device
        return None
