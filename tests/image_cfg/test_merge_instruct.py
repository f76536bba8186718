"""python run.py merge-instruct A B C: what the result holds, that it loads, and messages for bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_methods.errors import UserError
from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.merge import FIRST_CONVOLUTION, merge_instruct
from standalone.setup import options
from standalone.setup.start import dispatch
from tests.standalone import tiny


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A, B and C: three random models; B with 8 channels, A in half precision, C with the old text names."""
    a, b, c = (tmp_path / f"{name}.safetensors" for name in ("mine", "instruct", "origin"))
    tiny.write_file(tiny.build("sd1", seed=1), a, half=True)
    tiny.write_file(tiny.build("sd1", seed=2, in_channels=8), b)
    tiny.write_file(tiny.build("sd1", seed=3), c, old_text_names=True)
    return a, b, c


def test_every_weight_is_a_plus_b_minus_c(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "made" / "new.safetensors"
    counts = merge_instruct(*three, out)
    a, b, c, new = (load_file(path) for path in (*three, out))
    infix = "cond_stage_model.transformer."
    c = {key.replace(infix, infix + "text_model.") if key.startswith(infix) else key: x for key, x in c.items()}
    assert set(new) == set(a)
    kept = 0
    for key, value in new.items():
        assert value.dtype == a[key].dtype
        if key.startswith("first_stage_model."):
            assert torch.equal(value, a[key])
            kept += 1
        elif key == FIRST_CONVOLUTION:
            latent = a[key].float() + b[key][:, :4] - c[key]
            assert torch.equal(value, torch.cat([latent, b[key][:, 4:]], 1).half())
        elif value.is_floating_point():
            assert torch.equal(value, (a[key].float() + b[key] - c[key]).half())
    assert counts == {"merged": len(new) - kept, "kept": kept}
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["sd_merge_recipe"])["formula"] == "A + B - C"


def test_the_instruct_model_of_its_own_origin_comes_back(tmp_path: Path) -> None:
    """C + B - C is B, up to rounding."""
    b, c = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    tiny.write_file(tiny.build("sd1", seed=2, in_channels=8), b)
    tiny.write_file(tiny.build("sd1", seed=3), c)
    merge_instruct(c, b, c, tmp_path / "new.safetensors")
    new, wanted = load_file(tmp_path / "new.safetensors"), load_file(b)
    for key, value in new.items():
        if not key.startswith("first_stage_model.") and value.is_floating_point():
            torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)


def test_a_and_b_may_change_places(three: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a, b, c = three
    merge_instruct(a, b, c, tmp_path / "one.safetensors")
    merge_instruct(b, a, c, tmp_path / "other.safetensors")
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "other"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_verb_writes_a_checkpoint_that_loads(
    three: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = options.parse(["merge-instruct", *map(str, three)])
    assert dispatch(parsed) == 0
    out = three[0].with_name("mine-instruct.safetensors")
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    model = load_checkpoint(out)
    assert model.cond_stage_key == "edit"
    assert model.model.diffusion_model.config.in_channels == 8
    assert dispatch(parsed) == 1
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("order", "sentence"),
    [("aac", "8 input channels"), ("bbc", "8 input channels"), ("abb", "instruct.safetensors has 8")],
)
def test_files_that_do_not_fit_are_named(three: tuple[Path, Path, Path], order: str, sentence: str) -> None:
    named = dict(zip("abc", three))
    with pytest.raises(UserError, match=sentence):
        merge_instruct(named[order[0]], named[order[1]], named[order[2]], three[0].with_name("new.safetensors"))
    assert not three[0].with_name("new.safetensors").exists()


def test_another_family_is_refused(three: tuple[Path, Path, Path], checkpoints: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="SD2"):
        merge_instruct(checkpoints("sd2"), *three[1:], three[0].with_name("new.safetensors"))


def test_another_build_is_refused(three: tuple[Path, Path, Path]) -> None:
    a, b, c = three
    state = load_file(c)
    del state["model.diffusion_model.out.2.bias"]
    save_file(state, c)
    with pytest.raises(UserError, match="differ in build"):
        merge_instruct(a, b, c, a.with_name("new.safetensors"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.ckpt", b"PK\x03\x04", "pickled"),
        ("x.safetensors", b"\x80\x04pickle.....", "pickled"),
        ("x.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{broken!", "damaged"),
        ("gone.safetensors", None, "There is no checkpoint named gone.safetensors"),
    ],
)
def test_only_whole_safetensors_are_read(
    three: tuple[Path, Path, Path], tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refusal:
        merge_instruct(three[0], three[1], path, tmp_path / "new.safetensors")
    assert str(tmp_path) not in str(refusal.value)
    assert not list(tmp_path.glob(".merging*"))


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_file_with_weights_that_are_not_finite_is_named(
    three: tuple[Path, Path, Path], number: int, value: float
) -> None:
    spoilt = three[number]
    state = load_file(spoilt)
    state["model.diffusion_model.out.2.bias"].fill_(value)
    save_file(state, spoilt)
    out = three[0].with_name("new.safetensors")
    with pytest.raises(UserError, match=rf"{spoilt.name} has weights that are NaN or infinite"):
        merge_instruct(*three, out)
    assert not list(three[0].parent.glob("*new*")) + list(three[0].parent.glob(".*"))


def test_a_sum_too_large_for_half_precision_is_refused(three: tuple[Path, Path, Path]) -> None:
    """A is in fp16, whose largest number is 65504; B and C are finite in fp32."""
    state = load_file(three[1])
    state["model.diffusion_model.out.2.bias"].fill_(1e5)
    save_file(state, three[1])
    out = three[0].with_name("new.safetensors")
    with pytest.raises(UserError, match=r"out\.2\.bias' reaches 1e\+05, which is too large for fp16"):
        merge_instruct(*three, out)
    assert not out.exists()


def test_what_is_only_copied_is_checked_too(three: tuple[Path, Path, Path]) -> None:
    state = load_file(three[0])
    state["first_stage_model.decoder.conv_out.bias"].fill_(float("nan"))
    save_file(state, three[0])
    out = three[0].with_name("new.safetensors")
    with pytest.raises(UserError, match="not finite"):
        merge_instruct(*three, out)
    assert not out.exists() and not out.with_suffix(".yaml").exists()


def test_quantised_files_and_other_predictions_are_refused(three: tuple[Path, Path, Path]) -> None:
    state = load_file(three[0])
    out = three[0].with_name("new.safetensors")
    save_file({**state, "v_pred": torch.empty(0)}, three[0])
    with pytest.raises(UserError, match="predicts v"):
        merge_instruct(*three, out)
    save_file({**state, "scaled_fp8": torch.zeros(1)}, three[0])
    with pytest.raises(UserError, match="scaled fp8"):
        merge_instruct(*three, out)
