"""Optimizers: AdamW, 8-bit AdamW, Adafactor, Prodigy, at the end of a step or fused into the backward pass.

Fused, each weight moves as soon as its gradient is there, and the gradient is let go at once: there is never more than
one of them. The price: gradients cannot be gathered over several passes, and their norm over all weights is not known
in time. So the clipping differs (`Stepper`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lib_methods.dreambooth.training.adafactor import Adafactor, Rounding, norm_of
from lib_methods.dreambooth.training.processes import clip_gradients, gathered, is_sharded, sharded_like
from lib_methods.errors import UserError
from lib_methods.jobs.packages import OPTIONAL

_OF_GROUPS = ("d", "d_max", "d_numerator", "k")  # what Prodigy (prodigyopt) keeps of all weights together


@dataclass(frozen=True)
class Group:
    """Weights that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


def has_8bit() -> bool:
    """Whether 8-bit AdamW can be asked for."""
    return importlib.util.find_spec("bitsandbytes") is not None


def check_available(name: str) -> None:
    """Raises `UserError` where the package of an optimizer that was asked for is not there."""
    if name == "prodigy" and importlib.util.find_spec("prodigyopt") is None:
        version = OPTIONAL[name].install
        raise UserError(
            f"Prodigy needs the package prodigyopt: python -m pip install prodigyopt=={version}. Or choose AdamW."
        )


def build_optimizer(
    groups: Sequence[Group],
    name: str,
    *,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    fused: bool = False,
    scaled: bool = False,
    seed: int = 0,
) -> Stepper:
    """The optimizer `name` ("adamw", "adamw8bit", "adafactor", "prodigy") over `groups`.

    Settings and plan see to it that these go together: Adafactor alone for weights in bf16, no fused backward pass with
    Prodigy or a scaled loss. clip: the largest norm of the gradients, 0 for any. fused: move the weights within the
    backward pass. scaled: scale the loss, for fp16. seed: of the stochastic rounding. Raises `UserError` where a
    package is missing.
    """
    parameters = [p for group in groups for p in group.parameters]
    rounding = Rounding(seed)
    if fused:
        apart = [(group, [parameter]) for group in groups for parameter in group.parameters]
        made = [_optimizer(name, [part], weight_decay, rounding, number) for number, part in enumerate(apart)]
        return Stepper(made, parameters, clip, fused=True, scaled=False)
    whole = _optimizer(name, [(group, list(group.parameters)) for group in groups], weight_decay, rounding, 0)
    return Stepper([whole], parameters, clip, fused=False, scaled=scaled)


class Stepper:
    """Moves the weights.

    A step is `backward` (once, or several times with the loss divided by their number), `step`, `zero`. Unfused, the
    norm of all gradients together is held to `clip`, and a step whose gradients are not finite is left out. Fused, what
    is not finite in a gradient counts as zero, and AdamW has each tensor's own gradient held to `clip`. Adafactor needs
    no such bound, as the size of gradients does not matter to it; it holds the RMS of each update to 1, fused or not.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: Sequence[nn.Parameter],
        clip: float,
        *,
        fused: bool,
        scaled: bool,
    ) -> None:
        self._optimizers, self._parameters, self._clip = list(optimizers), list(parameters), clip
        self.fused = fused
        self.scale = LossScale() if scaled else None
        self.gradient_norm = math.nan
        self._norms: list[Tensor] = []  # of the fused pass, as gradients come
        if fused:
            for parameter, optimizer in zip(self._parameters, self._optimizers):
                parameter.register_post_accumulate_grad_hook(self._moving(optimizer))

    def backward(self, loss: Tensor, lr_scale: float = 1.0) -> None:
        """Gradients of `loss`, a scalar; fused, the weights move here, `lr_scale` times their groups' rate."""
        if self.fused:
            self._set_rates(lr_scale)
        (loss if self.scale is None else loss * self.scale.value).backward()

    def step(self, lr_scale: float = 1.0) -> bool:
        """Move the weights, `lr_scale` times their groups' rate.

        False if gradients were not finite: unfused, nothing was moved then. `gradient_norm` is the norm of all of them
        before clipping.
        """
        if self.fused:
            norms, self._norms = self._norms, []
            self.gradient_norm = float(torch.stack([n.to(norms[0].device) for n in norms]).norm()) if norms else 0.0
            return math.isfinite(self.gradient_norm)
        there = [p for p in self._parameters if p.grad is not None]
        if self.scale is not None:
            for parameter in there:
                assert parameter.grad is not None
                parameter.grad.div_(self.scale.value)
        self.gradient_norm = clip_gradients(there, self._clip or math.inf)
        finite = math.isfinite(self.gradient_norm)
        if self.scale is not None:
            self.scale.update(finite)
        if finite:
            self._set_rates(lr_scale)
            for optimizer in self._optimizers:
                optimizer.step()
        return finite

    def zero(self) -> None:
        """Let the gradients go."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """All that a later process needs to continue as if there had been no pause: tensors on the CPU, in flat names,
        exactly, as torch would cast them to the weights' type on loading.

        `weights` is their number, `<number>.<name>` a state of one of them, with `#` behind where it is a plain number.
        Of sharded weights the main process has it; see `processes.gathered`.
        """
        flat = {"weights": torch.tensor(len(self._parameters))}
        for number, parameter in enumerate(self._parameters):
            # .get, as `state` makes an empty entry for whoever asks
            for name, value in self._optimizer_of(number).state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    flat[f"{number}.{name}"] = gathered(value).to("cpu", copy=True).contiguous()
                elif isinstance(value, (int, float)):
                    kind = torch.int64 if isinstance(value, int) else torch.float64
                    flat[f"{number}.{name}#"] = torch.tensor(value, dtype=kind)
                else:
                    raise TypeError(f"the optimizer keeps {name!r} as {type(value).__name__}, which cannot be saved")
        first = self._optimizers[0].param_groups[0]
        for name in [name for name in _OF_GROUPS if name in first]:
            flat[f"group.{name}"] = torch.tensor(float(first[name]), dtype=torch.float64)
        if self.scale is not None:
            flat["scale.value"] = torch.tensor(self.scale.value, dtype=torch.float64)
            flat["scale.good"] = torch.tensor(self.scale.good)
        return flat

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave, fused or not. Raises `UserError` where it does not fit."""
        for group in self._optimizers[0].param_groups:
            for name in [name for name in _OF_GROUPS if name in group]:
                if f"group.{name}" not in state:
                    raise UserError("The saved optimizer is another one: this run cannot be resumed.")
                group[name] = type(group[name])(state[f"group.{name}"].item())
        other = UserError("The saved optimizer belongs to other weights: this run cannot be resumed.")
        if "weights" not in state or int(state["weights"]) != len(self._parameters):
            raise other
        states: list[dict[str, Any]] = [{} for _ in self._parameters]
        for key, value in state.items():
            number, _, name = key.partition(".")
            if not number.isdecimal():
                continue
            parameter, values = self._parameters[int(number)], states[int(number)]
            if name.endswith("#"):
                values[name[:-1]] = value.item()
                continue
            # second moments by rows and columns are smaller, and 8-bit states have tables besides
            whole = name in ("exp_avg", "exp_avg_sq", "square")
            if (whole and value.shape != parameter.shape) or (name == "row" and len(value) != parameter.shape[0]):
                raise other
            if is_sharded(parameter) and value.ndim:
                values[name] = sharded_like(parameter, value)
            else:
                # torch's AdamW counts its steps on the CPU, but for its fused form, which runs on the GPU
                place = parameter.device if value.ndim or parameter.is_cuda else torch.device("cpu")
                values[name] = value.to(place, copy=True)
        for index, (parameter, values) in enumerate(zip(self._parameters, states)):
            self._optimizer_of(index).state[parameter] = values
        if self.scale is not None:
            if "scale.value" not in state:
                raise UserError("The saved run did not use fp16: its loss scale is missing.")
            self.scale.value, self.scale.good = float(state["scale.value"]), int(state["scale.good"])

    @property
    def step_size(self) -> float:
        """What the optimizer itself multiplies the rate with: Prodigy's estimate, else 1."""
        return float(self._optimizers[0].param_groups[0].get("d", 1.0))

    def _optimizer_of(self, number: int) -> torch.optim.Optimizer:
        return self._optimizers[number] if self.fused else self._optimizers[0]

    def _set_rates(self, lr_scale: float) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_rate"] * lr_scale

    def _moving(self, optimizer: torch.optim.Optimizer) -> Any:
        clip = 0.0 if isinstance(optimizer, Adafactor) else self._clip

        @torch.no_grad()
        def hook(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            norm = norm_of(gradient)
            self._norms.append(norm)
            # a GPU is not asked for a number: that would hold up the backward pass at each tensor
            if gradient.device.type != "cpu" or not math.isfinite(float(norm)):
                gradient.nan_to_num_(0.0, 0.0, 0.0)
            if clip:
                gradient.mul_((clip / (norm + 1e-6)).clamp_(max=1.0).nan_to_num_(1.0))
            optimizer.step()
            parameter.grad = None

        return hook


def _optimizer(
    name: str,
    groups: Sequence[tuple[Group, list[nn.Parameter]]],
    weight_decay: float,
    rounding: Rounding,
    first_number: int,
) -> torch.optim.Optimizer:
    chosen: list[dict[str, Any]] = [
        {"params": parameters, "lr": group.rate, "base_rate": group.rate} for group, parameters in groups if parameters
    ]
    if name == "adafactor":
        return Adafactor(chosen, weight_decay=weight_decay, rounding=rounding, first_number=first_number)
    if name == "prodigy":
        check_available(name)
        prodigy = importlib.import_module("prodigyopt").Prodigy
        with contextlib.redirect_stdout(None):  # it prints what it was asked for
            made: torch.optim.Optimizer = prodigy(
                chosen, lr=1.0, weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True
            )
        return made
    if name == "adamw8bit":
        try:
            adamw_8bit = importlib.import_module("bitsandbytes").optim.AdamW8bit
        except (ImportError, AttributeError, RuntimeError, OSError) as error:
            raise UserError(
                "8-bit AdamW needs the package bitsandbytes, which is not installed or does not work here. "
                "Install it, or choose AdamW or Adafactor."
            ) from error
        return cast("torch.optim.Optimizer", adamw_8bit(chosen, weight_decay=weight_decay))
    if name != "adamw":
        raise ValueError(f"unknown optimizer {name!r}")
    on_gpu = all(p.is_cuda for group in chosen for p in group["params"])
    # one kernel for all tensors, or one tensor at a time: torch's own choice would need room for all updates at once
    form = {"fused": True} if on_gpu else {"foreach": False}
    return torch.optim.AdamW(chosen, weight_decay=weight_decay, **form)  # type: ignore[arg-type]


class LossScale:
    """A factor on the loss that halves after an overflow and doubles after 2000 steps without one.

    As torch's GradScaler, which older versions have for CUDA only and whose state hides in the optimizer.
    """

    def __init__(self, value: float = 65536.0, patience: int = 2000) -> None:
        self.value, self.patience = value, patience
        self.good = 0

    def update(self, finite: bool) -> None:
        """After a step: whether its gradients were finite."""
        if not finite:
            self.value, self.good = max(self.value / 2, 1.0), 0
            return
        self.good += 1
        if self.good >= self.patience:
            self.value, self.good = min(self.value * 2, 2.0**24), 0
