"""An optimizer's state as flat tensors and back, exactly: torch's own way casts it to the weights' type on loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.dreambooth.training.processes import is_sharded, sharded_like, whole

_NUMBER = "#"  # ends the name of what is a plain number in the optimizer

GROUP = "group."
_OF_GROUPS = ("d", "d_max", "d_numerator", "k")  # what Prodigy (prodigyopt) keeps of all weights together


def write_groups(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps beside the states of its weights; nothing for most."""
    first = optimizer.param_groups[0]
    return {
        f"{GROUP}{name}": torch.tensor(float(first[name]), dtype=torch.float64) for name in _OF_GROUPS if name in first
    }


def read_groups(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Puts back what `write_groups` was given. Raises `DreamBoothError` where it is missing."""
    for group in optimizer.param_groups:
        for name in [name for name in _OF_GROUPS if name in group]:
            if f"{GROUP}{name}" not in flat:
                raise DreamBoothError("The saved optimizer is another one: this run cannot be resumed.")
            group[name] = type(group[name])(flat[f"{GROUP}{name}"].item())


def write_states(states: Sequence[Mapping[str, Any]], *, keep: bool = True) -> dict[str, Tensor]:
    """Tensors on the CPU under `<number of the weight>.<name>`, and the count of weights under `weights`. Collective
    where weights are sharded; keep: see `processes.gathered`."""
    flat = {"weights": torch.tensor(len(states))}
    for number, state in enumerate(states):
        for name, value in state.items():
            if isinstance(value, Tensor):
                found = whole(value.detach())
                if keep:
                    flat[f"{number}.{name}"] = found.to("cpu", copy=True).contiguous()
            elif isinstance(value, (int, float)):
                kind = torch.int64 if isinstance(value, int) else torch.float64
                flat[f"{number}.{name}{_NUMBER}"] = torch.tensor(value, dtype=kind)
            else:
                raise TypeError(f"the optimizer keeps {name!r} as {type(value).__name__}, which cannot be saved")
    return flat


def read_states(flat: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """What `write_states` was given, on the weights' devices. Raises `DreamBoothError` where the weights differ."""
    if "weights" not in flat or int(flat["weights"]) != len(parameters):
        raise DreamBoothError("The saved optimizer belongs to other weights: this run cannot be resumed.")
    states: list[dict[str, Any]] = [{} for _ in parameters]
    for key, value in flat.items():
        if key == "weights":
            continue
        number, name = int(key.split(".", 1)[0]), key.split(".", 1)[1]
        parameter = parameters[number]
        if name.endswith(_NUMBER):
            states[number][name[: -len(_NUMBER)]] = value.item()
        else:
            _check_size(name, value, parameter)
            if is_sharded(parameter) and value.ndim:
                states[number][name] = sharded_like(parameter, value)
                continue
            states[number][name] = value.to(_device_of(value, parameter), copy=True)
    return states


def _device_of(value: Tensor, parameter: Tensor) -> torch.device:
    # torch's AdamW counts its steps on the CPU, but for its fused form, which runs on the GPU
    return parameter.device if value.ndim or parameter.is_cuda else torch.device("cpu")


def _check_size(name: str, value: Tensor, parameter: Tensor) -> None:
    # second moments by rows and columns are smaller, and 8-bit states have tables besides
    if name in ("exp_avg", "exp_avg_sq", "square") and value.shape != parameter.shape:
        raise DreamBoothError("The saved optimizer belongs to other weights: this run cannot be resumed.")
    if name == "row" and len(value) != parameter.shape[0]:
        raise DreamBoothError("The saved optimizer belongs to other weights: this run cannot be resumed.")
