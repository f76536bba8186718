"""The programs `evaluate cascade` and `bench cascade`: every figure is there and means what its name says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import bench_cascade
from benchmarks import evaluate_cascade as program
from benchmarks import evaluate_cascade_detail as detail
from benchmarks.evaluate_guidance import burnt
from standalone.shapes.styles import STYLES, paint_aligned, restyle
from standalone.shapes.world import random_scene
from tests.cascade.runs import Folders
from tests.shared.pretend_device import pretend_device

FEW = {"steps": 1, "stage2_steps": 1}


def test_every_figure_is_there_and_finite(folders: Folders, tmp_path: Path) -> None:
    assert program.evaluate(tmp_path, 2, folders[:2], steps=FEW) == 0
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    metrics, settings = report["metrics"], report["settings"]
    wanted = {
        f"{name}_{kind}_{guidance}"
        for name in ("accuracy", "burnt")
        for kind in ("none", "static", "dynamic")
        for guidance in (5, 10, 20, 30)
    }
    wanted |= {f"{way}{name}" for way in ("", "style_first_") for name in ("style_changed", "content_kept")}
    wanted |= {f"memory_{name}" for name in ("one_at_a_time", "all", "largest_part")}
    assert wanted <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["memory_largest_part"] <= metrics["memory_one_at_a_time"] < metrics["memory_all"]
    assert metrics["memory_measured_to_largest_part"] <= 1.10
    assert (settings["pictures_per_figure"], settings["stages"]) == (2, ["IF-I", "IF-II"])
    assert {file.name for file in tmp_path.glob("*.png")} == {"report.png", "thresholds.png", "styles.png"}


def test_burnt_pixels_are_those_that_a_plain_count_finds() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(3, 253, (8, 8, 3), dtype=np.uint8)
    assert burnt([picture]) == 0
    for place, channel, level in (((0, 0), 0, 255), ((0, 0), 1, 0), ((3, 4), 2, 253), ((7, 7), 1, 2)):
        picture[(*place, channel)] = level
    count = sum(any(level <= 2 or level >= 253 for level in pixel) for pixel in picture.reshape(-1, 3).tolist())
    assert count == 3
    assert burnt([picture, picture]) == count / 64


def test_rendered_images_are_the_best_that_can_be_reached() -> None:
    """No pixel of theirs is burnt, and a change of style that keeps everything is found to do so."""
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(6)]
    plain = [paint_aligned(scene, rng) for scene in scenes]
    small = [program.reduced(picture) for picture in plain]
    assert burnt(small) == 0
    assert program.accuracy(scenes, small) > 0.9
    wanted = [STYLES[1 + i % 3] for i in range(6)]
    restyled = [restyle(picture, style, rng) for picture, style in zip(plain, wanted)]
    found = program.kept(small, restyled, wanted)
    assert found["style_changed"] == 1 and found["content_kept"] > 0.9
    other = program.kept(small[1:] + small[:1], restyled, [STYLES[0]] * 6)
    assert other["style_changed"] == 0 and other["content_kept"] < found["content_kept"] - 0.2


def test_fine_detail_is_nothing_that_a_small_image_shows() -> None:
    place = detail.new_places(1)[0]
    true = detail.photo(place)
    (small,) = detail.small_images([true], 32)
    blurred = np.asarray(Image.fromarray(small).resize((128, 128), Image.Resampling.BICUBIC))
    turned = np.ascontiguousarray(np.rot90(true))
    corner = (place[0][1], 128 - detail.OBJECT - place[0][0])
    assert detail.recovered(true, place) == 1 and detail.contrast(true, place) == 1
    assert abs(detail.recovered(blurred, place)) < 0.02 and detail.contrast(blurred, place) < 0.3
    assert detail.recovered(turned, (corner, place[1])) < 0.1 < detail.contrast(turned, (corner, place[1]))
    assert not {corner for corner, _ in detail.new_places(200)} & set(detail.PHOTOS)


def test_the_ablation_trains_and_measures_every_stage_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detail.SAMPLING, "stage2_steps", 3)
    assert detail.evaluate(tmp_path, 2, program.FOLDER, {**detail.TRAINING, "steps": 3}) == 0
    metrics = json.loads((tmp_path / "report.json").read_text("utf-8"))["metrics"]
    names = ("not_tuned", "tuned_0.25", "tuned_1e-3", "tuned_1e-5")
    assert metrics.keys() == {f"{figure}_{name}" for figure in ("detail", "contrast") for name in names}
    assert len(set(metrics.values())) > 2 and all(map(math.isfinite, metrics.values()))
    assert (tmp_path / "detail.png").is_file()


def test_training_runs_of_two_text_encoders_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from standalone.shapes import train_cascade

    monkeypatch.setitem(train_cascade.STOCK, 1, 2)
    monkeypatch.setattr(train_cascade, "REFRESH", 1000)
    for kind in ("t5", "clip"):
        made = train_cascade.Trainer(tmp_path / kind, 1, batch=4, rate=1e-3, minutes=1, text=kind, steps=1)
        made.run()
    with pytest.raises(SystemExit, match="another text encoder"):
        train_cascade.Trainer(tmp_path / "clip", 1, batch=4, rate=1e-3, minutes=1)
    scenes = [random_scene(np.random.default_rng(1))]
    found: dict[str, float] = {}
    for name in ("t5", "clip"):
        found |= program.with_text(tmp_path / name, scenes, tmp_path / "stages", FEW)[0]
    assert found.keys() == {"text_t5", "text_t5_steps", "text_clip", "text_clip_steps"}
    assert found["text_t5_steps"] == found["text_clip_steps"] == 1
    assert all(0 <= value <= 1 for value in found.values())


def test_the_bench_compares_our_job_with_diffusers_pipelines(tmp_path: Path) -> None:
    bench_cascade.build(tmp_path, False, torch.device("cpu"))
    runs = {way: [bench_cascade.measure(way, tmp_path, (1, 1), False)] for way in ("diffusers", "one_at_a_time")}
    found = bench_cascade.figures(runs)
    for name in ("stage_1", "stage_2", "whole"):
        pair = found[f"seconds_{name}_one_at_a_time"], found[f"seconds_{name}_diffusers"]
        assert found[f"ratio_{name}_one_at_a_time"] == pytest.approx(pair[0] / pair[1])
    seconds = runs["one_at_a_time"][0]["seconds"]
    assert 0 < sum(value for name, value in seconds.items() if name != "whole") <= seconds["whole"] + 0.1


@pytest.mark.parametrize(("stage", "size", "published"), [(1, "M", 400), (1, "L", 900), (2, "M", 450), (2, "L", 1200)])
def test_the_bench_has_the_published_sizes(stage: int, size: str, published: int) -> None:
    part = bench_cascade.on_paper("unet", bench_cascade.unet_config(stage, size, 4096))
    assert part.numbers / 1e6 == pytest.approx(published, rel=0.08)


def test_both_stages_give_the_same_images_in_half_precision_on_an_accelerator(folders: Folders, tmp_path: Path) -> None:
    prompts = ["a photo of red circles", "a photo of blue crosses"]
    exact = program.Maker(folders[:2], tmp_path / "exact", FEW, torch.device("cpu"), "fp32")
    small = exact.make(1, prompts)
    wanted = [small, exact.make(2, prompts, small)]
    with pretend_device() as device:
        half = program.Maker(folders[:2], tmp_path / "half", FEW, device, "fp16")
        found = [half.make(1, prompts), half.make(2, prompts, small)]
    for stage in range(2):
        assert np.abs(np.stack(wanted[stage]).astype(int) - np.stack(found[stage])).max() <= 8
