"""A whole job: images that depend on the request alone, and whatever was finished is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_methods.cascade import parts as cascade_parts
from lib_methods.cascade.candidate import read_candidate
from lib_methods.cascade.folder import Part
from lib_methods.cascade.run import CascadeResult
from lib_methods.cascade.settings import CascadeSettings
from lib_methods.errors import Cancelled
from lib_methods.jobs.log import LogReader
from tests.cascade.runs import Folders, assert_same, pixels, request, run


def test_every_stage_makes_its_images_and_the_log_tells(finished: CascadeResult) -> None:
    sizes = {number: {Image.open(file).size for file in files} for number, files in finished.by_stage.items()}
    assert sizes == {1: {(16, 16)}, 2: {(32, 32)}, 3: {(128, 128)}}
    assert finished.files == finished.by_stage[3]
    assert (pixels(finished.files[0]) != pixels(finished.files[1])).any()
    progress = LogReader(finished.files[0].parent / "training.jsonl").read()
    assert progress.outcome == "done"
    assert {sample.step: len(sample.files) for sample in progress.samples} == {1: 2, 2: 2, 3: 2}
    assert (progress.of("step")["stage"], progress.step, progress.steps) == (3, 3, 3)
    lines = (finished.files[0].parent / "training.jsonl").read_text("utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    left = {event["stage"]: event["seconds_left"] for event in steps}
    assert left[1] > 0 and left[2] > 0 and left[3] == 0, "after the last step of each stage, the later ones are left"


def test_the_same_request_gives_the_same_images_in_any_batch(
    folders: Folders, tmp_path: Path, finished: CascadeResult
) -> None:
    again = run(request(folders[:2], tmp_path / "out"))
    for stage in (1, 2):
        for one, other in zip(finished.by_stage[stage], again.by_stage[stage]):
            assert (pixels(one) == pixels(other)).all()
    # the second image alone, and in slices of one
    alone = run(request(folders[:2], tmp_path / "alone", seed=6, count=1))
    sliced = run(request(folders, tmp_path / "sliced", batch=1))
    assert_same(alone.files[0], finished.by_stage[2][1])
    for one, other in zip(sliced.files, finished.files):
        assert_same(one, other)


def test_a_candidate_goes_on_from_its_file(folders: Folders, tmp_path: Path, finished: CascadeResult) -> None:
    chosen = finished.by_stage[1][1]
    went_on = run(request(folders, tmp_path / "out", prompt="", seed=-1, resume_from=(chosen,)))
    assert_same(went_on.files[0], finished.files[1])
    made = read_candidate(went_on.files[0])
    assert (made.stage, made.settings.seed, made.settings.prompt) == (3, 6, "a photo of a cat")
    # what it was made with stays, too, where nothing else is asked for
    plain = CascadeSettings(prompt="", stage2_steps=7)
    kept = read_candidate(chosen).continued(plain)
    assert (kept.steps, kept.stage2_steps, kept.seed) == (3, 7, 6)
    # another style on the way up
    styled = request(folders, tmp_path / "styled", resume_from=(chosen,), stage2_prompt="an oil painting of {subject}")
    assert (pixels(run(styled).files[0]) != pixels(finished.files[1])).any()


def test_an_image_is_changed_and_outside_of_the_mask_it_stays(
    folders: Folders, with_text: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.arange(48 * 32 * 3, dtype=np.uint8).reshape(32, 48, 3)).save(tmp_path / "image.png")
    area = np.zeros((32, 48), np.uint8)
    area[:, :16] = 255
    Image.fromarray(area).save(tmp_path / "mask.png")
    files = {"image": tmp_path / "image.png", "mask": tmp_path / "mask.png"}
    found = run(request(folders[:2], tmp_path / "out", count=1, **files))
    assert [Image.open(found.by_stage[number][0]).size for number in (1, 2)] == [(24, 16), (48, 32)]
    changed = (pixels(found.files[0]) != pixels(tmp_path / "image.png")).any(axis=(0, 2))
    assert changed[:14].any()
    assert not changed[18:].any()
    # the same in two jobs, as the tab does it
    first = run(request(folders[:2], tmp_path / "first", count=1, last_stage=1, **files))
    second = run(request(folders[:2], tmp_path / "second", prompt="", resume_from=first.files, **files))
    assert (pixels(second.files[0]) == pixels(found.files[0])).all()
    # without stage I, an image of one's own is enlarged
    alone = run(request([with_text], tmp_path / "alone", count=1, image=tmp_path / "image.png"))
    assert Image.open(alone.files[0]).size == (48, 32)


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_an_interrupt_keeps_what_is_finished_and_resumes_to_the_same_images(
    folders: Folders, tmp_path: Path, finished: CascadeResult, stop_after: int
) -> None:
    asked = request(folders, tmp_path / "out")
    log = asked.folder / "training.jsonl"

    def cancelled() -> bool:
        return log.exists() and log.read_text("utf-8").count('"step", "time"') > stop_after

    with pytest.raises(Cancelled):
        run(asked, cancelled=cancelled)
    there = {path.name: path.stat().st_mtime_ns for path in asked.folder.glob("*.png")}
    assert len(there) == 2 * (stop_after // 3)
    assert LogReader(log).read().outcome == "cancelled"
    again = run(asked, resume=True)
    assert {name: (asked.folder / name).stat().st_mtime_ns for name in there} == there
    for one, other in zip(finished.files, again.files):
        assert (pixels(one) == pixels(other)).all()


def test_a_resumed_run_keeps_its_random_seed(folders: Folders, tmp_path: Path) -> None:
    asked = request(folders[:1], tmp_path / "out", seed=-1)
    first = run(asked)
    seed = json.loads((asked.folder / "request.json").read_text("utf-8"))["settings"]["seed"]
    assert read_candidate(first.files[0]).settings.seed == seed >= 0
    first.files[1].unlink()
    assert [read_candidate(file).settings.seed for file in run(asked, resume=True).files] == [seed, seed + 1]


def test_a_known_prompt_never_loads_the_text_encoder(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(part: Part, *rest: Any) -> Any:
        loaded.append(part.name)
        return cascade_parts.load(part, *rest)

    monkeypatch.setattr("lib_methods.cascade.text.load", load)
    for name, prompt in (("one", "a blue dog"), ("two", "A blue dog "), ("three", "a blue cat")):
        run(request(folders[:1], tmp_path / name, prompt=prompt, guidance=1.0))
    assert loaded == ["text_encoder"] * 2


def test_a_prompt_that_is_too_long_says_what_was_cut_each_time(folders: Folders, tmp_path: Path) -> None:
    for name in ("one", "two"):
        asked = request(folders[:1], tmp_path / name, prompt="red " * 76 + "oil painting", guidance=1.0)
        run(asked)
        (warning,) = LogReader(asked.folder / "training.jsonl").read().warnings
        assert "longer than 77 tokens" in warning and "painting" in warning
