"""Triplets, rendered pairs, filters and the folder: what is in them, what is refused, and going on after a stop."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from lib_methods.errors import UserError
from standalone.instruct import dataset, make
from standalone.instruct.filters import AttributeFilter, ClipFilter, Thresholds
from standalone.instruct.make import render_pair
from standalone.instruct.triplets import CHANGED, Triplet, read_triplets, world_triplet
from standalone.setup import options
from standalone.setup.start import dispatch
from standalone.shapes.parser import parse
from standalone.shapes.world import ATTRIBUTES, Layout, Scene, paint


def scenes(triplet: Triplet) -> tuple[Scene, Scene]:
    assert triplet.scene_before is not None and triplet.scene_after is not None
    return triplet.scene_before, triplet.scene_after


def test_a_world_triplet_changes_one_attribute_and_names_the_new_value() -> None:
    changed = set()
    for number in range(200):
        triplet = world_triplet(1, number)
        before, after = scenes(triplet)
        differ = [name for name in ATTRIBUTES if getattr(before, name) != getattr(after, name)]
        assert len(differ) == 1
        changed.add(differ[0])
        assert getattr(after, differ[0]) in triplet.instruction
        assert "{" not in triplet.instruction and "sss" not in triplet.instruction
        assert triplet == world_triplet(1, number)
    assert changed == set(CHANGED)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "Line 2 of list.jsonl is not JSON"),
        ("[1, 2]", "Line 2 of list.jsonl is not an object"),
        ('{"before": "a", "after": "b"}', 'Line 2 of list.jsonl has no text for "instruction"'),
        ('{"before": "a", "instruction": 3, "after": "b"}', 'no text for "instruction"'),
        ('{"before": " ", "instruction": "x", "after": "b"}', 'no text for "before"'),
        ('{"before": "a", "instruction": "x", "after": "' + "b" * 1001 + '"}', "more than 1000 characters"),
        ("[" * 100_000, "Line 2 of list.jsonl is not"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str, told: str, capsys: Any) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"before": "a", "instruction": "x", "after": "b"}\n' + line + "\n", encoding="utf-8")
    command = ["make-instruct-data", "--out", str(tmp_path / "out"), "--triplets", str(path), "--no-filter"]
    assert dispatch(options.parse(command)) == 1
    err = capsys.readouterr().err
    assert told in err and len(err.strip().splitlines()) == 1 and str(tmp_path) not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_triplets_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.jsonl"):
        read_triplets(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_triplets(tmp_path / "gone.jsonl")


def test_rendered_pairs_show_both_scenes_with_the_objects_in_their_places() -> None:
    judge, right = AttributeFilter(1.0), 0
    for number in range(16):
        triplet = world_triplet(2, number)
        before, after = render_pair(*scenes(triplet), number)
        verdict = judge(triplet, before, after)
        right += verdict.keep
        assert verdict.scores["image"] == 1.0
    assert right >= 15  # the parser may be wrong about one


def test_the_filter_refuses_what_is_not_asked_for() -> None:
    first = Scene("circle", "red", "small", "plain", "all over", "white")
    second = replace(first, kind="square")
    triplet = Triplet("circles", "make them squares", "squares", first, second)
    here, there = (Layout(16, corners, np.zeros((2, 3))) for corners in (((5, 5), (42, 42)), ((42, 5), (5, 42))))
    before, after, elsewhere = paint(first, here), paint(second, here), paint(second, there)
    judge = AttributeFilter()
    assert judge(triplet, before, after).keep
    assert not judge(triplet, before, before).keep  # the change is missing
    assert not judge(triplet, after, after).keep
    assert not judge(triplet, before, np.zeros_like(after)).keep
    assert not judge(triplet, before, paint(replace(second, colour="blue"), here)).keep  # more than the change
    assert parse(elsewhere).attributes == parse(after).attributes
    assert not judge(triplet, before, elsewhere).keep  # other objects


def run_make(out: Path, *more: str) -> int:
    try:
        return dispatch(options.parse(["make-instruct-data", "--out", str(out), *more]))
    except options.UsageError as error:  # as run.py answers it, before torch is imported
        print(error, file=sys.stderr)
        return 1


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = ["--checkpoint", str(checkpoint), "--size", "64", "--steps", "2", "--no-filter", "--seed", "4"]
    drawing += ["--pairs-per-triplet", "3", "--keep", "2", "--count", "3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_make(whole, *drawing) == 0
    written, picture = [], dataset.write_picture

    def until_the_plug_is_pulled(path: Path, pixels: np.ndarray) -> None:
        written.append(path)
        if len(written) == 6:  # in the second of three triplets
            raise KeyboardInterrupt
        picture(path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_picture", until_the_plug_is_pulled)
        with pytest.raises(KeyboardInterrupt):
            run_make(stopped, *drawing)
    with (stopped / dataset.MANIFEST).open("ab") as file:
        file.write(b'{"number": 1, "before": "half a li')
    assert len(dataset.read_pairs(stopped)) == 2
    assert run_make(stopped, *drawing) == 0
    assert contents(stopped) == contents(whole)
    entries = dataset.read_manifest(whole)
    assert [entry["number"] for entry in entries] == [0, 1, 2]
    assert all(0.1 <= pair["share"] <= 0.9 for entry in entries for pair in entry["pairs"])
    assert len(list(whole.glob("*.png"))) == 12


def test_a_folder_is_not_mixed_with_other_settings_or_files(tmp_path: Path, capsys: Any) -> None:
    assert run_make(tmp_path / "pairs", "--rendered", "--count", "1") == 0
    before = contents(tmp_path / "pairs")
    assert run_make(tmp_path / "pairs", "--rendered", "--count", "1", "--seed", "9") == 1
    assert "other settings (seed)" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("private")
    assert run_make(tmp_path / "mine", "--rendered", "--count", "1") == 1
    assert "did not make" in capsys.readouterr().err
    assert contents(tmp_path / "pairs") == before and [*contents(tmp_path / "mine")] == ["diary.txt"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--count", "0"], "--count"),
        (["--shares", "0.9", "0.1"], "--shares"),
        (["--shares", "nan", "0.1"], "--shares"),
        (["--size", "100"], "multiple of 8"),
        (["--size", "56"], "--size"),
        (["--rendered", "--size", "8"], "--size"),
        (["--triplets", "x.jsonl"], "x.jsonl"),
        (["--triplets", "x.jsonl", "--rendered"], "x.jsonl"),
        (["--clip", "nowhere"], "--clip"),
    ],
)
def test_a_command_that_makes_no_sense_is_answered_in_one_sentence(
    tmp_path: Path, more: list[str], told: str, capsys: Any, checkpoint: Path
) -> None:
    assert run_make(tmp_path / "out", "--checkpoint", str(checkpoint), *more) == 1
    err = capsys.readouterr().err
    assert told in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "..\\secret.png", "", 3, "gone.png"])
def test_a_manifest_names_pictures_of_its_folder_only(tmp_path: Path, name: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    dataset.append(tmp_path, {"instruction": "x", "pairs": [{"before": "a.png", "after": name}]})
    with pytest.raises(UserError, match=r"not in the folder|is missing"):
        dataset.read_pairs(tmp_path)


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"pairs": 3, "instruction": "x"}', '{"pairs": []}'])
def test_a_damaged_manifest_is_told_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / dataset.MANIFEST).write_text(line + "\n")
    with pytest.raises(UserError, match="Line 1"):
        dataset.read_pairs(tmp_path)


def test_clip_similarities_decide(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = {**small, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8)
    ).save_pretrained(tmp_path / "clip")
    device = torch.device("cpu")
    judge = ClipFilter(tmp_path / "clip", Thresholds(-1, -1, -1), device)
    triplet = world_triplet(0, 0)
    before, after = render_pair(*scenes(triplet), 0)
    verdict = judge(triplet, before, after)
    images, texts = judge.embed_pictures(np.stack([before, after])), judge.embed_texts([triplet.before, triplet.after])
    cosine = torch.nn.functional.cosine_similarity
    assert verdict.keep and verdict.quality == pytest.approx(
        float(cosine(images[1] - images[0], texts[1] - texts[0], 0))
    )
    assert verdict.scores["image"] == pytest.approx(float(cosine(images[0], images[1], 0)), abs=1e-3)
    assert verdict.scores["text_after"] == pytest.approx(float(cosine(images[1], texts[1], 0)), abs=1e-3)
    assert float(images.norm(dim=1).sub(1).abs().max()) < 1e-5
    for least in (Thresholds(1.1, -1, -1), Thresholds(-1, 1.1, -1), Thresholds(-1, -1, 1.1)):
        judge.thresholds = least
        assert not judge(triplet, before, after).keep


def test_only_the_best_pairs_of_a_triplet_are_kept(tmp_path: Path) -> None:
    qualities = iter([0.1, 0.9, 0.5, 0.7])

    def judge(triplet: Triplet, before: np.ndarray, after: np.ndarray) -> Any:
        from standalone.instruct.filters import Verdict

        quality = next(qualities)
        return Verdict(quality > 0.3, quality, {"image": quality})

    plan = make.PairCounts(tries=4, keep=2, seed=0, shares=(0.1, 0.9))
    entry = make.make_triplet(tmp_path, 0, world_triplet(0, 0), make.RenderedSource(64), judge, plan)
    assert [pair["image"] for pair in entry["pairs"]] == [0.9, 0.7] and entry["good"] == 3
    assert json.loads(json.dumps(entry)) == entry
