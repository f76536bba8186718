"""What a method may know of the host's checkpoint between two jobs, to say on the page what will not work."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LoadedModel:
    """The loaded checkpoint.

    unet: the model that samples. takes_picture: whether it sees an image beside the latents (InstructPix2Pix). no_rows:
    why a method cannot choose its rows in this host, in one sentence; empty where it can. no_editing: likewise why
    latents are out of reach.
    """

    unet: nn.Module
    takes_picture: bool = False
    no_rows: str = ""
    no_editing: str = ""
