"""Where memory is short no two parts of the model are on the device at once, and all are back whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lib_methods.device import CPU
from lib_methods.dreambooth.model import model as places
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.model.model import Parts
from lib_methods.dreambooth.training import data as making
from lib_methods.dreambooth.training import plan as memory
from lib_methods.dreambooth.training import samples as showing
from lib_methods.dreambooth.training.sampler import class_images, generate
from lib_methods.dreambooth.training.samples import Best, Viewer
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs.log import Report
from standalone.dreambooth import EngineModel, load_training_model
from tests.dreambooth.models import load, write
from tests.dreambooth.output.test_lora_file import settings
from tests.dreambooth.runs import equal, events, settings_for, state_tensors, train

DEVICE = torch.device("cpu", 0)  # for torch the CPU, and yet not equal to it
FULL = torch.cuda.OutOfMemoryError("CUDA out of memory.")
SIDE = 32


class Watched:
    """A model whose parts say where they are sent and nothing else: no weight is really moved.

    seen: at each call of the model its name and the parts on the device. before: called with both.
    """

    def __init__(self, model: EngineModel, patch: pytest.MonkeyPatch) -> None:
        self.names = {model.unet: "unet", model.vae: "vae"} | dict.fromkeys(model.encoders, "text")
        self.at = dict.fromkeys(self.names, CPU) | {model.unet: DEVICE}
        self.seen: list[tuple[str, set[str]]] = []
        self.before: Callable[[str, set[str]], None] = lambda call, here: None
        self.arriving: Callable[[str], None] = lambda part: None
        self.trips = 0  # of the UNet to the CPU
        patch.setattr(places, "device_of", lambda part: self.at.get(part, CPU))
        for part in self.names:
            patch.setattr(part, "to", self._sender(part))
        for call in ("embed", "predict", "decode", "moments"):
            patch.setattr(model, call, self._watching(call, getattr(model, call)))

    def _sender(self, part: nn.Module) -> Callable[..., nn.Module]:
        def to(device: torch.device, *dtype: torch.dtype) -> nn.Module:
            if device == DEVICE and self.at[part] != DEVICE:
                self.arriving(self.names[part])
            self.trips += self.names[part] == "unet" and device == CPU and self.at[part] != CPU
            self.at[part] = device
            return part

        return to

    def _watching(self, call: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.seen.append((call, self.here()))
            self.before(call, self.here())
            return run(*args, **kwargs)

        return watched

    def here(self) -> set[str]:
        return {self.names[part] for part, device in self.at.items() if device == DEVICE}


ALONE = {"embed": {"text"}, "predict": {"unet"}, "decode": {"vae"}, "moments": {"vae"}}


@pytest.fixture
def model(tmp_path: Path) -> EngineModel:
    return load(tmp_path)


def wanted(count: int = 5, **kwargs: Any) -> Any:
    return settings(class_images=count, class_steps=2, resolution=SIDE, **kwargs)


def viewer_of(model: EngineModel, folder: Path, parts: Parts, **kwargs: Any) -> Viewer:
    chosen = wanted(sample_prompts=("a {subject}, 0", "a {subject}, 1", "a {subject}, 2"))
    return Viewer(model, chosen, folder, Report(folder, lambda text: None), parts=parts, **kwargs)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "STEPS", 2)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_part_is_there_alone_and_the_pictures_are_the_same(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path, family)
    wanted: dict[str, Any] = {"size": (48, SIDE), "steps": 2, "seeds": [1, 2]}
    together = generate(model, ["a dog", "a cat"], **wanted)
    watched = Watched(model, monkeypatch)
    alone = generate(model, ["a dog", "a cat"], **wanted, parts=Parts(model, one_at_a_time=True))
    assert torch.equal(together, alone)
    assert {call for call, _ in watched.seen} == {"embed", "predict", "decode"}
    assert all(here == ALONE[call] for call, here in watched.seen)
    assert watched.here() == {"unet"} and watched.trips == 2


def test_where_memory_suffices_the_unet_stays(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for short, movable in ((False, True), (True, False)):
        with monkeypatch.context() as patch:
            watched = Watched(model, patch)
            parts = Parts(model, one_at_a_time=short, movable=movable)
            generate(model, ["a dog"], size=(SIDE, SIDE), steps=2, seeds=[1], parts=parts)
            assert watched.trips == 0 and all("unet" in here for _, here in watched.seen)
            assert [here for call, here in watched.seen if call == "predict"] == [{"unet"}] * 2
            assert watched.here() == {"unet"}


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("where", ["embed", "predict", "decode"])
def test_after_an_exception_every_part_is_back(
    model: EngineModel, monkeypatch: pytest.MonkeyPatch, where: str, one_at_a_time: bool, learning: bool
) -> None:
    watched = Watched(model, monkeypatch)
    for part in model.encoders if learning else ():  # text encoders that are trained have their place there
        watched.at[part] = DEVICE
    before = dict(watched.at)

    def fails(call: str, here: set[str]) -> None:
        if call == where:
            raise KeyboardInterrupt

    watched.before = fails
    parts = Parts(model, one_at_a_time=one_at_a_time)
    with pytest.raises(KeyboardInterrupt):
        generate(model, ["a dog"], size=(SIDE, SIDE), steps=2, seeds=[1], parts=parts)
    assert watched.seen[-1][0] == where and watched.at == before
    watched.before = lambda call, here: None
    generate(model, ["a dog"], size=(SIDE, SIDE), steps=2, seeds=[1], parts=parts)
    assert watched.at == before


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("part", ["text", "vae"])
def test_a_part_that_finds_no_room_leaves_all_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, one_at_a_time: bool
) -> None:
    model = load(tmp_path, "sdxl")
    watched = Watched(model, monkeypatch)
    before = dict(watched.at)

    def full(arriving: str) -> None:
        if arriving == part:
            raise FULL

    watched.arriving = full
    with pytest.raises(torch.cuda.OutOfMemoryError):
        generate(
            model,
            ["a dog"],
            size=(SIDE, SIDE),
            steps=2,
            seeds=[1],
            parts=Parts(model, one_at_a_time=one_at_a_time),
        )
    assert watched.at == before


def test_class_pictures_take_one_trip_a_batch(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [p.read_bytes() for p in class_images(model, wanted(5), tmp_path / "together", batch=2)]
    watched = Watched(model, monkeypatch)
    parts = Parts(model, one_at_a_time=True)
    paths = class_images(model, wanted(5), tmp_path / "alone", batch=2, parts=parts)
    assert [path.read_bytes() for path in paths] == expected
    assert all(here == ALONE[call] for call, here in watched.seen)
    assert watched.trips == 1 + 3 and [call for call, _ in watched.seen].count("embed") == 1
    class_images(model, wanted(5), tmp_path / "alone", batch=2, parts=parts)
    assert watched.trips == 4 and watched.here() == {"unet"}


def test_a_stop_between_class_pictures_leaves_all_in_place(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(model, monkeypatch)
    with pytest.raises(Cancelled):
        class_images(
            model,
            wanted(5),
            tmp_path / "c",
            cancelled=lambda: ("decode", {"vae"}) in watched.seen,
            batch=2,
            parts=Parts(model, one_at_a_time=True),
        )
    assert watched.here() == {"unet"} and len(list((tmp_path / "c").rglob("*.png"))) == 2


def test_where_all_together_does_not_fit_class_images_are_generated_one_part_at_a_time(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(model, monkeypatch)
    rows: list[int] = []

    def small(call: str, here: set[str]) -> None:
        if call == "decode" and len(here) > 1:
            raise FULL

    watched.before = small
    predict = model.predict

    def counted(latents: Tensor, *args: Any) -> Tensor:
        rows.append(len(latents))
        return predict(latents, *args)

    monkeypatch.setattr(model, "predict", counted)
    parts = Parts(model)
    with parts.only(model.vae):
        assert len(class_images(model, wanted(4), tmp_path / "c", batch=2, parts=parts)) == 4
    assert parts.one_at_a_time and set(rows) == {4}  # the batches are as large as before
    assert watched.here() == {"unet"}


def test_where_even_one_part_does_not_fit_it_is_said(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(model, monkeypatch)

    def full(call: str, here: set[str]) -> None:
        raise FULL

    watched.before = full
    with pytest.raises(UserError, match="Out of memory"):
        class_images(model, wanted(4), tmp_path / "c", parts=Parts(model))
    assert watched.here() == {"unet"}


def test_samples_are_generated_in_turn_and_with_fewer_together_before_they_are_given_up(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a dog", "a cat", "a cow"]
    expected = viewer_of(model, tmp_path, Parts(model)).generate(prompts, [1, 2, 3])
    watched = Watched(model, monkeypatch)
    predict, tried = model.predict, []

    def small(latents: Tensor, *args: Any) -> Tensor:
        tried.append((len(latents), frozenset(watched.here())))
        if len(latents) > 2 or watched.here() != {"unet"}:
            raise FULL
        return predict(latents, *args)

    monkeypatch.setattr(model, "predict", small)
    parts = Parts(model)
    viewer = viewer_of(model, tmp_path, parts)
    steps: list[tuple[int, int]] = []
    pictures = viewer.generate(prompts, [1, 2, 3], lambda done, total: steps.append((done, total)))
    assert torch.allclose(pictures, expected, atol=1e-4) and parts.one_at_a_time
    assert [rows for rows, _ in tried[:3]] == [6, 6, 2] and steps == [(done + 1, 6) for done in range(6)]
    tried.clear()
    viewer.generate(prompts, [1, 2, 3])
    assert {rows for rows, _ in tried} == {2}  # what is known to be too much is not tried again
    assert watched.here() == {"unet"}


def test_with_weights_on_several_devices_samples_are_generated_in_one_way_only(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(model, monkeypatch)

    def full(call: str, here: set[str]) -> None:
        if call == "predict":
            raise FULL

    watched.before = full
    viewer = viewer_of(model, tmp_path, Parts(model, one_at_a_time=True, movable=False))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        viewer.generate(["a dog", "a cat"], [1, 2])
    assert len(watched.seen) == 2 and watched.trips == 0 and watched.here() == {"unet"}


def test_a_look_that_is_cancelled_or_does_not_fit_leaves_all_in_place(
    tmp_path: Path, model: EngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(model, monkeypatch)
    parts = Parts(model, one_at_a_time=True)
    assert not viewer_of(model, tmp_path, parts, cancelled=lambda: len(watched.seen) > 1).look(1, Best(), dict)
    assert watched.here() == {"unet"}

    def full(call: str, here: set[str]) -> None:
        raise FULL

    watched.before = full
    viewer = viewer_of(model, tmp_path, parts)
    assert viewer.look(1, Best(), dict) and viewer.preview() is None and watched.here() == {"unet"}


def test_a_lora_comes_along(model: EngineModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are sent where their layers are after each move, and computed with there."""
    watched = Watched(model, monkeypatch)
    lora, places_at = LoraSet(model, 2).inject(), []

    def follow() -> None:
        lora.move()
        places_at.append(watched.at[model.unet])

    with Parts(model, one_at_a_time=True, follow=follow).decoding():
        assert places_at == [CPU]
    assert places_at == [CPU, DEVICE]


@pytest.mark.parametrize("values", [{}, {"kind": "full", "train_text": True}], ids=["LoRA", "full"])
def test_a_whole_training_one_part_at_a_time_is_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(making, "ENCODED_AT_ONCE", 1)
    base = write(tmp_path)
    states: list[dict[str, Tensor]] = []
    files: list[dict[str, bytes]] = []
    for short in (False, True):
        place = tmp_path / str(short)
        place.mkdir()
        given = settings_for(place, base, prior="images", sample_every=2, memory=8.0, text_stop=0.5, **values)
        with monkeypatch.context() as patch:
            if short:
                patch.setattr(memory, "generation", lambda *_: (2**34, 2**32))
            made: list[Watched] = []

            def watched(*args: Any, made: list[Watched] = made, patch: pytest.MonkeyPatch = patch) -> EngineModel:
                model = load_training_model(*args)
                made.append(Watched(model, patch))
                return model

            train(given, load_model=watched)
        assert (made[0].trips > 3) == short and "unet" in made[0].here() and "vae" not in made[0].here()
        notes = " ".join(events(given, "plan")[-1]["notes"])
        assert ("one part of the model at a time" in notes) == short
        if short:
            drawn = [(call, here) for call, here in made[0].seen if call in ("decode", "moments")]
            assert drawn and all(here == ALONE[call] for call, here in drawn)
            # the UNet learns together with text encoders that learn, too
            assert all(here in ({"unet"}, {"unet", "text"}) for call, here in made[0].seen if call == "predict")
        states.append(state_tensors(given))
        pictures = [*given.out.rglob("step-*.png"), *given.out.rglob("class-*.png"), *given.out.glob("*.safetensors")]
        files.append({str(file.relative_to(given.out)): file.read_bytes() for file in pictures})
    assert equal(*states) and files[0] == files[1] and len(files[0]) == 2 + 2 + 1
