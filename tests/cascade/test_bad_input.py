"""Whatever is wrong with a job, its files or the disk is named in a sentence, and finished images stay."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lib_methods.cascade.run import CascadeResult, run_cascade
from lib_methods.errors import UserError
from lib_methods.jobs.log import LogReader
from tests.cascade.runs import CPU, Folders, request, run


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


def test_a_folder_that_cannot_be_made_is_named(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(UserError, match="The folder cascade cannot be used"):
        run(request(folders[:1], tmp_path / "file"))


def plain(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def resized(path: Path) -> None:
    image = Image.open(path)

    texts = PngInfo()
    texts.add_itxt("cascade", image.text["cascade"])  # type: ignore[attr-defined]
    image.resize((8, 8)).save(path, pnginfo=texts)


def damaged(data: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:

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
