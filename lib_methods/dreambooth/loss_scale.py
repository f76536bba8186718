"""Loss scaling for fp16, whose smallest gradients would be zero (Micikevicius et al. 2018, arXiv 1710.03740)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


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

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": torch.tensor(self.value, dtype=torch.float64), "good": torch.tensor(self.good)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value, self.good = float(state["value"]), int(state["good"])
