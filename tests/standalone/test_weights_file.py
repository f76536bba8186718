"""Writing weights: what is not finite or too large is refused, and what is written can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lib_methods.errors import CheckpointError
from lib_methods.safetensors import NotFinite, read_header, rounded, write_tensors
from standalone.engine.checkpoint import load_checkpoint
from standalone.instruct.widen import widened, write_checkpoint


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nothing_that_is_not_finite_is_written(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"good": torch.ones(3, dtype=dtype)})
    before = path.read_bytes()
    spoilt = torch.ones(5, dtype=dtype)
    spoilt[3] = value
    with pytest.raises(NotFinite, match="'bad' has numbers that are not finite"):
        write_tensors(path, {"good": torch.ones(3), "bad": spoilt})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_numbers_too_large_for_a_precision_are_refused() -> None:
    assert torch.equal(rounded("x", torch.full((2,), 65504.0), torch.float16), torch.full((2,), 65504.0).half())
    with pytest.raises(NotFinite, match="'x' reaches 7e\\+04, which is too large for fp16"):
        rounded("x", torch.tensor([1.0, -70000.0]), torch.float16)
    assert rounded("x", torch.tensor([-70000.0]), torch.bfloat16).isfinite().all()


def test_what_is_written_is_read_back_by_safetensors(tmp_path: Path) -> None:
    tensors = {
        "whole": torch.arange(5),
        "half": torch.randn(3, 2).half(),
        "eight": torch.randn(7).to(torch.float8_e4m3fn),
        "empty": torch.empty(0),
        "scalar": torch.tensor(2.5),
        "turned": torch.randn(3, 4).T,
    }
    write_tensors(tmp_path / "x.safetensors", dict(tensors), {"title": "\u00fc"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[k].float(), tensors[k].float()) for k in tensors)
    assert read_header(tmp_path / "x.safetensors").metadata == {"title": "\u00fc"}


def test_an_instruct_checkpoint_that_is_not_finite_leaves_no_file(tmp_path: Path, checkpoints: Any) -> None:
    model = load_checkpoint(checkpoints("sd1"))
    unet = widened(model.model.diffusion_model)
    with torch.no_grad():
        unet.get_parameter("conv_out.bias").fill_(1e6)
    with pytest.raises(CheckpointError, match="too large for fp16"):
        write_checkpoint(model, unet, None, tmp_path / "out" / "model.safetensors")
    assert not (tmp_path / "out").exists()
