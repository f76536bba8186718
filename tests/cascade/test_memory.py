"""One part of the cascade is in memory at a time, or all where there is room; a batch is what fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_methods.cascade.parts import Parts
from lib_methods.cascade.run import CascadeResult
from lib_methods.device import LiveBytes
from lib_methods.jobs.log import LogReader
from tests.cascade.runs import Folders, assert_same, request, run


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
