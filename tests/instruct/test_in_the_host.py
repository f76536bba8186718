"""What the training writes is a checkpoint that the host edits with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from standalone.instruct.widen import widened, write_checkpoint
from tests.image_cfg.jobs import OTHER, edit
from tests.shared.jobs import REPO, pixels
from tests.standalone import tiny
from tests.standalone.conftest import Running, start_host

__all__ = ["start_host"]


def test_the_checkpoint_edits_in_the_host(start_host: Callable[..., Running], model: Any, tmp_path: Path) -> None:
    unet = widened(model.model.diffusion_model)
    with torch.no_grad():  # as a training would
        unet.conv_in.weight[:, 4:].copy_(unet.conv_in.weight[:, :4] * 3)
    write_checkpoint(model, unet, tiny.ldm_yaml(tiny.build("sd1")), tmp_path / "new.safetensors")
    host = start_host(tmp_path / "new.safetensors", extension_dirs=[REPO])
    edited = host.generate(script_args=edit())
    assert "InstructPix2Pix image: " in edited.infotexts[0]
    assert "error" not in edited.infotexts[0]
    other = host.generate(script_args=edit(image=OTHER))
    assert not np.array_equal(pixels(edited), pixels(other))
