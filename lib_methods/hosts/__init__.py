"""One adapter per host family. Each builds the seam of `lib_methods.denoiser` from what the host hands to a script."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from lib_methods.denoiser import EditSampling, Unsupported
from lib_methods.hosts.passes import is_stopped

__all__ = ["HostSampling", "Unsupported", "is_stopped", "sampling_of"]


class HostSampling(EditSampling, Protocol):
    """Everything that a pass of a host's sampler offers."""

    def registering(self) -> AbstractContextManager[None]:
        """Around one method's registrations: after an exception none of them counts. All end with the pass."""


def sampling_of(p: Any, latent: Tensor | None = None, noise: Tensor | None = None) -> HostSampling:
    """The seam for the sampling that is about to start.

    p: the host's `StableDiffusionProcessing`, in `process_before_every_sampling`. latent: the `x` handed to that
    method, shape (batch, 4, h, w). noise: the `noise` handed to it, which only editing needs (`EditSampling`). Hosts
    are told apart by what their model can do, not by name.

    Raises `Unsupported` with a sentence for the user.
    """
    if hasattr(p.sd_model, "forge_objects"):
        from lib_methods.hosts.forge import ForgeSampling

        return ForgeSampling(p, latent)
    sampler = getattr(p, "sampler", None)
    if not hasattr(sampler, "model_wrap_cfg"):
        raise Unsupported("This WebUI's sampler has no denoiser that the extension knows how to reach.")
    from lib_methods.hosts.a1111_editing import A1111EditSampling

    return A1111EditSampling(p, latent, noise)
