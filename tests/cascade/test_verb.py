"""The command: from a prompt to candidates, from a candidate to larger images, and what it says about bad input."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from lib_methods.cascade.candidate import read_candidate
from lib_methods.cascade.settings import CascadeSettings, free_name
from lib_methods.webui.controls import controls_of
from standalone.setup import options as command_line
from standalone.setup.start import main
from standalone.verbs import cascade as verb

SHORT = ["--steps", "2", "--stage2-steps", "2"]


@pytest.fixture
def stages(folders: tuple[Path, Path, Path]) -> Path:
    """The folder with all three stages."""
    return folders[0].parent


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_NO_VENV", "1")


def test_every_setting_is_an_option() -> None:
    given = ["--strength=0.5", "--steps=7", "--style=oil", "--memory=8GB", "--thresholding=static", "--batch=2"]
    parsed = command_line.parse(["cascade", "a cat", *given])
    assert (parsed.prompt, parsed.strength, parsed.steps, parsed.stage2_prompt, parsed.memory, parsed.batch) == (
        "a cat", 0.5, 7, "oil", 8.0, 2,
    )  # fmt: skip
    assert {control.name for control in controls_of(CascadeSettings)} <= set(vars(parsed))


def test_candidates_then_the_style_on_the_way_up(
    stages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--stages", str(stages), "--out", str(tmp_path / "out"), *SHORT]
    assert main(["cascade", "a photo of a red cat", *place, "--count", "2", "--last-stage", "1", "--seed", "5"]) == 0
    made = capsys.readouterr().out.strip().splitlines()[-2:]
    assert [Path(line).name for line in made] == ["000-stage1.png", "001-stage1.png"]
    assert Path(made[1]).parent.name == "a-photo-of-a-red-cat"
    style = ["--style", "an oil painting of {subject}"]
    assert main(["cascade", "--resume-from", made[1], *place, *style, "--last-stage", "2"]) == 0
    upscaled = Path(capsys.readouterr().out.strip().splitlines()[-1])
    settings = read_candidate(upscaled).settings
    assert settings.seed == 6, "the candidate's own"
    assert settings.stage(2).prompt == "an oil painting of a photo of a red cat"


class Interrupted:
    """Ctrl-C as soon as stage I is on the disk."""

    folder: Path

    @property
    def asked(self) -> bool:
        return (self.folder / "000-stage1.png").exists()

    def listening(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_an_interrupt_keeps_what_is_finished(
    stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--out", str(tmp_path), "--name", "dog"]
    Interrupted.folder = tmp_path / "dog"
    with monkeypatch.context() as patch:
        patch.setattr(verb, "Interrupt", Interrupted)
        made = ["a dog", "--stages", str(stages), "--count", "1", "--last-stage", "2", *SHORT]
        assert main(["cascade", *made, *place]) == verb.STOPPED
    assert capsys.readouterr().err.strip().endswith("Resume with --resume --name dog.")
    before = (tmp_path / "dog" / "000-stage1.png").stat().st_mtime_ns
    assert main(["cascade", "--resume", *place]) == 0
    assert (tmp_path / "dog" / "000-stage2.png").is_file()
    assert (tmp_path / "dog" / "000-stage1.png").stat().st_mtime_ns == before


def test_a_name_comes_from_the_prompt_and_is_free(tmp_path: Path) -> None:
    assert free_name("A Red Cat, sitting!", tmp_path) == "a-red-cat-sitting"
    (tmp_path / "a-red-cat-sitting").mkdir()
    assert free_name("a red cat (sitting)", tmp_path) == "a-red-cat-sitting-2"
    assert (
        free_name("text_embeddings", tmp_path) == free_name("...", tmp_path) == free_name("con", tmp_path) == "cascade"
    )
