"""The plan before the training: what it counts with, what it refuses, and that it leaves everything as it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_methods.checkpoints.layout import Shapes, unet_shapes
from lib_methods.device import GIB
from lib_methods.dreambooth.model.base import read_base
from lib_methods.dreambooth.photos.subjects import companions_told, find_subjects
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.dreambooth.training import duration as speed
from lib_methods.dreambooth.training import plan as planning
from lib_methods.dreambooth.training.duration import multiply_adds
from lib_methods.errors import UserError
from lib_methods.jobs.files import JobFiles, Record, save_record
from tests.dreambooth.count_memory import GEOMETRY
from tests.dreambooth.models import write
from tests.dreambooth.runs import events, settings_for, train
from tests.standalone import tiny

REAL_PROBE = speed._probe
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Computer:
    """A machine whose memory and leisure are said."""

    def __init__(self, device: torch.device = CPU, gib: float = 0.0, idle: bool = True) -> None:
        self._device, self.gib, self.idle = device, gib, idle
        self.occupied: list[bool] = []

    def device(self) -> torch.device:
        return self._device

    def memory(self, device: torch.device, occupied: bool) -> int | None:
        self.occupied.append(occupied)
        return int(self.gib * GIB) if device.type == "cuda" else None

    def may_compute(self, device: torch.device) -> bool:
        return self.idle


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.dtype]]:
    """The probes that are made; each finds a thousand million products a second."""
    made: list[tuple[str, torch.dtype]] = []

    def probe(device: torch.device, dtype: torch.dtype) -> float:
        made.append((device.type, dtype))
        return 1e9

    monkeypatch.setattr(speed, "_KNOWN", {})
    monkeypatch.setattr(speed, "_probe", probe)
    return made


@pytest.fixture(autouse=True)
def _gpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "device_words", lambda device: "the CPU" if device.type == "cpu" else "a GPU")
    monkeypatch.setattr(planning, "half_precision", lambda device: "fp32" if device.type == "cpu" else "bf16")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"))


def plan(base: Path, machine: Computer | None = None, photos: int = 4, **changes: Any) -> dict[str, Any]:
    root = changes.pop("root", Path("nowhere"))
    running = changes.pop("running", False)
    settings = TrainingSettings(Path("photos"), base, Path("out"), "rex", "dog", **changes)
    return speed.preview(settings, [photos], machine or Computer(), root, running)


def test_what_was_left_open_is_chosen_as_the_trainer_chooses_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=0, rate=0.0, resolution=0)
    train(settings, plan_only=True)  # it agrees that this can be trained
    found = plan(settings.base, photos=3)
    assert (found["steps"], found["prior"], found["batch_size"]) == (750, "model", 1)
    assert found["rate"] > 1e-4 and found["device"] == "the CPU" and found["estimated"]


@pytest.mark.parametrize(
    ("diffusers", "values"),
    [
        (False, {"train_text": True, "convolutions": True, "rank": 4}),
        (True, {}),
        (False, {"kind": "full"}),
        (True, {"kind": "full", "prior": "off", "train_text": True}),
    ],
)
def test_it_is_what_the_training_itself_tells(tmp_path: Path, diffusers: bool, values: dict[str, Any]) -> None:
    settings = settings_for(tmp_path, write(tmp_path, "sd2", diffusers=diffusers), steps=1, **values)
    train(settings)
    told = events(settings, "plan")[0]
    subjects, _ = find_subjects(settings)
    found = speed.preview(settings, [3], Computer(), tmp_path, told=companions_told(subjects, settings))
    for name in set(told) - {"event", "time", "seconds", "device"}:
        assert found[name] == told[name], name


def test_the_time_grows_with_the_steps_the_rows_and_the_side(base: Path) -> None:
    for name, values in (("steps", (10, 20, 500)), ("batch_size", (1, 2, 8)), ("resolution", (64, 128, 512))):
        times = [
            plan(base, **dict[str, Any]({"steps": 10, "resolution": 64, name: value}))["seconds"] for value in values
        ]
        assert times == sorted(times) and len(set(times)) == len(times), name
    usual: dict[str, Any] = {"steps": 10, "resolution": 64}
    assert plan(base, **{**usual, "steps": 20})["seconds"] == pytest.approx(2 * plan(base, **usual)["seconds"])
    assert plan(base, **usual, checkpointing=True)["seconds"] > plan(base, **usual)["seconds"]
    assert plan(base, **usual, prior="off")["seconds"] < plan(base, **usual)["seconds"]


def test_the_class_images_drawing_is_counted(base: Path) -> None:
    usual: dict[str, Any] = {"steps": 10, "resolution": 64, "kind": "full"}
    few, many = (plan(base, **usual, class_images=count) for count in (10, 110))
    assert (few["class_images"], many["class_images"]) == (10, 110)
    forward = (many["seconds"] - few["seconds"]) / 100 / 20  # two rows, as a pass of the training has
    assert few["seconds"] == pytest.approx(forward * (10 * 3 + 10 * 20))


def test_the_device_is_measured_once_and_not_while_it_works(base: Path, probes: list[Any]) -> None:
    assert plan(base, Computer(idle=False))["seconds"] is None
    assert plan(base, running=True)["seconds"] is None
    assert probes == []
    first = plan(base)["seconds"]
    assert plan(base, Computer(idle=False), running=True)["seconds"] == first
    assert probes == [("cpu", torch.float32)]
    assert plan(base, Computer(CUDA, 8.0))["seconds"] is not None
    assert probes[1:] == [("cuda", torch.bfloat16)]


def test_a_device_that_cannot_be_measured_leaves_the_time_open(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_probe", lambda device, dtype: None)
    found = plan(base)
    assert found["seconds"] is None and found["steps"] == 1000


def test_the_probe_measures_and_gives_up_where_nothing_can_be() -> None:
    found = REAL_PROBE(CPU, torch.float32)
    assert found is not None and found > 1e6
    assert REAL_PROBE(torch.device("meta"), torch.float32) is None


def test_a_gpu_computes_while_layers_are_started_and_a_cpu_does_not() -> None:
    work: Shapes = {f"conv_{number}.weight": (2, 5) for number in range(100)}
    slow, fast = 1e5, 1e12
    for device in (CPU, CUDA):
        assert speed.forward_seconds(work, 1, (10, 10), device, fast) == pytest.approx(0.01, rel=0.2)
        assert speed.forward_seconds(work, 1, (10, 10), device, slow) > 1
    assert speed.forward_seconds(work, 2, (10, 10), CUDA, slow) == pytest.approx(2 * 1e5 / slow / 0.4)


def test_memory_decides_and_a_refusal_says_what_would_fit(base: Path) -> None:
    large = replace(read_base(base).sizes, unet=860_000_000, largest=29_491_200, resolution=512)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "read_base", lambda path: replace(read_base(path), sizes=large))
        machine = Computer(CUDA, 12.0)

        def least(gibs: list[float]) -> None:
            for gib in gibs:
                plan(base, Computer(CUDA, gib), kind="full")

        assert plan(base, machine, kind="full")["precision"] == "bf16"
        with pytest.raises(UserError, match=r"\d GiB are not enough.* LoRA would fit"):
            least([tenths / 10 for tenths in range(120, 0, -1)])
        with pytest.raises(UserError, match=r"1\.0 GiB are not enough"):
            plan(base, machine, kind="full", memory=1.0)
        plan(base, machine, running=True)
        assert machine.occupied == [False, True]  # where the settings name the memory, nobody asks the machine


def test_a_resolution_that_is_guessed_is_said(tmp_path: Path) -> None:
    path = tiny.write_file(tiny.build("sd2"), tmp_path / "v2.safetensors", with_yaml=False)
    assert any("768 or 512" in note for note in plan(path)["notes"])
    assert not any("768 or 512" in note for note in plan(path, resolution=64)["notes"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingSettings:
    settings = settings_for(tmp_path_factory.mktemp("trained"), steps=6)
    train(settings)
    return settings


def kept_training(trained: TrainingSettings, tmp_path: Path, name: str = "dog1") -> tuple[Path, TrainingSettings]:
    """A training as the tab leaves it: its root, and its settings."""
    files = JobFiles(tmp_path / "root", name)
    shutil.copytree(trained.out / trained.name, files.folder)
    save_record(files, Record(name, trained.kind, "done", started=len(name)))
    return files.root, replace(trained, out=files.out, name=name)


def paced(root: Path, name: str, seconds: float) -> None:
    """Makes the log tell another pace."""
    log = JobFiles(root, name).log
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    told = [{**line, "seconds_per_step": seconds} if line["event"] == "step" else line for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in told), encoding="utf-8")


def test_an_earlier_training_like_this_one_tells_the_time(
    trained: TrainingSettings, tmp_path: Path, probes: list[Any]
) -> None:
    root, settings = kept_training(trained, tmp_path)
    paced(root, "dog1", 2.0)

    def seconds(machine: Computer | None = None, **changes: Any) -> Any:
        return speed.preview(replace(settings, **changes), [3], machine or Computer(), root)["seconds"]

    assert seconds() == pytest.approx(12.0) and seconds(steps=100) == pytest.approx(200.0)
    assert seconds(Computer(idle=False)) == pytest.approx(12.0)
    assert seconds(sample_every=50, class_noun="cat") == pytest.approx(12.0)
    assert probes == []
    for changes in ({"kind": "full"}, {"rank": 8}, {"batch_size": 2}, {"resolution": 128}, {"checkpointing": True}):
        assert seconds(Computer(idle=False), **changes) is None, changes
    other = write(tmp_path, "sd2")
    assert seconds(Computer(idle=False), base=other) is None
    assert seconds(Computer(CUDA, 8.0, idle=False)) is None


def test_the_newest_training_counts_and_broken_ones_are_passed_over(trained: TrainingSettings, tmp_path: Path) -> None:
    root, settings = kept_training(trained, tmp_path)
    kept_training(trained, tmp_path, "newer-one")
    paced(root, "dog1", 2.0)
    paced(root, "newer-one", 3.0)
    asked = lambda: speed.preview(settings, [3], Computer(idle=False), root)["seconds"]  # noqa: E731
    assert asked() == pytest.approx(18.0)
    newer = JobFiles(root, "newer-one").folder / "training.json"
    for broken in ("{", "[]", "{}", '{"resolved": 5, "plan": 5}', '{"resolved": {"photos": "x"}, "plan": {}}'):
        newer.write_text(broken, encoding="utf-8")
        assert asked() == pytest.approx(12.0), broken


def test_asking_leaves_the_folders_as_they_are(trained: TrainingSettings, tmp_path: Path) -> None:
    root, settings = kept_training(trained, tmp_path)

    def everything() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

    before = everything()
    speed.preview(replace(settings, name="another"), [3], Computer(), root)
    speed.preview(settings, [3], Computer(), tmp_path / "no root yet")
    assert everything() == before


def test_the_work_of_sd15_is_as_published() -> None:
    """860 million parameters, about 0.8 TFLOP for a latent of 64 x 64."""
    assert 2 * multiply_adds(unet_shapes(GEOMETRY["sd1"]), 64, 64) == pytest.approx(0.8e12, rel=0.02)
