"""The bench and evaluation programs measure what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import bench_dreambooth as bench
from benchmarks import bench_dreambooth as loops
from benchmarks import evaluate_dreambooth as evaluation
from benchmarks.shape_subjects import (
    PLACES,
    SUBJECTS,
    Drawn,
    Subject,
    diversity,
    fidelity,
    follows,
    is_subject,
    new_settings,
    paint_subject,
    photos,
    prompt_of,
    settings,
)
from benchmarks.studio import Report
from standalone import ROOT
from standalone.engine.checkpoint import load_checkpoint
from standalone.shapes.parser import parse
from standalone.shapes.world import BACKGROUNDS, COLOURS, KINDS, caption, random_scene, render

CPU = torch.device("cpu")


def passes(module: nn.Module) -> list[int]:
    """Grows by one each time the module's first layer is run."""
    seen: list[int] = []
    first = next(m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Embedding)))
    first.register_forward_hook(lambda *_: seen.append(1))
    return seen


def moved(stage: loops.Stage, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(before[name], value) for name, value in stage.unet.state_dict().items())


def test_the_plain_loop_encodes_at_each_step_and_keeps_fp32_weights() -> None:
    stage = loops.Stage(CPU, quick=True)
    pictures, texts, unet = passes(stage.vae.encoder), passes(stage.encoders[0]), passes(stage.unet)
    before = {name: value.clone() for name, value in stage.unet.state_dict().items()}
    step = loops.plain(stage, "bf16")
    for _ in range(2):
        step()
    assert len(pictures) == len(texts) == len(unet) == 2
    assert moved(stage, before) and {p.dtype for p in stage.unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_our_loop_encodes_beforehand_and_trains_as_sd15_would_be_trained_in_8_gib(tmp_path: Path, kind: str) -> None:
    stage, found = loops.Stage(CPU, quick=True), dict[str, Any]()
    pictures = passes(stage.vae.encoder)
    before = {name: value.clone() for name, value in stage.unet.state_dict().items()}
    step = loops.ours(stage, "bf16", kind, tmp_path, found)
    encoded, texts, unet = len(pictures), passes(stage.encoders[0]), passes(stage.unet)
    for _ in range(2):
        step()
    assert encoded == len(pictures) == 8 and len(unet) == 2
    assert len(texts) == 1  # in the first step, for all of them
    assert found["plan"]["weights"] == "bf16" and found["counted"] < 8 * 2**30
    if kind == "full":
        assert found["plan"]["fused_backward"] and found["plan"]["optimizer"] == "adafactor"
        assert {p.dtype for p in stage.unet.parameters()} == {torch.bfloat16}
        after = {name: value.float() for name, value in stage.unet.state_dict().items()}
        assert any(not torch.equal(before[name].bfloat16().float(), after[name]) for name in before)


@pytest.mark.parametrize("loop", loops.LOOPS)
def test_a_loop_reports_seconds_and_memory(loop: str) -> None:
    found = loops.measure(loop, quick=True)
    assert len(found["seconds"]) >= 2 and all(0 < second < 60 for second in found["seconds"])
    assert found["peak"] is None or found["peak"] > 2**20
    json.dumps(found)


def run_of(seconds: list[float], peak: int, **more: Any) -> list[dict[str, Any]]:
    return [{"seconds": seconds, "peak": peak, **more}]


def test_the_figures_are_ratios_to_the_plain_loop() -> None:
    runs = {
        "plain": run_of([3.0, 3.0], 12 * 2**30),
        "full": run_of([1.5, 1.0, 1.5], 4 * 2**30, seconds_a_picture=1.5, counted=3 * 2**30),
        "lora": run_of([1.0], 3 * 2**30, seconds_a_picture=1.0, counted=3 * 2**30),
    }
    found = bench.figures(runs)
    assert found["speedup"] == 2 and found["speedup_lora"] == 3
    assert found["memory_ratio"] == pytest.approx(1 / 3) and found["memory_ratio_lora"] == 0.25
    assert found["speedup_whole"] == pytest.approx(800 * 3 / (800 * 1.5 + 104 * 1.5))
    assert found["steps_per_second_full"] == pytest.approx(1 / 1.5) and found["peak_gib_plain"] == 12
    assert all(math.isfinite(value) for value in found.values())


def test_the_processes_own_seconds_are_compared_where_they_are_known() -> None:
    runs = {"plain": run_of([4.0], 1, cpu_seconds=[3.0]), "lora": run_of([1.0], 1, seconds_a_picture=1.0)}
    assert bench.figures(runs)["cpu_seconds_a_step_plain"] == 3
    assert "speedup_of_cpu_seconds_lora" not in bench.figures(runs)
    runs["full"] = run_of([2.0], 1, seconds_a_picture=1.0, cpu_seconds=[1.0, 2.0, 3.0])
    assert bench.figures(runs)["speedup_of_cpu_seconds"] == 1.5 and bench.figures(runs)["speedup"] == 2


def test_a_loop_that_has_not_run_yet_and_memory_that_is_not_known_are_left_out() -> None:
    found = bench.figures({"plain": run_of([3.0], 1), "full": [], "lora": []})
    assert "speedup" not in found and "steps_per_second_plain" in found
    unknown: list[dict[str, Any]] = [{"seconds": [1.0], "peak": None, "seconds_a_picture": 1.0}]
    found = bench.figures({"plain": [{"seconds": [2.0], "peak": None}], "full": unknown, "lora": []})
    assert found["speedup"] == 2 and "memory_ratio" not in found


def test_a_loop_that_fails_ends_the_bench_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(loop: str, out: Path, quick: bool) -> dict[str, Any] | None:
        asked.append(loop)
        return {"seconds": [1.0], "peak": 5, "half": "fp32"} if loop == "plain" else None

    monkeypatch.setattr(bench, "run", run)
    assert bench.main(tmp_path, True) == 1
    assert asked == ["plain", "full"] and "'full' failed" in capsys.readouterr().err
    assert "steps_per_second_plain" in json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["metrics"]


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
    assert evaluation.measure(SUBJECT, perfect(), untrained()) == pytest.approx(dict.fromkeys(evaluation.FIGURES, 1.0))


def test_an_untrained_model_keeps_the_class_and_has_no_subject() -> None:
    figures = evaluation.measure(SUBJECT, untrained(), untrained())
    assert figures["subject_fidelity"] == figures["subject_in_new"] == 0.0
    assert figures["prior_preserved"] == figures["prior_diversity"] == figures["prior_class"] == 1.0
    assert figures["prompt_fidelity"] < 0.6


def test_a_class_that_became_the_subject_is_seen_in_both_figures_of_the_prior() -> None:
    found = Drawn(of_subject(), of_subject(), of_subject((("left", "grey"),) * 12), ASKED)
    figures = evaluation.measure(SUBJECT, found, untrained())
    assert figures["subject_fidelity"] == 1.0
    assert figures["prior_preserved"] == 0.0 and figures["prior_diversity"] < 0.2


def test_the_forms_differ_only_in_what_their_names_say() -> None:
    full, ablated = evaluation.FORMS["full_"], evaluation.FORMS["no_prior_"]
    assert {name for name in full if full[name] != ablated[name]} == {"prior"}
    assert ablated["prior"] == "off" and full["prior"] != "off"
    assert [form["kind"] for form in evaluation.FORMS.values()] == ["full", "LoRA", "full"]
    assert len(SUBJECTS) >= 5 and len({subject.noun for subject in SUBJECTS}) >= 3


def test_the_report_holds_every_figure_of_every_form(tmp_path: Path) -> None:
    drawn = {prefix: {SUBJECT.name: untrained() if prefix == "base_" else perfect()} for prefix in evaluation.LABELS}
    metrics: dict[str, Any] = {}
    for prefix, of_form in drawn.items():
        figures = evaluation.measure(SUBJECT, of_form[SUBJECT.name], drawn["base_"][SUBJECT.name])
        metrics |= {f"{prefix}{name}": value for name, value in figures.items()}
        metrics.setdefault("by_subject", {})[prefix] = {SUBJECT.name: figures}
    settings = {"subjects": [SUBJECT.name], "photos": 4, "pictures_per_figure": 12, "training": evaluation.FORMS}
    report = Report(tmp_path, "DreamBooth")
    evaluation.tables(report, metrics, settings)
    text = "\n".join(report.paragraphs)
    for label in evaluation.LABELS.values():
        assert text.count(f"| {label} |") == 2
    assert "| LoRA | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in text
    evaluation.plot(report, metrics, evaluation.LABELS)
    shown = evaluation.examples([SUBJECT], drawn, evaluation.LABELS)
    assert Image.open(tmp_path / "report.png").width > 500 and shown.height > 4 * 128


@pytest.mark.parametrize("form", ["lora_", "no_prior_"])
def test_photos_become_a_file_that_the_host_draws_with(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps at a rate that nobody would take, so that the file's effect shows."""
    short = {"class_images": 2, "class_steps": 2, "batch_size": 1, "rate": 5e-3, "text_rate": 5e-3}
    monkeypatch.setitem(evaluation.FORMS, form, {**evaluation.FORMS[form], **short})
    file = evaluation.train(SUBJECT, form, tmp_path, steps=2)
    assert file.suffix == ".safetensors" and file.is_file()
    log = (tmp_path / file.stem / "training.jsonl").read_text(encoding="utf-8").splitlines()
    done = json.loads(log[-1])
    assert done["event"] == "done" and done["subject"] == "ohwx circles"
    found = evaluation.draw_with(file, form, SUBJECT, 1)
    with evaluation.studio() as maker:
        before = evaluation.draw(maker, SUBJECT, 1)
    assert found.plain[0].shape == (64, 64, 3)
    assert np.abs(found.plain[0].astype(int) - before.plain[0]).mean() > 1


BY_NAME = {subject.name: subject for subject in SUBJECTS}
every_subject = pytest.mark.parametrize("name", BY_NAME)


def everywhere(subject: Subject, seed: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [paint_subject(subject, place, ground, rng) for place in PLACES for ground in BACKGROUNDS]


@every_subject
def test_a_subject_is_read_anywhere(name: str) -> None:
    assert [fidelity(BY_NAME[name], picture) for picture in everywhere(BY_NAME[name])] == [1.0] * 16


@every_subject
def test_a_subject_survives_the_autoencoder(name: str) -> None:
    model = load_checkpoint(ROOT / "models" / "shapes" / "shapes.safetensors")
    pixels = torch.from_numpy(np.stack(everywhere(BY_NAME[name]))).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = model.get_first_stage_encoding(model.encode_first_stage(pixels))
        decoded = model.decode_first_stage(latents).clamp(-1, 1)
    seen = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.mean([fidelity(BY_NAME[name], picture) for picture in seen]) > 0.9


def test_no_subject_is_taken_for_another() -> None:
    for one, other in permutations(SUBJECTS, 2):
        assert not any(is_subject(one, picture) for picture in everywhere(other))


def test_ordinary_pictures_of_the_world_are_no_subject() -> None:
    rng = np.random.default_rng(6)
    for _ in range(150):
        picture = render(random_scene(rng), rng)
        assert [fidelity(subject, picture) for subject in SUBJECTS] == [0.0] * len(SUBJECTS)


@every_subject
def test_its_halves_alone_and_the_wrong_way_round_are_no_subject(name: str) -> None:
    subject = BY_NAME[name]
    for wrong in (
        replace(subject, first=subject.second),
        replace(subject, second=subject.first),
        replace(subject, first=subject.second, second=subject.first),
    ):
        assert not any(is_subject(subject, picture) for picture in everywhere(wrong))


def test_a_stray_object_costs_its_share() -> None:
    subject = SUBJECTS[0]
    picture = paint_subject(subject, "left", "grey", np.random.default_rng(0)).copy()
    picture[30:46, 46:62] = COLOURS["green"]
    assert fidelity(subject, picture) == pytest.approx(2 / 3)
    assert fidelity(subject, np.zeros((64, 64, 3), np.uint8)) == 0.0


@every_subject
def test_photos_are_four_the_same_each_time_and_each_in_a_place_of_its_own(name: str) -> None:
    subject = BY_NAME[name]
    taken = photos(subject)
    assert len(taken) == 4 and all(np.array_equal(a, b) for a, b in zip(taken, photos(subject)))
    assert [follows(picture, *setting) for picture, setting in zip(taken, settings())] == [1.0] * 4
    assert {place for place, _ in settings()} == set(PLACES)
    assert {ground for _, ground in settings()} == set(BACKGROUNDS)
    assert not set(settings()) & set(new_settings()) and len(new_settings()) == 12


def test_prompts_are_in_the_words_that_the_model_knows() -> None:
    assert prompt_of("ohwx circles", "circles") == "a ohwx circles"
    assert prompt_of("ohwx crosses", "crosses", "left", "grey") == "a ohwx crosses on the left on a grey background"
    plurals = {caption(random_scene(np.random.default_rng(0), kind=kind), ("kind",)): kind for kind in KINDS}
    assert all(plurals[subject.noun] == subject.first.kind for subject in SUBJECTS)


def test_following_a_prompt_is_half_place_and_half_background() -> None:
    picture = paint_subject(SUBJECTS[0], "left", "grey", np.random.default_rng(0))
    assert parse(picture).attributes["place"] == "left"
    asked = [("left", "grey"), ("left", "black"), ("top", "grey"), ("top", "black")]
    assert [follows(picture, *one) for one in asked] == [1.0, 0.5, 0.5, 0.0]


def test_diversity_is_none_for_copies_and_high_for_the_world() -> None:
    rng = np.random.default_rng(1)
    pictures = [render(random_scene(rng, kind="circle"), rng) for _ in range(40)]
    assert diversity(pictures) > 0.6
    assert diversity([pictures[0]] * 5) == diversity([]) == 0.0
    assert diversity(photos(SUBJECTS[0])) < diversity(pictures)
