"""The command line: what it accepts, and the one sentence for what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from standalone.setup import options, places
from standalone.setup.start import main


def test_without_a_verb_it_serves():
    parsed = options.parse([])
    assert (parsed.verb, parsed.port, parsed.listen, parsed.checkpoint) == ("serve", 7860, False, None)


def test_options_alone_belong_to_serve():
    parsed = options.parse(["--port", "7999", "--listen", "--no-browser"])
    assert (parsed.verb, parsed.port, parsed.listen, parsed.no_browser) == ("serve", 7999, True, True)


def test_generate_collects_all_its_options():
    parsed = options.parse(
        [
            "generate",
            "a cat",
            "--size",
            "512x768",
            "--like",
            "a.png",
            "b.png",
            "--like",
            "c.png",
            "--dislike",
            "d.png",
            "--hires",
            "--steps",
            "7",
        ]
    )
    assert parsed.size == (512, 768)
    assert [path.name for path in parsed.like] == ["a.png", "b.png", "c.png"]
    assert [path.name for path in parsed.dislike] == ["d.png"]
    assert parsed.hires
    assert parsed.steps == 7


def test_one_number_is_a_square():
    assert options.parse(["generate", "x", "--size", "64"]).size == (64, 64)


def test_test_hands_everything_on_to_pytest():
    assert options.parse(["test", "tests/api", "-k", "traversal", "-x"]).tests == ["tests/api", "-k", "traversal", "-x"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["srve"], "Did you mean serve?"),
        (["\u2603"], "There is no verb"),
        (["serve", "--prot", "1"], "--prot"),
        (["--port", "0"], "not a port"),
        (["--port", "port"], "not a port"),
        (["generate"], "prompt"),
        (["generate", "x", "--size", "big"], "not a size"),
        (["generate", "x", "--size", "1x2x3"], "not a size"),
        (["generate", "x", "--steps", "many"], "--steps"),
        (["evaluate", "fabric"], "--out"),
        (["bench"], "METHOD"),
    ],
)
def test_a_wrong_command_line_ends_in_one_sentence(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", list(options.VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        options.parse([verb, "--help"])
    assert ended.value.code == 0
    assert "run.py " + verb in capsys.readouterr().out


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        options.parse(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in options.VERBS)


def test_an_unknown_method_is_told_with_the_known_ones(tmp_path: Path):
    command = [sys.executable, str(places.ROOT / "run.py"), "evaluate", "nonsense", "--out", str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
        env={**os.environ, "STEER_NO_VENV": "1"},
    )
    assert done.returncode == 2
    assert "no 'evaluate' for a method named 'nonsense'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_set_up_needs_nothing_but_the_standard_library():
    """The modules that run before anything is installed import nothing from outside of it."""
    code = (
        "import sys, standalone.setup.start, standalone.setup.environment, standalone.setup.options\n"
        "names = {name.split('.')[0] for name in sys.modules} - {'standalone', '__main__', 'run'}\n"
        "print([n for n in names if n not in sys.stdlib_module_names and not n.startswith('_')])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=places.ROOT
    )
    assert done.stdout.strip() == "[]"
