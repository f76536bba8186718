"""Prediction type and noise schedule of a model, from its keys, metadata or configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lib_methods.checkpoints.kinds import edm_problem
from lib_methods.errors import CheckpointError

V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # empty tensors that say so
SMALLEST_ABAR = 4.8973451890853435e-08  # the WebUI's last entry of a zero terminal SNR schedule, where samplers divide
_LDM_CURVES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
_CURVES = ("scaled_linear", "linear", "squaredcos_cap_v2")
_MOST_TIMESTEPS = 10_000
_YES = ("true", "1", "yes")


@dataclass(frozen=True)
class NoiseSchedule:
    """prediction: "eps", "v" or "unknown", where only the UNet can tell. curve: diffusers' name for the course of the
    betas from `start` to `end`. betas: the betas themselves, where they are given one by one."""

    prediction: str = "eps"
    zero_terminal_snr: bool = False
    curve: str = "scaled_linear"
    start: float = 0.00085
    end: float = 0.012
    timesteps: int = 1000
    betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        numbers = self.betas if self.betas is not None else (self.start, self.end)
        if not 2 <= self.timesteps <= _MOST_TIMESTEPS or not all(0 < beta <= 1 for beta in numbers):
            raise CheckpointError("The noise schedule in this model's configuration is not a valid one.")
        if self.curve not in _CURVES:
            raise CheckpointError(f"This model was trained with an unknown beta schedule ('{self.curve[:60]}').")

    @property
    def is_usual(self) -> bool:
        """Whether its betas are those of Stable Diffusion, which programs take where a file has no configuration."""
        return replace(self, prediction="eps", zero_terminal_snr=False) == NoiseSchedule()

    def alphas_cumprod(self) -> np.ndarray:
        """(T,), float64: how much of the image is left at each timestep; with zero terminal SNR, 0 at the last."""
        if self.betas is not None:
            betas = np.asarray(self.betas, dtype=np.float64)
        elif self.curve == "scaled_linear":
            betas = np.linspace(self.start**0.5, self.end**0.5, self.timesteps, dtype=np.float64) ** 2
        elif self.curve == "linear":
            betas = np.linspace(self.start, self.end, self.timesteps, dtype=np.float64)
        else:  # Nichol and Dhariwal 2021, equation 17
            bars = np.cos((np.arange(self.timesteps + 1) / self.timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - bars[1:] / bars[:-1], 0.999)
        kept = np.cumprod(1.0 - betas)
        return rescaled_to_zero_snr(kept) if self.zero_terminal_snr else kept


def rescaled_to_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """The schedule stretched so that the last step is pure noise (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    roots = np.sqrt(np.asarray(alphas_cumprod, dtype=np.float64))
    first, last = roots[0], roots[-1]
    return np.square((roots - last) * (first / (first - last)))


def of_file(
    names: Mapping[str, object], metadata: Mapping[str, str], params: Mapping[str, Any], family: str, has_yaml: bool
) -> NoiseSchedule:
    """That of a single file. params: `model.params` of its yaml, {} without one. Raises CheckpointError."""
    scaling = _target(params, "scaling_config")
    discretization = _target(params, "discretization_config")
    if "EDM" in scaling + discretization:
        raise edm_problem("an EDM noise schedule (as its yaml says)")
    parameterization = str(params.get("parameterization", "eps")).strip().lower()
    if parameterization not in ("eps", "v"):
        raise edm_problem(f"the parameterization '{params['parameterization']}' (as its yaml says)")
    told = metadata.get("modelspec.prediction_type", "").strip().lower().replace("-", "_")
    v_told = told in ("v", "v_prediction") or _yes(metadata.get("ss_v_parameterization"))
    if V_MARK in names or parameterization == "v" or scaling.endswith("VScaling"):
        prediction = "v"
    elif has_yaml and ("parameterization" in params or scaling):
        prediction = "eps"
    elif v_told:
        prediction = "v"
    else:
        # of SD2 nothing in the names tells; the UNet can be asked
        prediction = "unknown" if family == "sd2" and not has_yaml and told != "epsilon" else "eps"
    zero = ZERO_SNR_MARK in names or any(_yes(params.get(key)) for key in ("ztsnr", "zsnr", "zero_terminal_snr"))
    curve = str(params.get("beta_schedule", "linear"))
    try:
        return NoiseSchedule(
            prediction,
            zero or _yes(metadata.get("ss_zero_terminal_snr")) or "Zero" in discretization,
            _LDM_CURVES.get(curve, curve),
            float(params.get("linear_start", NoiseSchedule.start)),
            float(params.get("linear_end", NoiseSchedule.end)),
            int(params.get("timesteps", NoiseSchedule.timesteps)),
        )
    except CheckpointError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError("The noise schedule in the yaml beside the checkpoint cannot be read.") from None


def of_scheduler(config: Mapping[str, Any]) -> NoiseSchedule:
    """That of a folder's scheduler_config.json. Raises CheckpointError for what is not eps or v at timesteps."""
    name = str(config.get("_class_name", ""))
    if "EDM" in name or "CosineDPM" in name or config.get("timestep_type") == "continuous":
        raise edm_problem(f"an EDM noise schedule ({name})")
    prediction = str(config.get("prediction_type") or "epsilon")
    if "Flow" in name or "flow" in prediction or config.get("use_flow_sigmas") or "shift" in config:
        raise edm_problem(f"flow matching ({name or prediction})")
    found = {"epsilon": "eps", "v_prediction": "v"}.get(prediction)
    if found is None:
        raise edm_problem(f"the prediction type '{prediction}'")
    betas = config.get("trained_betas")
    try:
        listed = None if betas is None else tuple(float(beta) for beta in betas)
        return NoiseSchedule(
            found,
            bool(config.get("rescale_betas_zero_snr", False)),
            str(config.get("beta_schedule", NoiseSchedule.curve)),
            float(config.get("beta_start", NoiseSchedule.start)),
            float(config.get("beta_end", NoiseSchedule.end)),
            int(config.get("num_train_timesteps", NoiseSchedule.timesteps)) if listed is None else len(listed),
            listed,
        )
    except CheckpointError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError("The noise schedule in the scheduler_config.json cannot be read.") from None


def _target(params: Mapping[str, Any], name: str) -> str:
    """The class that SGM's yaml names for a part of the denoiser."""
    denoiser = params.get("denoiser_config")
    inside = denoiser.get("params") if isinstance(denoiser, Mapping) else None
    part = inside.get(name) if isinstance(inside, Mapping) else None
    return str(part.get("target", "")) if isinstance(part, Mapping) else ""


def _yes(value: object) -> bool:
    return value is True or str(value).lower() in _YES
