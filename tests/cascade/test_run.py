"""A whole job: images that depend on the request alone, and whatever was finished is kept."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lib_methods.cascade import parts as cascade_parts
from lib_methods.cascade.candidate import read_candidate
from lib_methods.cascade.folder import Part
from lib_methods.cascade.parts import Parts
from lib_methods.cascade.run import CascadeResult, run_cascade
from lib_methods.cascade.settings import CascadeRequest, CascadeSettings
from lib_methods.device import LiveBytes
from lib_methods.errors import Cancelled, UserError
from lib_methods.jobs.log import LogReader

CPU = torch.device("cpu")
Folders = tuple[Path, Path, Path]
FEW: dict[str, Any] = {"steps": 3, "stage2_steps": 3, "stage3_steps": 3}


def request(folders: Any, out: Path, **changes: Any) -> CascadeRequest:
    files = {name: changes.pop(name) for name in ("name", "image", "mask", "resume_from") if name in changes}
    settings = CascadeSettings(**{"prompt": "a photo of a cat", "seed": 5, "count": 2, **FEW, **changes})
    return CascadeRequest(tuple(folders), out, settings=settings, embeddings=out.parent / "texts", **files)


def run(asked: CascadeRequest, **options: Any) -> CascadeResult:
    return run_cascade(asked, say=lambda text: None, device=CPU, **options)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def assert_same(one: Path, other: Path) -> None:
    """The same image but for sums of another order, in another batch."""
    apart = abs(pixels(one) - pixels(other))
    assert apart.mean() < 0.5 and apart.max() <= 10


@pytest.fixture(scope="module")
def with_text(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage II with a text encoder of its own, as it is published."""
    folder = tmp_path_factory.mktemp("cascades") / folders[1].name
    shutil.copytree(folders[1], folder)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folders[0] / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def finished(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> CascadeResult:
    """Two images through all stages."""
    return run(request(folders, tmp_path_factory.mktemp("finished") / "out"))


def test_every_stage_makes_its_images_and_the_log_tells(finished: CascadeResult) -> None:
    sizes = {number: {Image.open(file).size for file in files} for number, files in finished.by_stage.items()}
    assert sizes == {1: {(16, 16)}, 2: {(32, 32)}, 3: {(128, 128)}}
    assert finished.files == finished.by_stage[3]
    assert (pixels(finished.files[0]) != pixels(finished.files[1])).any()
    progress = LogReader(finished.files[0].parent / "training.jsonl").read()
    assert progress.outcome == "done"
    assert {sample.step: len(sample.files) for sample in progress.samples} == {1: 2, 2: 2, 3: 2}
    assert (progress.of("step")["stage"], progress.step, progress.steps) == (3, 3, 3)


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


def test_only_one_part_is_there_at_a_time(folders: Folders, tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []
    parts = Parts(watch=seen.append)
    run(request(folders, tmp_path / "out", prompt="a red dog"), parts=parts)
    assert parts.most == 1
    order = [names[0] for names in seen if names]
    parted = [f"{folder.name}/{part}" for folder, part in zip(folders[:2], ("unet", "unet"))]
    upscaler = folders[2].name
    text = [f"{folders[0].name}/text_encoder", f"{upscaler}/text_encoder"]
    assert [Path(name).parent.name + "/" + Path(name).name for name in order] == [
        *text, *parted, f"{upscaler}/unet", f"{upscaler}/vae",
    ]  # fmt: skip


def test_all_parts_stay_where_memory_allows(folders: Folders, tmp_path: Path) -> None:
    parts = Parts()
    run(request(folders[:2], tmp_path / "out", prompt="a red cat", memory=1.0), parts=parts)
    assert parts.keep_all and parts.most == 3
    parts.close()


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 1, 2)])
def test_the_peak_is_that_of_the_largest_part(
    folders: Folders, with_text: Path, tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    """Counted: the bytes of all tensors that live at once, over the whole run, against the plan's largest part."""
    told: list[dict[str, Any]] = []
    Image.new("RGB", (16, 16), "red").save(tmp_path / "image.png")
    more = {} if 0 in numbers else {"image": tmp_path / "image.png"}
    given = [with_text] if numbers == (1,) else [folders[number] for number in numbers]
    asked = request(given, tmp_path / "out", count=1, **more)
    with LiveBytes() as live:
        run(asked)
    for line in (asked.folder / "training.jsonl").read_text("utf-8").splitlines():
        event = json.loads(line)
        told += [event] if event["event"] == "plan" else []
    assert live.peak <= 1.10 * told[0]["one_at_a_time"]


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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 20}, "multiple of 8"),
        ({"memory": 1e-5}, "memory are not enough"),
        ({"memory": 1e-3, "residence": "all", "width": 128}, "All parts together|memory are not enough"),
        ({"text_precision": "8 bit"}, "8 bit needs"),
        ({"stage2_noise_level": 999, "stage3_noise_level": 999, "steps": 1000, "solver": "DDIM"}, ""),
        ({"name": "text_embeddings"}, "cannot be the name"),
    ],
)
def test_bad_requests_end_before_anything_is_loaded(
    folders: Folders, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    def refused(*rest: Any) -> Any:
        raise AssertionError("loaded")

    def ask() -> None:
        run_cascade(request(folders, tmp_path / "out", **changes), plan_only=True, say=lambda text: None, device=CPU)

    if not sentence:
        return ask()
    with pytest.raises(UserError, match=sentence):
        ask()


def test_missing_stages_are_named(folders: Folders, tmp_path: Path) -> None:
    for number, (given, sentence) in enumerate(
        [
            (folders[1:], r"stage I \(text to image\) is missing"),
            ((folders[0], folders[2]), r"stage II \(super-resolution\) is missing"),
        ]
    ):
        with pytest.raises(UserError, match=sentence):
            run(request(given, tmp_path / str(number)))


def test_a_run_of_that_name_is_not_overwritten(folders: Folders, tmp_path: Path, finished: CascadeResult) -> None:
    out = finished.files[0].parents[1]
    with pytest.raises(UserError, match="already exists"):
        run(request(folders, out))


def test_a_full_disk_is_named_and_finished_images_stay(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_methods.cascade import candidate

    real, count = candidate.replacing, [0]

    def full(path: Path) -> Any:
        count[0] += 1
        if count[0] > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(candidate, "replacing", full)
    asked = request(folders[:2], tmp_path / "out")
    with pytest.raises(UserError, match="stage2.png cannot be written. The disk is full"):
        run(asked)
    assert sorted(path.name for path in asked.folder.glob("*.png")) == [
        "000-stage1.png", "000-stage2.png", "001-stage1.png",
    ]  # fmt: skip
    assert LogReader(asked.folder / "training.jsonl").read().error


def test_a_batch_that_does_not_fit_is_split_and_gives_the_same_images(
    folders: Folders, tmp_path: Path, finished: CascadeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_methods.cascade import run as job

    real, sizes = job.pixel_stage, []

    def small_card(unet: Any, stage: Any, settings: Any, texts: Any, chance: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(chance))
        if len(chance) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(unet, stage, settings, texts, chance, *rest, **more)

    monkeypatch.setattr(job, "pixel_stage", small_card)
    asked = request(folders[:2], tmp_path / "out")
    for one, other in zip(run(asked).files, finished.by_stage[2]):
        assert_same(one, other)
    assert sizes == [2, 1, 1] * 2
    assert "too small for 2 images at once" in LogReader(asked.folder / "training.jsonl").read().warnings[0]


def test_a_folder_that_cannot_be_made_is_named(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(UserError, match="The folder cascade cannot be used"):
        run(request(folders[:1], tmp_path / "file"))


def plain(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def resized(path: Path) -> None:
    image = Image.open(path)
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_itxt("cascade", image.text["cascade"])  # type: ignore[attr-defined]
    image.resize((8, 8)).save(path, pnginfo=texts)


def damaged(data: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        from PIL.PngImagePlugin import PngInfo

        texts = PngInfo()
        texts.add_itxt("cascade", data)
        Image.open(path).save(path, pnginfo=texts)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), "There is no file candidate.png"),
        (lambda path: path.write_bytes(b"no image"), "candidate.png cannot be taken up again"),
        (plain, "carries no data of the cascade"),
        (resized, "was resized"),
        (damaged("{"), "is damaged"),
        (damaged("[]"), "is damaged"),
        (
            damaged('{"stage": 1, "side": 16, "size": [16, 16], "settings": {"steps": -4}, "models": {}}'),
            "not possible",
        ),
        (damaged('{"stage": 7, "side": 16, "size": [16, 16], "settings": {}, "models": {}}'), "is damaged"),
        (damaged("[" * 100_000), "is damaged"),
    ],
)
def test_a_candidate_without_its_data_is_named(
    folders: Folders, tmp_path: Path, finished: CascadeResult, spoil: Callable[[Path], Any], sentence: str
) -> None:
    path = tmp_path / "candidate.png"
    path.write_bytes(finished.by_stage[1][0].read_bytes())
    spoil(path)
    with pytest.raises(UserError, match=sentence):
        run(request(folders, tmp_path / "out", resume_from=(path,)))
