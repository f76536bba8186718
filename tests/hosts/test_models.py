"""Which of the host's checkpoints is offered where the loaded one does not suit a method."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lib_methods.hosts import models

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(("sees_picture", "expected"), [(True, "edit [2]"), (False, "inpainting [1]")])
def test_the_first_checkpoint_whose_unet_suits_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees_picture: bool, expected: str
) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "folder").mkdir()
    save_file({"double_blocks.0": torch.zeros(1)}, tmp_path / "flux.safetensors")
    save_file({FIRST: torch.zeros(4)}, tmp_path / "flat.safetensors")
    for name, channels in {"inpainting": 9, "edit": 8, "plain": 4}.items():
        save_file({FIRST: torch.zeros(8, channels, 3, 3)}, tmp_path / f"{name}.safetensors")
    names = ["gone.safetensors", "damaged.safetensors", "old.ckpt", "folder", "flux.safetensors", "flat.safetensors"]
    good = {f"{name} [{place}]": f"{name}.safetensors" for place, name in enumerate(("inpainting", "edit", "plain"), 1)}
    listed = {**{name: name for name in names}, **good}
    infos = {title: SimpleNamespace(title=title, filename=str(tmp_path / file)) for title, file in listed.items()}
    monkeypatch.setattr(models.sd_models, "checkpoints_list", infos)
    assert models.suited_checkpoint(sees_picture) == expected


def test_nothing_is_offered_where_nothing_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.sd_models, "checkpoints_list", {})
    assert models.suited_checkpoint(True) == models.suited_checkpoint(False) == ""
