"""The InstructPix2Pix checkpoint that ships, and one fresh from training, edit images as told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from standalone import ROOT
from standalone.instruct.instructions import edits, measure
from standalone.instruct.train import widened, write_checkpoint
from tests.image_cfg.jobs import OTHER, edit
from tests.shared.jobs import REPO, pixels
from tests.shared.pictures import encoded
from tests.standalone import tiny
from tests.standalone.conftest import Running, start_host

__all__ = ["start_host"]
SHIPPED = ROOT / "models" / "shapes-instruct" / "shapes-instruct.safetensors"
LARGEST = 25 * 2**20  # bytes


def test_it_is_small_and_has_its_configuration_beside_it() -> None:
    assert SHIPPED.stat().st_size <= LARGEST
    assert SHIPPED.with_suffix(".yaml").is_file()


def test_it_follows_instructions_and_keeps_the_rest(start_host: Callable[..., Running]) -> None:
    """The figures behind README and card come from 200 edits; 16 are enough to see that the file is the right one."""
    host = start_host(SHIPPED, extension_dirs=[REPO])
    model = host.host.model
    assert model.model.diffusion_model.config.in_channels == 8 and model.cond_stage_key == "edit"
    asked = edits(16)
    made = host.generate(
        script_args=edit(image=[encoded(Image.fromarray(one.source)) for one in asked], image_scale=1.5),
        prompt=[one.instruction for one in asked],
        negative_prompt=[""] * 16,
        seed=[500_000 + number for number in range(16)],
        batch_size=16,
        steps=20,
    )
    figures = measure(asked, list(pixels(made)))
    assert figures["instruction_accuracy"] >= 0.7
    assert figures["preservation"] >= 0.75
    assert figures["direction"] >= 0.6


def test_a_fresh_checkpoint_edits_in_the_host(start_host: Callable[..., Running], model: Any, tmp_path: Path) -> None:
    unet = widened(model.model.diffusion_model)
    with torch.no_grad():  # as a training run would
        unet.conv_in.weight[:, 4:].copy_(unet.conv_in.weight[:, :4] * 3)
    write_checkpoint(model, unet, tiny.ldm_yaml(tiny.build("sd1")), tmp_path / "new.safetensors")
    host = start_host(tmp_path / "new.safetensors", extension_dirs=[REPO])
    edited = host.generate(script_args=edit())
    assert "InstructPix2Pix image: " in edited.infotexts[0]
    assert "error" not in edited.infotexts[0]
    other = host.generate(script_args=edit(image=OTHER))
    assert not np.array_equal(pixels(edited), pixels(other))
