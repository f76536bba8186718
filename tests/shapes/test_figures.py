"""Margins of error are those of the books, and reports keep what was measured."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.harness import figures
from benchmarks.harness.full_size import full_unet
from benchmarks.harness.report import Report, line_of, write_json
from standalone import ROOT
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


def test_the_page_takes_finished_reports_and_leaves_the_rest(tmp_path: Path) -> None:
    for method, settings in {"fabric": {"pictures_per_figure": 200}, "nag": {"unfinished": {}}}.items():
        (tmp_path / method).mkdir()
        metrics = {"liked_rate_on": 0.77, "colour_there_cfg_1": 0.2}
        text = json.dumps({"metrics": metrics, "margins": {"liked_rate_on": 0.06}, "settings": settings})
        (tmp_path / method / "report.json").write_text(text, "utf-8")
    page = figures.written(tmp_path, "<!-- evaluate cascade -->\nas it was\n<!-- end -->\n")
    assert "| images in the liked colour |  | 0.77 ± 0.06 |" in page
    assert "`python run.py evaluate fabric --out DIR --images 200`, 200 images behind each figure." in page
    assert "<!-- evaluate cascade -->\nas it was\n<!-- end -->\n" in page
    assert "### NAG\n\nNot measured yet: `python run.py evaluate nag --out DIR`." in page
    assert figures.written(tmp_path / "nothing", page) == page


def test_all_keeps_what_is_finished_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        method, out = command[3], Path(command[5])
        called.append(method)
        out.mkdir(parents=True)
        write_json(out / "bench.json", {"speedup": 1.5}, {"device": "cpu"})
        return SimpleNamespace(returncode=1 if method == "fabric" else 0)

    monkeypatch.setattr(subprocess, "run", run)
    methods = ["dreambooth", "fabric"]
    assert figures.main("bench", methods, tmp_path, quick=True) == 1
    assert called == methods
    text = (tmp_path / "figures.md").read_text("utf-8")
    assert "| in full | 1.50 |" in text and "`python run.py bench dreambooth --out DIR --quick`, cpu." in text
    assert not (tmp_path / "fabric" / "bench.json").exists()
    assert figures.run("bench", "dreambooth", tmp_path / "dreambooth", []) and called == methods


def test_every_program_has_its_section_and_readme_quotes_the_page() -> None:
    template = figures.TEMPLATE.read_text("utf-8")
    sections = {(kind, method) for kind, method, _ in figures.SECTION.findall(template)}
    programs = [file.stem for kind in ("evaluate", "bench") for file in (ROOT / "benchmarks").glob(f"{kind}_*.py")]
    assert sections == {tuple(name.split("_", 1)) for name in programs}
    page = (ROOT / "docs" / "figures.md").read_text("utf-8")
    assert figures.written(ROOT / "nothing", page) == page
    quoted = (ROOT / "README.md").read_text("utf-8").split("## Figures\n")[1].split("\n## ")[0]
    rows = [line for line in quoted.splitlines() if line.startswith("|")]
    assert len(rows) > 6 and all(row in page for row in rows)


@pytest.mark.parametrize(("size", "millions"), [("sd15", 860), ("sdxl", 2560)])
def test_benchmarks_have_the_published_unets(size: str, millions: int) -> None:
    unet = full_unet(torch.device("meta"), torch.float32, size)
    assert sum(weight.numel() for weight in unet.parameters()) / 1e6 == pytest.approx(millions, rel=0.002)
