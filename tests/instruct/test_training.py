"""The training: what is dropped, what the widened UNet computes, stops at any moment, and the checkpoint it writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lib_methods.errors import UserError
from standalone.engine.checkpoint import load_checkpoint
from standalone.instruct.dataset import Pair, read_pairs
from standalone.instruct.train import (
    DROPPED,
    TARGET,
    Examples,
    Length,
    Trainer,
    dropout,
    edit_config,
    read_picture,
    widened,
)
from standalone.setup import options
from standalone.setup.start import dispatch
from tests.instruct.conftest import same_weights
from tests.standalone import tiny


def silent(text: str) -> None:
    """Says nothing."""


def test_text_picture_and_both_are_dropped_at_five_percent_each() -> None:
    no_text, no_picture = dropout(200_000, torch.Generator().manual_seed(0))
    shares = [(no_text & ~no_picture), (no_text & no_picture), (~no_text & no_picture)]
    assert DROPPED == 0.05
    for share in shares:  # the standard error is 0.0005
        assert float(share.float().mean()) == pytest.approx(DROPPED, abs=0.002)


def test_the_widened_unet_computes_what_the_old_one_does_whatever_the_picture(model: Any) -> None:
    unet = model.model.diffusion_model
    wide = widened(unet)
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 77, 32, generator=generator)
    pictures = torch.stack([torch.zeros(4, 8, 8), torch.randn(4, 8, 8), torch.full((4, 8, 8), 1e4)])
    times = torch.tensor([0, 500, 999])
    with torch.no_grad():
        old = unet(x, times, encoder_hidden_states=text).sample
        new = wide(torch.cat([x, pictures], 1), times, encoder_hidden_states=text).sample
    torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-6)
    assert wide.config.in_channels == 8 and unet.config.in_channels == 4
    assert not wide.conv_in.weight[:, 4:].any()


def test_pictures_are_the_mode_unscaled_and_targets_are_sampled_and_scaled(
    model: Any, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = read_pairs(pairs)[:1]
    examples = Examples(model, listed, silent)
    posterior = {
        what: model.encode_first_stage(read_picture(getattr(listed[0], what))[None]) for what in ("before", "after")
    }
    none = torch.zeros(512, dtype=torch.bool)
    monkeypatch.setattr("standalone.instruct.train.dropout", lambda count, generator: (none, none))
    latents, pictures, texts = examples.batch(512, torch.Generator().manual_seed(0))
    torch.testing.assert_close(pictures, posterior["before"].mode().expand_as(pictures))
    wanted = posterior["after"]
    scale = model.scale_factor
    far = (latents.mean(0) - wanted.mean[0] * scale).abs() / (wanted.std[0] * scale)
    assert float(far.max()) < 6 / 512**0.5
    torch.testing.assert_close(latents.std(0), wanted.std[0] * scale, rtol=0.2, atol=0)
    torch.testing.assert_close(texts[0], model.get_learned_conditioning([listed[0].instruction])[0])


def test_what_is_dropped_is_zeros_and_the_empty_prompt(model: Any, pairs: Path) -> None:
    examples = Examples(model, read_pairs(pairs), silent)
    empty = model.get_learned_conditioning([""])[0]
    _, pictures, texts = examples.batch(2000, torch.Generator().manual_seed(2))
    no_picture = ~pictures.flatten(1).any(1)
    no_text = torch.tensor([torch.equal(text, empty) for text in texts])
    assert int((no_picture & no_text).sum()) > 0
    for gone in (no_picture, no_text):
        assert float(gone.float().mean()) == pytest.approx(0.1, abs=0.04)


def train(model: Any, examples: Examples, steps: int, state: Path, **more: Any) -> Trainer:
    trainer = Trainer(model, batch=2, rate=1e-3, seed=0, identity="x")
    if state.exists():
        trainer.load(state)
    trainer.run(examples, Length(steps=steps), state, silent)
    return trainer


def test_a_stopped_training_ends_bit_for_bit_as_one_without_a_stop(
    model: Any, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = Examples(model, read_pairs(pairs), silent)
    whole = train(model, examples, 4, tmp_path / "whole.training")
    stopped = tmp_path / "stopped.training"
    real = Trainer.train_step
    done: list[int] = []

    def until_the_plug_is_pulled(self: Trainer, *args: Any) -> float:
        if len(done) == 2:
            self.save(stopped)
        if len(done) == 3:  # a step after the last save
            raise KeyboardInterrupt
        done.append(1)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", until_the_plug_is_pulled)
        with pytest.raises(KeyboardInterrupt):
            train(model, examples, 4, stopped)
    stopped.with_name(stopped.name + ".new").write_bytes(b"half a sta")  # a stop while saving
    anew = Examples(model, read_pairs(pairs), silent)
    resumed = train(model, anew, 4, stopped)
    assert resumed.step == whole.step == 4
    assert same_weights(resumed.unet, whole.unet)
    assert same_weights(resumed.average, whole.average)
    assert not same_weights(whole.unet, whole.average)


def test_the_loss_falls(model: Any, pairs: Path) -> None:
    """On the same six pairs, noise and levels, before and after some steps."""
    examples = Examples(model, read_pairs(pairs), silent)
    trainer = Trainer(model, batch=4, rate=1e-2, seed=0, identity="x")

    def measured() -> float:
        generator = torch.Generator().manual_seed(99)
        with torch.no_grad():
            return float(trainer.loss(*examples.batch(12, generator), generator))

    before = measured()
    for _ in range(16):
        trainer.train_step(examples, 0.0)
    assert measured() < 0.8 * before
    assert trainer.unet.conv_in.weight[:, 4:].abs().max() > 0


def run_train(pairs: Path, checkpoint: Path, out: Path, *more: str) -> int:
    command = ["train-instruct", "--data", str(pairs), "--checkpoint", str(checkpoint), "--out", str(out)]
    try:
        return dispatch(options.parse([*command, "--batch", "2", *more]))
    except options.UsageError as error:  # as run.py answers it, before torch is imported
        print(error, file=sys.stderr)
        return 1


def test_the_command_writes_a_checkpoint_that_loads_and_sees_the_picture(
    pairs: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "new.safetensors"
    assert run_train(pairs, checkpoint, out, "--steps", "2", "--rate", "0.01") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    model = load_checkpoint(out)
    assert model.cond_stage_key == "edit" and model.model.diffusion_model.config.in_channels == 8
    old = load_checkpoint(checkpoint)
    for name in ("first_stage_model", "cond_stage_model"):
        one, two = getattr(model, name).state_dict(), getattr(old, name).state_dict()
        assert all(torch.equal(one[key], two[key].half().float()) for key in two)
    config = yaml.safe_load(out.with_suffix(".yaml").read_text(encoding="utf-8"))["model"]
    assert config["target"] == TARGET and config["params"]["cond_stage_key"] == "edit"
    assert config["params"]["conditioning_key"] == "hybrid"
    assert config["params"]["unet_config"]["params"]["in_channels"] == 8
    state = torch.load(out.with_suffix(".training"), weights_only=True)
    assert state["step"] == 2
    torch.testing.assert_close(
        model.model.diffusion_model.conv_in.weight, state["average"]["conv_in.weight"].half().float()
    )
    assert run_train(pairs, checkpoint, out, "--steps", "3", "--rate", "0.01") == 1
    assert "--resume" in capsys.readouterr().err
    assert run_train(pairs, checkpoint, out, "--steps", "3", "--rate", "0.01", "--resume") == 0
    assert torch.load(out.with_suffix(".training"), weights_only=True)["step"] == 3
    assert run_train(pairs, checkpoint, out, "--steps", "3", "--rate", "0.02", "--resume") == 1
    assert "other settings (rate)" in capsys.readouterr().err
    out.with_suffix(".training").write_bytes(b"PK\x03\x04 no state")
    assert run_train(pairs, checkpoint, out, "--steps", "3", "--resume") == 1
    err = capsys.readouterr().err
    assert "damaged" in err and len(err.strip().splitlines()) == 1


def test_a_checkpoint_without_yaml_gets_one_of_its_sizes(model: Any) -> None:
    made = edit_config(model, None)["model"]["params"]
    given = edit_config(model, tiny.ldm_yaml(tiny.build("sd1")))["model"]["params"]
    for name in ("model_channels", "channel_mult", "num_res_blocks", "num_heads", "in_channels"):
        assert made["unet_config"]["params"][name] == given["unet_config"]["params"][name], name
    assert set(made["unet_config"]["params"]["attention_resolutions"]) == {1, 2}
    assert made["scale_factor"] == given["scale_factor"] and made["timesteps"] == given["timesteps"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "--steps or --minutes"),
        (["--steps", "0"], "--steps"),
        (["--minutes", "-1"], "--minutes"),
        (["--steps", "1", "--rate", "nan"], "--rate"),
        (["--steps", "1", "--resume"], "no new.training"),
    ],
)
def test_a_command_that_makes_no_sense_is_answered_in_one_sentence(
    pairs: Path, checkpoint: Path, tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(pairs, checkpoint, tmp_path / "new.safetensors", *more) == 1
    err = capsys.readouterr().err
    assert told in err and len(err.strip().splitlines()) == 1 and str(tmp_path) not in err
    assert not list(tmp_path.glob("new.*"))


@pytest.mark.parametrize(("family", "channels"), [("sd1", 8), ("sd2", 4)])
def test_other_checkpoints_are_refused(
    pairs: Path, tmp_path: Path, family: str, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.write_file(tiny.build(family, in_channels=channels), tmp_path / "other.safetensors")
    assert run_train(pairs, other, tmp_path / "new.safetensors", "--steps", "1") == 1
    assert "other.safetensors cannot be used" in capsys.readouterr().err


def test_pictures_that_cannot_be_used_are_named(model: Any, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    Image.new("RGB", (72, 64)).save(tmp_path / "wide.png")
    Image.new("RGB", (65, 64)).save(tmp_path / "odd.png")
    (tmp_path / "text.png").write_bytes(b"no picture")
    for name, told in (
        ("odd", "odd.png must be multiples"),
        ("text", "text.png cannot be read"),
        ("wide", "same size"),
    ):
        with pytest.raises(UserError, match=told):
            Examples(model, [Pair(tmp_path / "good.png", tmp_path / f"{name}.png", "x")], silent)


def test_a_training_that_overflows_ends_in_a_sentence(model: Any, pairs: Path, tmp_path: Path) -> None:
    trainer = Trainer(model, batch=2, rate=1e-3, seed=0, identity="x")
    with torch.no_grad():
        trainer.unet.conv_in.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="--rate"):
        trainer.run(Examples(model, read_pairs(pairs), silent), Length(steps=3), tmp_path / "s.training", silent)
    assert not (tmp_path / "s.training").exists()
