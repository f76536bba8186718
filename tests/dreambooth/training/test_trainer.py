"""The steps of a training: what they move, what they leave, what they depend on, and what stops them."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lib_methods.checkpoints.schedule import NoiseSchedule
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import TrainingModel
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training import trainer as trainers
from lib_methods.dreambooth.training.batches import Batches, Example, TrainingData
from lib_methods.dreambooth.training.plan import plan_training
from lib_methods.dreambooth.training.trainer import Trainer
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs.log import Report
from tests.dreambooth.models import FAMILIES, asked, load, sizes_of
from tests.dreambooth.runs import events

CPU = torch.device("cpu")


def example(seed: int, text: str = "a ohwx dog", side: int = 8, masked: bool = False) -> Example:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(4, side, side, generator=generator)
    mask = torch.zeros(1, side, side) if masked else None
    if mask is not None:
        mask[:, : side // 2] = 1
    return Example(mean, torch.full_like(mean, 0.1), mask, torch.tensor([64.0, 64, 0, 0, 64, 64]), text)


def data_of(photos: int = 3, prior: int = 2, **more: Any) -> TrainingData:
    return TrainingData([example(n, **more) for n in range(photos)], [example(100 + n, "a dog") for n in range(prior)])


def settings_of(tmp_path: Path, **values: Any) -> TrainingSettings:
    wanted: dict[str, Any] = {"steps": 6, "rate": 1e-3, "text_rate": 1e-3, "prior": "images", "rank": 2}
    wanted.update(values)
    return TrainingSettings(tmp_path, tmp_path, tmp_path, "dog1", "dog", identifier="ohwx", **wanted)


def batches_of(
    data: TrainingData,
    batch_size: int = 3,
    texts: Sequence[str] = ("a dog",),
    rank: int = 0,
    count: int = 1,
    **values: Any,
) -> Batches:
    settings = asked(**{"seed": 7, "prior": "images", **values})
    return Batches(data, settings, batch_size, texts, 1000, rank, count)


def trainer_of(
    tmp_path: Path, model: TrainingModel, data: TrainingData | None = None, more: Any = None, **values: Any
) -> Trainer:
    settings = settings_of(tmp_path, **values)
    folder = tmp_path / "dog1"
    folder.mkdir(exist_ok=True)
    lora = None
    if settings.kind == "LoRA":
        lora = LoraSet(model, settings.rank, settings.true_alpha, text=settings.train_text).inject()
    plan = plan_training(settings, sizes_of(model), CPU)
    report = Report(folder, lambda text: None, tensorboard=False)
    if data is None:
        data = data_of(prior=2 if settings.prior == "images" else 0)
    return Trainer(model, data, settings, plan, folder, report, lora=lora, **(more or {}))


def weights_of(model: TrainingModel) -> dict[str, dict[str, Tensor]]:
    parts = {"unet": model.unet, "vae": model.vae, **{f"text{n}": e for n, e in enumerate(model.encoders)}}
    return {
        part: {name: value.detach().clone() for name, value in module.state_dict().items() if "lora" not in name}
        for part, module in parts.items()
    }


def changed(before: dict[str, dict[str, Tensor]], after: dict[str, dict[str, Tensor]]) -> set[str]:
    return {part for part in before if any(not torch.equal(before[part][n], after[part][n]) for n in before[part])}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("values", "moves"),
    [
        ({}, set()),
        ({"train_text": True, "prior": "model"}, set()),
        ({"kind": "full"}, {"unet"}),
        ({"kind": "full", "train_text": True, "prior": "off"}, {"unet", "text0", "text1"}),
    ],
)
def test_only_what_is_trained_moves(tmp_path: Path, family: str, values: dict[str, Any], moves: set[str]) -> None:
    model = load(tmp_path, family)
    before = weights_of(model)
    trainer = trainer_of(tmp_path, model, **values)
    start = {name: value.clone() for name, value in trainer.trained.state_dict().items()}
    for _ in range(2):
        assert math.isfinite(trainer.step().loss)
    assert changed(before, weights_of(model)) == moves & before.keys()
    after = trainer.trained.state_dict()
    assert any(not torch.equal(start[name], after[name]) for name in after)


def test_a_lora_starts_as_the_frozen_model_so_its_prior_loss_is_zero(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, load(tmp_path), prior="model")
    first, second = trainer.step(), trainer.step()
    assert first.prior < 1e-10 < second.prior  # batches of another size are rounded otherwise
    assert first.loss == pytest.approx(first.subject)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_step_is_the_paper_s_loss(tmp_path: Path, family: str) -> None:
    """Against the loss written out, at one photo and one class picture, with min-SNR; SDXL with v down to no signal."""
    model = load(tmp_path, family)
    if family == "sdxl":
        model.parameterization = "v"
        model.alphas_cumprod = torch.from_numpy(NoiseSchedule("v", zero_terminal_snr=True).alphas_cumprod()).float()
    trainer = trainer_of(tmp_path, model, kind="full", prior_weight=0.7, snr_gamma=5.0)
    batch = batches_of(data_of(), 1, seed=0).draw(0, 0)
    expected = 0.0
    for row, weight in ((0, 1.0), (1, 0.7)):
        kept = model.alphas_cumprod[batch.timesteps[row]]
        noisy = kept.sqrt() * batch.latents[row] + (1 - kept).sqrt() * batch.noise[row]
        with torch.no_grad():
            told = model.embed([batch.texts[row]]), batch.sizes[row : row + 1]
            out = model.predict(noisy[None], batch.timesteps[row : row + 1], *told)
        snr = float(kept / (1 - kept))
        target, base = batch.noise[row], snr
        if family == "sdxl":
            target, base = kept.sqrt() * target - (1 - kept).sqrt() * batch.latents[row], snr + 1
        expected += weight * min(snr, 5.0) / base * float((out[0] - target).square().mean())
    assert batch.texts == ["a ohwx dog", "a dog"]
    assert trainer.step().loss == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from(["images", "model", "off"]), st.booleans())
def test_processes_share_the_batch_of_one(seed: int, size: int, prior: str, masked: bool) -> None:
    data = data_of(prior=2 if prior == "images" else 0, masked=masked)
    fixed: dict[str, Any] = {"seed": seed, "prior": prior, "noise_offset": 0.1, "caption_dropout": 0.5}
    whole = batches_of(data, 2 * size, **fixed).draw(3, 1)
    parts = [batches_of(data, size, rank=rank, count=2, **fixed).draw(3, 1) for rank in (0, 1)]
    for name in ("latents", "noise", "timesteps", "sizes"):
        for is_prior in (False, True):
            rows = [getattr(part, name)[part.is_prior == is_prior] for part in parts]
            woven = torch.stack(rows, dim=1).flatten(0, 1)
            assert torch.equal(woven, getattr(whole, name)[whole.is_prior == is_prior])
    of_photos = [[text for text, prior in zip(part.texts, part.is_prior) if not prior] for part in parts]
    assert [text for pair in zip(*of_photos) for text in pair] == whole.texts[: 2 * size]


def test_noise_offset_shifts_each_channel_of_the_noise_as_a_whole() -> None:
    """noise + offset * randn(B, C, 1, 1), and nothing else of the batch changes."""
    plain, shifted = batches_of(data_of()), batches_of(data_of(), noise_offset=0.1)
    shifts = []
    for step in range(200):
        one, other = plain.draw(step, 0), shifted.draw(step, 0)
        for name in ("latents", "timesteps", "sizes", "is_prior"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.texts == other.texts
        shift = other.noise - one.noise
        assert float(shift.flatten(2).std(-1).max()) < 1e-6
        shifts.append(shift.mean((2, 3)) / 0.1)
    drawn = torch.stack(shifts)
    assert drawn.shape[1:] == (6, 4)
    assert abs(float(drawn.mean())) < 0.05 and abs(float(drawn.std()) - 1) < 0.05
    rows = drawn.flatten(0, 1)
    assert float(torch.corrcoef(rows.T).fill_diagonal_(0).abs().max()) < 0.1, "channels are drawn apart"


def test_caption_dropout_leaves_that_share_of_the_texts_empty() -> None:
    plain, dropping = batches_of(data_of()), batches_of(data_of(), caption_dropout=0.2)
    assert "" in dropping.texts() and "" not in plain.texts()
    empty = total = 0
    for step in range(400):
        one, other = plain.draw(step, 0), dropping.draw(step, 0)
        assert torch.equal(one.noise, other.noise) and torch.equal(one.latents, other.latents)
        assert all(told in ("", text) for text, told in zip(one.texts, other.texts))
        empty += other.texts.count("")
        total += len(other.texts)
    assert abs(empty / total - 0.2) < 0.03


def test_every_photo_is_accompanied_by_its_own_class() -> None:
    photos = [replace(example(n, f"photo {n % 2}"), group=n % 2, repeats=1 + 2 * (n % 2)) for n in range(4)]
    prior = [replace(example(50 + n, f"class {n % 2}"), group=n % 2) for n in range(5)]
    texts = ["class 0", "class 1"]
    for kind in ("images", "model"):
        data = TrainingData(photos, prior if kind == "images" else [])
        batches = batches_of(data, texts=texts, prior=kind)
        seen: list[str] = []
        for step in range(80):
            told = batches.draw(step, 0).texts
            assert [text[-1] for text in told[:3]] == [text[-1] for text in told[3:]]
            assert all(text.startswith("class") for text in told[3:])
            seen += told[:3]
        assert seen.count("photo 1") == 3 * seen.count("photo 0"), "repeats are how often a photo comes"


def test_the_draws_of_a_step_do_not_depend_on_what_was_drawn_before() -> None:
    one, other = (batches_of(data_of(prior=0), 2, seed=4, prior="off") for _ in range(2))
    for step in range(3):
        one.draw(step, 0)
    place = one.order.state()
    other.order.restore(place)
    a, b = one.draw(3, 0), other.draw(3, 0)
    assert torch.equal(a.latents, b.latents) and torch.equal(a.noise, b.noise)
    assert not torch.equal(a.noise, one.draw(3, 1).noise)
    assert not torch.equal(a.noise, batches_of(data_of(prior=0), 2, seed=5, prior="off").draw(3, 0).noise)


def test_timesteps_reach_over_the_whole_schedule() -> None:
    batches = batches_of(data_of(prior=0), 4, prior="off")
    drawn = torch.stack([batches.draw(step, 0).timesteps.sort().values for step in range(200)])
    assert drawn.min() < 20 and drawn.max() > 980
    quarters = torch.arange(4) * 250
    assert bool(((drawn >= quarters) & (drawn < quarters + 250)).all())  # one from each quarter, in every batch


def test_only_the_masked_part_of_a_photo_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TrainingData([example(0, masked=True)])
    trainer = trainer_of(tmp_path, load(tmp_path), data, kind="full", prior="off")
    batch = trainer.batches.draw(0, 0)
    assert batch.mask is not None
    monkeypatch.setattr(trainers, "noised", lambda latents, *more: torch.zeros_like(latents))  # what the model sees
    other = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(9))
    outside = replace(batch, noise=torch.where(batch.mask == 1, batch.noise, other))
    inside = replace(batch, noise=torch.where(batch.mask == 1, other, batch.noise))
    losses = [float(trainer._loss(each)[0].detach()) for each in (batch, outside, inside)]
    assert losses[0] == pytest.approx(losses[1]) != pytest.approx(losses[2])


def test_the_text_encoder_stops_where_it_is_told(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, load(tmp_path), kind="full", train_text=True, text_stop=0.5, prior="off")
    seen = []
    for _ in range(6):
        trainer.step()
        seen.append({name: value.detach().clone() for name, value in trainer.trained.parts["text"].items()})
    moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(seen, seen[1:])]
    assert moved == [True, True, False, False, False]


def _spoil(model: Any, monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], int]:
    """From the call number `after` on the model predicts no numbers."""
    predict, calls = model.predict, [0]

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        out: Tensor = predict(*args, **kwargs)
        return out * math.nan if calls[0] > after else out

    monkeypatch.setattr(model, "predict", broken)
    return lambda: calls[0]


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path)
    trainer = trainer_of(tmp_path, model, save_every=1)
    _spoil(model, monkeypatch, after=3)
    with pytest.raises(UserError, match=r"diverged at step 3.*last good state is from step 3.*lower"):
        trainer.train()
    again = trainer_of(tmp_path, load(tmp_path))
    assert again.restore() and again.position == 3
    assert again.trained.healthy()


def test_a_first_step_without_a_number_does_not_blame_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path)
    trainer = trainer_of(tmp_path, model)
    _spoil(model, monkeypatch, after=0)
    with pytest.raises(UserError, match="learning rate is not the cause.*fp32"):
        trainer.train()


def test_spoiled_weights_are_never_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, load(tmp_path))
    trainer.step()
    trainer.save()
    trainer.step()
    with torch.no_grad():
        trainer.trained.parameters()[0].fill_(math.inf)
    with pytest.raises(UserError, match="weights are NaN"):
        trainer.save()
    again = trainer_of(tmp_path, load(tmp_path))
    assert again.restore() and again.position == 1 and again.trained.healthy()


def _full_disk(monkeypatch: pytest.MonkeyPatch, full: Callable[[int], bool]) -> None:
    save = trainers.save_state

    def maybe(folder: Path, state: Any) -> None:
        if full(state.step):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder, state)

    monkeypatch.setattr(trainers, "save_state", maybe)


def test_a_disk_that_is_full_for_a_while_is_said_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, load(tmp_path), save_every=1)
    _full_disk(monkeypatch, lambda step: step in (2, 3))
    trainer.train()
    told = [line["text"] for line in events(trainer.settings, "warning")]
    assert len(told) == 2 and "step 2 could not be saved" in told[0] and "last good one is of step 1" in told[0]
    again = trainer_of(tmp_path, load(tmp_path))
    assert again.restore() and again.position == 6


def test_a_stop_with_a_full_disk_says_which_state_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, load(tmp_path), save_every=1)
    _full_disk(monkeypatch, lambda step: step > 2)
    trainer.cancelled = lambda: trainer.position == 4
    with pytest.raises(UserError, match="last one is from step 2"):
        trainer.train()
    again = trainer_of(tmp_path, load(tmp_path))
    assert again.restore() and again.position == 2


def test_a_cancelled_training_ends_at_a_step_with_its_state_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, load(tmp_path))
    trainer.cancelled = lambda: trainer.position == 2
    with pytest.raises(Cancelled, match="Stopped after step 2 of 6"):
        trainer.train()
    again = trainer_of(tmp_path, load(tmp_path))
    assert again.restore() and again.position == 2
    after = again.trained.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in trainer.trained.state_dict().items())
