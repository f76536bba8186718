"""Margins of error are those of the books, and reports keep what was measured."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import Report, line_of
from standalone.shapes.figures import Figure, mean
from standalone.shapes.world import random_scene, render


@pytest.mark.parametrize(("yes", "count"), [(0, 24), (1, 24), (77, 96), (100, 200), (200, 200), (1, 1)])
def test_the_margin_of_a_rate_is_the_longer_side_of_wilsons_interval(yes: int, count: int) -> None:
    figure = mean([True] * yes + [False] * (count - yes))
    assert isinstance(figure, Figure) and figure == yes / count
    # Wilson's limits are the true rates from which this one would be 1.96 standard deviations away
    limit = figure + figure.margin if yes <= count / 2 else figure - figure.margin
    assert 1.96 * (limit * (1 - limit) / count) ** 0.5 == pytest.approx(figure.margin)


def test_the_margin_of_a_mean_is_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(30, 4, 400)
    figure = mean(values)
    assert isinstance(figure, Figure) and figure == pytest.approx(values.mean())
    assert figure.margin == pytest.approx(1.96 * 4 / 20, rel=0.1)


def test_several_values_of_an_image_count_as_one() -> None:
    """Five attributes that always agree are no more evidence than one."""
    hits = [True, False, True, True]
    five, one = mean([hit] * 5 for hit in hits), mean(hits)
    assert isinstance(five, Figure) and isinstance(one, Figure)
    assert (five, five.margin) == (one, one.margin)


def test_figures_are_written_with_their_margins_and_shown_with_them(tmp_path: Path) -> None:
    figure = Figure(0.76666, 0.08333)
    report = Report(tmp_path, "Title")
    report.table(["", "rate"], [["form", figure], ["other", 0.5], ["none", None]])
    assert report.write({"rate": figure, "plain": 0.5, "by": [{"rate": figure}, {"plain": 1.0}]}) == 0
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["metrics"] == {"rate": 0.7667, "plain": 0.5, "by": [{"rate": 0.7667}, {"plain": 1.0}]}
    assert written["margins"] == {"rate": 0.0833, "by": [{"rate": 0.0833}, None]}
    assert "| form | 0.767 ± 0.083 |" in (tmp_path / "report.md").read_text("utf-8")
    assert line_of({"rate": figure, "plain": 0.5}) == "rate 0.767 ± 0.083, plain 0.500"


def test_an_interrupted_evaluation_continues_where_it_was(tmp_path: Path) -> None:
    made = []

    def measure() -> tuple[dict[str, object], list[np.ndarray]]:
        made.append(1)
        return {"rate": Figure(0.5, 0.1), "by": {"kind": 0.25}}, [np.full((8, 8, 3), n, np.uint8) for n in (1, 2)]

    Report(tmp_path, "Title", images=24).part("first: a/b", measure)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["metrics"]["first: a/b"] == {"rate": 0.5, "by": {"kind": 0.25}}
    assert "unfinished" in written["settings"]

    again = Report(tmp_path, "Title", images=24)
    found, examples = again.part("first: a/b", measure)
    assert len(made) == 1 and found["rate"].margin == 0.1
    assert [int(picture.mean()) for picture in examples] == [1, 2]
    again.part("second", measure)
    again.write(found)
    assert "unfinished" not in json.loads((tmp_path / "report.json").read_text("utf-8"))["settings"]
    assert not (tmp_path / "parts").exists()

    for settings in ({"images": 24}, {"images": 200}):  # a finished report starts over, and so do other settings
        Report(tmp_path, "Title", **settings).part("first: a/b", measure)
    assert len(made) == 4


class Renderer:
    """Renders a scene for every prompt, whatever it says."""

    def make(self, prompts: Sequence[str], seed: int, *_: object, **__: object) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [render(random_scene(rng), rng) for _ in prompts]

    def autoencoder(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        return pictures


@pytest.mark.parametrize("method", ["dreambooth", "fabric", "guidance", "image_cfg", "nag", "shapes"])
def test_every_evaluation_writes_its_rates_with_margins(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module(f"benchmarks.evaluate_{method}")
    monkeypatch.setattr(program, "studio", lambda *_: nullcontext(Renderer()))
    if method == "dreambooth":
        monkeypatch.setattr(program, "train", lambda *_: tmp_path)
        monkeypatch.setattr(program, "draw_with", lambda file, form, *asked: program.draw(Renderer(), *asked))
    assert program.main(tmp_path, quick=method in ("dreambooth", "guidance"), images=8) == 0
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    key = "edits_per_figure" if method == "image_cfg" else "pictures" if method == "shapes" else "pictures_per_figure"
    assert written["settings"][key] == (16 if method == "shapes" else 8)
    assert written["margins"]
    assert " ± " in (tmp_path / "report.md").read_text("utf-8")
