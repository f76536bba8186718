"""One adapter per host family. Each builds the seam of `lib_methods.denoiser` from what the host hands to a script."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lib_methods.denoiser import Sampling, Unsupported
from lib_methods.hosts.passes import is_stopped

__all__ = ["end_without_picture", "is_stopped", "keep_source", "sampling_of"]


def keep_source(p: Any) -> None:
    """Before a job of a method that shows the model an image: keep what `Picture.own` needs."""
    if hasattr(p.sd_model, "forge_objects"):
        from lib_methods.hosts.forge import picture

        picture.keep_source(p)


def end_without_picture(p: Any) -> None:
    """Before a pass: stop the job with a message if the model needs an image and no method provides one.

    The host would crash."""
    if hasattr(p.sd_model, "forge_objects"):
        from lib_methods.hosts.forge import picture

        picture.end_without_picture(p)


def sampling_of(p: Any, latent: Tensor | None = None, noise: Tensor | None = None) -> Sampling:
    """The seam for the sampling that is about to start.

    p: the host's `StableDiffusionProcessing`, in `process_before_every_sampling`. latent: the `x` handed to that
    method, shape (batch, 4, h, w). noise: the `noise` handed to it, which only editing needs. Hosts are recognised by
    what their model can do, not by name.

    Raises `Unsupported` with a sentence for the user.
    """
    if hasattr(p.sd_model, "forge_objects"):
        from lib_methods.hosts.forge.sampling import ForgeSampling

        return ForgeSampling(p, latent, noise)
    sampler = getattr(p, "sampler", None)
    if not hasattr(sampler, "model_wrap_cfg"):
        raise Unsupported("This WebUI's sampler has no denoiser that the extension can reach.")
    from lib_methods.hosts.a1111.sampling import A1111Sampling

    return A1111Sampling(p, latent, noise)
