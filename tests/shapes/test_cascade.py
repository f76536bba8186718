"""Training of `shapes-cascade` resumes where it stopped, and what it exports loads in diffusers' IF pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import T5TokenizerFast

from standalone.shapes import cascade, release_cascade, train_cascade
from standalone.shapes.styles import STYLES, styled_caption
from standalone.shapes.train_cascade import Loss, Stock, Trainer
from standalone.shapes.world import ATTRIBUTES, random_named, random_scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A training folder with both stages, a few steps old."""
    out = tmp_path_factory.mktemp("cascade")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cascade, "TEXT_STEPS", 2)
        trainer, stock = _trainer(out, 1), Stock(1, np.random.default_rng(0), 4)
        for _ in range(3):
            trainer.train_step(stock)
        trainer.save()
        _trainer(out, 2).save()
        yield out


def _trainer(out: Path, stage: int) -> Trainer:
    return Trainer(out, stage, batch=2, rate=1e-3, minutes=1)


def test_training_goes_on_as_if_it_had_not_stopped(folder: Path) -> None:
    losses = []
    for _ in range(2):
        trainer = _trainer(folder, 1)
        assert trainer.step == 3
        losses.append(trainer.train_step(Stock(1, trainer.rng, 4)))
    assert losses[0] == losses[1]
    assert not any(p.requires_grad for p in trainer.text.parameters())


def test_stage_2_takes_the_text_encoder_of_stage_1_and_waits_for_it(folder: Path, tmp_path: Path) -> None:
    first, second = _trainer(folder, 1), _trainer(folder, 2)
    for one, two in zip(first.text.parameters(), second.text.parameters()):
        assert torch.equal(one, two)
    stock = Stock(2, second.rng, 2)
    for second.spent in (0.0, 60.0):  # on squares first, at last on whole images
        error, bound = second.train_step(stock)
        assert 0 < error < 20 and bound >= 0
    with pytest.raises(SystemExit, match="stage 1"):
        _trainer(tmp_path / "empty", 2)


@pytest.mark.parametrize("stage", [1, 2])
def test_released_stages_are_trained_further(tmp_path: Path, stage: int) -> None:
    trainer = Trainer(tmp_path, stage, batch=2, rate=1e-3, minutes=1, start=release_cascade.FOLDER)
    unet = UNet2DConditionModel.from_pretrained(release_cascade.FOLDER / f"stage-{stage}" / "unet").float().state_dict()
    assert all(torch.equal(value, unet[name]) for name, value in trainer.average[0].state_dict().items())
    text = {name: value.clone() for name, value in trainer.text.state_dict().items()}
    trainer.train_step(Stock(stage, trainer.rng, 2))
    assert all(torch.equal(value, text[name]) for name, value in trainer.text.state_dict().items())
    assert any(not torch.equal(value, unet[name]) for name, value in trainer.unet.state_dict().items())


def test_the_export_runs_in_diffusers_and_fits(folder: Path) -> None:
    out = folder / "out"
    release_cascade.export(folder, out)
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 25 * 2**20
    made = release_cascade.Cascade(out)
    average = torch.load(folder / "stage1.pt", weights_only=True)["average"]
    for name, value in made.first.unet.state_dict().items():
        assert torch.equal(value, average[f"0.{name}"].half().float()), name
    prompts = ["a photo of red circles"] * 2
    small = made.small(prompts, seed=1, steps=2)
    assert small.shape == (2, 3, 32, 32)
    large = made.large(small, prompts, seed=1, steps=2)
    assert [picture.shape for picture in large] == [(128, 128, 3)] * 2
    assert not np.array_equal(large[0], large[1])


def test_every_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    cascade.tokenizer().save_pretrained(tmp_path)
    words = T5TokenizerFast.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(100):
        text = styled_caption(random_scene(rng), STYLES[number % 4], random_named(rng), rng)
        assert len(words(text).input_ids) == len(text.replace(",", " ,").split()) + 1
        assert words.decode(words(text).input_ids, skip_special_tokens=True) == text
    assert words.unk_token_id not in words("a photo of a sks dog, 2 kites").input_ids


def test_the_losses_are_least_where_everything_is_right() -> None:
    """With the velocity predicted exactly, the posterior's own variance is right: the lower end of the range."""
    loss, clean, noise, times = (
        Loss(1),
        torch.rand(4, 3, 4, 4),
        torch.randn(4, 3, 4, 4),
        torch.tensor([3, 100, 500, 900]),
    )
    velocity = cascade.schedule(1).get_velocity(clean, noise, times)
    losses = [
        loss(torch.cat([velocity, torch.full_like(noise, value)], dim=1), clean, noise, times) for value in (-1, 0, 1)
    ]
    assert [float(error) for error, _ in losses] == pytest.approx([0, 0, 0], abs=1e-5)
    bounds = [float(bound) for _, bound in losses]
    assert bounds[0] == pytest.approx(0, abs=1e-5)
    assert bounds[0] < bounds[1] < bounds[2]


def test_a_card_gets_new_figures_and_keeps_the_rest(tmp_path: Path) -> None:
    names = (*ATTRIBUTES, "style", "accuracy")
    figures = {part: dict.fromkeys(names, 0.125) for part in ("cascade", "restyled", "small", "enlarged", "rendered")}
    before = (release_cascade.FOLDER / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(before, encoding="utf-8")
    release_cascade.renew_card(figures, 7, tmp_path)
    after = (tmp_path / "README.md").read_text(encoding="utf-8")
    (start, _, rest), (start2, found, rest2) = before.partition("## Found"), after.partition("## Found")
    assert (start, rest.partition("![loss]")[2]) == (start2, rest2.partition("![loss]")[2])
    assert "attributes 0.125, style 0.125" in rest2
    assert "7 images;" in rest2
    assert "0.9" not in found + rest2.partition("![loss]")[0]
