"""The figures of `evaluate dreambooth` mean what they say, and its way from photos to pictures is the users' way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import evaluate_dreambooth as program
from benchmarks.report_dreambooth import examples, plot, table
from benchmarks.shape_subjects import SUBJECTS, Drawn, new_settings, paint_subject
from standalone.shapes.world import random_scene, render

SUBJECT = SUBJECTS[0]
ASKED = tuple(new_settings())


def ordinary(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [render(random_scene(rng, kind="circle"), rng) for _ in range(count)]


def of_subject(asked: tuple[tuple[str, str], ...] = ASKED) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [paint_subject(SUBJECT, *setting, rng) for setting in asked]


def untrained() -> Drawn:
    return Drawn(ordinary(12), ordinary(12, 1), ordinary(12, 2), ASKED)


def perfect() -> Drawn:
    return Drawn(of_subject(), of_subject(), ordinary(12, 2), ASKED)


def test_a_perfect_model_gets_full_marks() -> None:
    assert program.measure(SUBJECT, perfect(), untrained()) == pytest.approx(dict.fromkeys(program.FIGURES, 1.0))


def test_an_untrained_model_keeps_the_class_and_has_no_subject() -> None:
    figures = program.measure(SUBJECT, untrained(), untrained())
    assert figures["subject_fidelity"] == figures["subject_in_new"] == 0.0
    assert figures["prior_preserved"] == figures["prior_diversity"] == figures["prior_class"] == 1.0
    assert figures["prompt_fidelity"] < 0.6


def test_a_class_that_became_the_subject_is_seen_in_both_figures_of_the_prior() -> None:
    found = Drawn(of_subject(), of_subject(), of_subject((("left", "grey"),) * 12), ASKED)
    figures = program.measure(SUBJECT, found, untrained())
    assert figures["subject_fidelity"] == 1.0
    assert figures["prior_preserved"] == 0.0 and figures["prior_diversity"] < 0.2


def test_the_forms_differ_only_in_what_their_names_say() -> None:
    full, ablated = program.FORMS["full_"], program.FORMS["no_prior_"]
    assert {name for name in full if full[name] != ablated[name]} == {"prior"}
    assert ablated["prior"] == "off" and full["prior"] != "off"
    assert [form["kind"] for form in program.FORMS.values()] == ["full", "LoRA", "full"]
    assert len(SUBJECTS) >= 5 and len({subject.noun for subject in SUBJECTS}) >= 3


def test_the_report_holds_every_figure_of_every_form(tmp_path: Path) -> None:
    drawn = {prefix: {SUBJECT.name: untrained() if prefix == "base_" else perfect()} for prefix in program.LABELS}
    metrics: dict[str, Any] = {}
    for prefix, of_form in drawn.items():
        figures = program.measure(SUBJECT, of_form[SUBJECT.name], drawn["base_"][SUBJECT.name])
        metrics |= {f"{prefix}{name}": value for name, value in figures.items()}
        metrics.setdefault("by_subject", {})[prefix] = {SUBJECT.name: figures}
    settings = {"subjects": [SUBJECT.name], "photos": 4, "pictures_per_figure": 12, "training": program.FORMS}
    settings |= {"sampler": "Euler", "steps": 20, "cfg_scale": 5.0}
    text = "\n".join(table(metrics, program.LABELS, program.FIGURES, settings))
    for label in program.LABELS.values():
        assert text.count(f"| {label} |") == 2
    assert "| LoRA | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in text
    plot(metrics, program.LABELS, tmp_path / "report.png")
    shown = examples([SUBJECT], drawn, program.LABELS)
    assert Image.open(tmp_path / "report.png").width > 500 and shown.height > 4 * 128


@pytest.mark.parametrize("form", ["lora_", "no_prior_"])
def test_photos_become_a_file_that_the_host_draws_with(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps at a rate that nobody would take, so that the file's effect shows."""
    short = {"class_images": 2, "class_steps": 2, "batch_size": 1, "rate": 5e-3, "text_rate": 5e-3}
    monkeypatch.setitem(program.FORMS, form, {**program.FORMS[form], **short})
    file = program.train(SUBJECT, form, tmp_path, steps=2)
    assert file.suffix == ".safetensors" and file.is_file()
    log = (tmp_path / file.stem / "training.jsonl").read_text(encoding="utf-8").splitlines()
    done = json.loads(log[-1])
    assert done["event"] == "done" and done["subject"] == "ohwx circles"
    found = program.draw_with(file, form, SUBJECT, 1)
    with program.studio() as maker:
        before = program.draw(maker, SUBJECT, 1)
    assert found.plain[0].shape == (64, 64, 3)
    assert np.abs(found.plain[0].astype(int) - before.plain[0]).mean() > 1
