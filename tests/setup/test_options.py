"""The command line: what it accepts, and the one sentence for what it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lib_methods.errors import UserError
from standalone import ROOT
from standalone.setup import environment, options
from standalone.setup.start import main
from standalone.verbs.serve import read_logins


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
        (["\u2603"], "There is no command"),
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
    command = [sys.executable, str(ROOT / "run.py"), "evaluate", "nonsense", "--out", str(tmp_path)]
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
        "names = {name.split('.')[0] for name in sys.modules} - {'standalone', 'lib_methods', '__main__', 'run'}\n"
        "print([n for n in names if n not in sys.stdlib_module_names and not n.startswith('_')])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


NEEDED = ["--class", "dog", "--out", "o", "--name", "n"]
CASES: list[tuple[list[str], int, str]] = [
    (["generate", "a", "--steps", "foo"], 2, "'foo' is not a whole number from 1 to 1000"),
    (["generate", "a", "--steps", "2.5"], 2, "'2.5' is not a whole number"),
    (["generate", "a", "--steps", "0"], 2, "from 1 to 1000"),
    (["generate", "a", "--steps", "9" * 5000], 2, "is not a whole number"),
    (["generate", "a", "--cfg-scale", "nan"], 2, "--cfg-scale"),
    (["generate", "a", "--cfg-scale", "inf"], 2, "--cfg-scale"),
    (["generate", "a", "--denoising-strength", "1.1"], 2, "from 0 to 1"),
    (["generate", "a", "--batch-size", "-1"], 2, "--batch-size"),
    (["generate", "a", "--size", "8x8"], 2, "from 16 to 4096"),
    (["generate", "a", "--seed", str(10**40)], 2, "--seed"),
    (["generate", "a", "--fabric-start", "2", "--like", "IMAGE"], 2, "--fabric-start"),
    (["generate", "a", "--like", "notes.txt"], 1, "notes.txt is not an image"),
    (["generate", "a", "--like", "IMAGE", "--dislike", "cut.png"], 1, "cut.png is not an image"),
    (["generate", "a", "--dislike", "nowhere.png"], 1, "there is no file nowhere.png"),
    (["generate", "a", "--init-image", "."], 1, "is a folder. Give a file"),
    (["generate", "a", "--init-image", "IMAGE", "--mask", "notes.txt"], 1, "--mask: notes.txt"),
    (["generate", "a", "--mask", "IMAGE"], 1, "--mask needs --init-image"),
    (["generate", "a", "--fabric-strength", "1"], 1, "needs --like or --dislike"),
    (["generate", "a", "--fabric-consistent-batch"], 1, "needs --batch-size above 1"),
    (["generate", "a", "--denoising-strength", "0.5"], 1, "needs --init-image or --hires"),
    (["generate", "a", "--hires", "--init-image", "IMAGE"], 1, "--hires works only without"),
    (["generate", "a", "--sampler", "Nope"], 1, "no sampler named 'Nope'"),
    (["generate", "a", "--hires", "--hires-upscaler", "Nope"], 1, "no upscaler named 'Nope'"),
    (["generate", "a", "--scheduler", "Nope"], 1, "no schedule named 'Nope'"),
    (["generate", "a\ud800"], 1, "letters cannot be read"),
    (["generate", "a", "--out", "notes.txt"], 1, "notes.txt is a file"),
    (["generate", "a", "--out", "notes.txt/inside"], 1, "notes.txt is a file"),
    (["generate", "a", "--checkpoint", "gone.safetensors"], 1, "no checkpoint named gone.safetensors"),
    (["generate", "a", "--data-dir", "notes.txt"], 1, "--data-dir: notes.txt is a file"),
    (["serve", "--data-dir", "notes.txt"], 1, "--data-dir: notes.txt is a file"),
    (["serve", "--checkpoint", "gone"], 1, "no checkpoint named gone"),
    (["evaluate", "nothing", "--out", "o"], 2, "no 'evaluate' for a method named 'nothing'"),
    (["bench", "fabric", "--out", "notes.txt"], 1, "notes.txt is a file"),
    (["merge-instruct", "gone", "notes.txt", "notes.txt"], 1, "A: there is no file gone"),
    (["merge-instruct", "notes.txt", "notes.txt", "notes.txt", "--out", "x.ckpt"], 1, "x.ckpt is not one"),
    (["make-instruct-data", "--out", "notes.txt"], 1, "notes.txt is a file"),
    (["make-instruct-data", "--out", "o", "--triplets", "gone"], 1, "there is no file gone"),
    (["make-instruct-data", "--out", "o", "--shares", "0", "2"], 2, "--shares"),
    (["make-instruct-data", "--out", "o", "--size", "65"], 1, "multiple of 8"),
    (["train-instruct", "--data", "gone", "--out", "o.safetensors", "--steps", "1"], 1, "no folder gone"),
    (["train-instruct", "--data", ".", "--out", "o.bin", "--steps", "1"], 1, "o.bin is not one"),
    (["train-instruct", "--data", ".", "--out", "o.safetensors"], 1, "--steps or --minutes"),
    (["train-instruct", "--data", ".", "--out", "o.safetensors", "--rate", "nan"], 2, "--rate"),
    (["train-dreambooth", "--photos", "gone", "--base", "notes.txt", *NEEDED], 1, "no folder gone"),
    (["train-dreambooth", "--photos", ".", "--base", "gone", *NEEDED], 1, "no file gone"),
    (["train-dreambooth", "--photos", ".", "--base", "notes.txt", *NEEDED, "--steps", "-1"], 1, "Steps must"),
    (["train-dreambooth", "--settings", "gone"], 1, "gone cannot be read"),
    (["train-dreambooth"], 1, "--photos"),
    (["cascade"], 1, "a prompt, --stages, --out"),
    (["cascade", "a", "--stages", "gone", "--out", "o"], 1, "no folder gone"),
    (["cascade", "a", "--stages", ".", "--out", "notes.txt"], 1, "notes.txt is a file"),
    (["cascade", "a\ud800", "--stages", ".", "--out", "o"], 1, "letters cannot be read"),
    (["cascade", "a", "--stages", ".", "--out", "o", "--solver", "nope"], 1, "Solver must be one of"),
    (["cascade", "a", "--stages", ".", "--out", "o", "--guidance", "500"], 1, "Guidance scale must be"),
    (["cascade", "a", "--stages", ".", "--out", "o", "--image", "cut.png"], 1, "cut.png is not an image"),
    (["cascade", "a", "--stages", ".", "--out", "o", "--mask", "IMAGE"], 1, "A mask needs an image"),
    (["cascade", "--stages", ".", "--out", "o", "--resume-from", "gone"], 1, "no file gone"),
    (["cascade", "--resume", "--out", "o", "--name", "none"], 1, "no run called none"),
    (["cascade", "--settings", "notes.txt"], 1, "notes.txt is not valid JSON"),
    (["cascade", "a", "--memory", "much"], 2, "not an amount of memory"),
]


def test_what_is_wrong_is_said_before_torch_is_imported(tmp_path: Path):
    """All of it in one process that has no torch."""
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "image.png").read_bytes()[:50])
    (tmp_path / "notes.txt").write_text("likes", encoding="utf-8")
    cases = [["image.png" if word == "IMAGE" else word for word in arguments] for arguments, _, _ in CASES]
    program = (
        "import contextlib, io, json, sys\n"
        "sys.modules['torch'] = None\n"
        "from standalone.setup.start import main\n"
        "found = []\n"
        "for arguments in json.load(sys.stdin):\n"
        "    err = io.StringIO()\n"
        "    with contextlib.redirect_stderr(err):\n"
        "        status = main(arguments)\n"
        "    found.append([status, err.getvalue()])\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "STEER_NO_VENV": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for (arguments, status, told), (found, error) in zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert (found, told in error) == (status, True), (arguments, found, error)
        assert "Traceback" not in error
        assert str(tmp_path) not in error


@pytest.mark.parametrize(
    "form", [["--gradio-auth", "ann:hidden", "--api-auth=bob:hidden"], ["--gradio-auth=ann:hidden"]]
)
def test_no_password_stays_in_the_process_list(form: list[str], monkeypatch: pytest.MonkeyPatch):
    ran: list[Any] = []
    monkeypatch.setattr(environment, "ensure", lambda *arguments: None)

    def run_again(python: Path, arguments: list[str]) -> int:
        ran.append((python, arguments))
        return 0

    monkeypatch.setattr(environment, "run_again", run_again)
    monkeypatch.setattr(os, "name", "posix")
    for variable in environment.LOGINS.values():
        monkeypatch.setenv(variable, "")
    assert main(["serve", "--listen", *form, "--port", "7861"]) == 0
    assert ran == [(Path(sys.executable), ["serve", "--listen", "--port", "7861"])]
    assert os.environ["STEER_GRADIO_AUTH"] == "ann:hidden"


def test_logins_are_read_and_bad_ones_refused_without_repeating_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STEER_API_AUTH", "bob:x")
    path = tmp_path / "accounts.txt"
    path.write_text("ann:secret\n", encoding="utf-8")
    parsed = options.parse(["serve", "--gradio-auth-path", str(path), "--allowed-hosts", "Steer.LAN", "a.example."])
    assert parsed.allowed_hosts == ["steer.lan", "a.example"]
    assert read_logins(parsed) == {"gradio_auth": None, "gradio_auth_path": path, "api_auth": "bob:x"}
    assert "STEER_API_AUTH" not in os.environ
    for arguments in (
        ["--api-auth", "hidden"],
        ["--gradio-auth", "ann:hidden,bob"],
        ["--gradio-auth", ","],
        ["--gradio-auth-path", str(tmp_path / "hidden")],
        ["--gradio-auth-path", str(tmp_path)],
    ):
        with pytest.raises(UserError) as refused:
            read_logins(options.parse(["serve", *arguments]))
        assert str(refused.value).startswith(arguments[0])
        assert "hidden" not in str(refused.value) or arguments[0] == "--gradio-auth-path"
    assert main(["generate", "x", "--api-auth", "ann:hidden"]) == 2
    assert main(["serve", "--allowed-hosts", "http://steer.lan:80"]) == 2
    told = capsys.readouterr().err
    assert "hidden" not in told
    assert "not a host name" in told
