"""What holds for every base model, whether it was loaded or only its header was read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lib_methods.checkpoints.reader import Checkpoint, read_checkpoint
from lib_methods.dreambooth.errors import DreamBoothError
from lib_methods.safetensors_header import FileProblem


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Passes on why a checkpoint cannot be read as a DreamBoothError."""
    try:
        yield
    except FileProblem as problem:
        raise DreamBoothError(f"The base model cannot be used: {problem}") from problem


def checked_base(path: Path) -> Checkpoint:
    """The base model at `path`, for the plan and the training alike.

    Raises DreamBoothError for what cannot be read, for a UNet that takes more than latents, and where the result could
    not say what it is.
    """
    if not path.exists():
        raise DreamBoothError(f"The base model {path.name} is not there; choose a checkpoint file or a folder.")
    with refusals():
        base = read_checkpoint(path)
    _check(base)
    return base


def _check(base: Checkpoint) -> None:
    if base.is_folder and not base.schedule.is_usual:
        raise DreamBoothError(
            f"The base model {base.path.name} was trained with a noise schedule of its own, which no checkpoint file "
            "or LoRA can tell other programs. DreamBooth trains models with Stable Diffusion's usual one."
        )
    if base.unet.get("time_cond_proj_dim"):
        raise DreamBoothError(
            f"The base model {base.path.name} is a distilled one (a latent consistency model), which cannot be "
            "trained: choose the one that it was made from."
        )
    channels = int(base.unet["in_channels"])
    if channels == int(base.vae["latent_channels"]):
        return
    kind = {8: "an InstructPix2Pix", 9: "an inpainting"}.get(channels, "a special")
    raise DreamBoothError(
        f"The base model {base.path.name} is {kind} checkpoint ({channels} input channels). DreamBooth trains plain "
        "text-to-image checkpoints: choose the one that it was made from."
    )
