"""The environment beside run.py: made once, taken up after an interruption, and every failure one sentence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lib_methods import pip
from lib_methods.errors import Cancelled
from lib_methods.pip import InstallError, Progress, explain, install
from standalone.setup import environment

PLAIN = 'alpha==1.0\nbeta==2.0 ; python_version >= "3.11"\nbeta==1.5 ; python_version < "3.11"\n'


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text("# a comment\ntorch==2.13.0\n" + PLAIN + 'gamma==3 ; sys_platform == "nowhere"\n', encoding="utf-8")
    return path


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    folder = tmp_path / "venv"
    python = environment.venv_python(folder)
    python.parent.mkdir(parents=True)
    python.write_text("", encoding="utf-8")
    return folder


@pytest.mark.parametrize("python", ["3.10.4", "3.11.0", "3.12.9"])
@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_the_lock_file_has_hashes_for_all_pins_but_torch(python: str, platform: str):
    """After a change of requirements.txt, run the command in the first lines of requirements.lock."""
    system = {"python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": platform}

    def pinned(path: Path) -> dict[str, str]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        found: dict[str, str] = {}
        for line in lines:
            requirement = Requirement(line.partition("--hash")[0])
            if requirement.marker is None or requirement.marker.evaluate(system):
                found[requirement.name.lower().replace("_", "-").replace(".", "-")] = str(requirement.specifier)
                hashed = len(re.findall(r"--hash=sha256:[0-9a-f]{64}(?= |$)", line))
                assert path == environment.REQUIREMENTS or hashed, line
        return found

    wanted = pinned(environment.REQUIREMENTS)
    del wanted["torch"]
    assert pinned(environment.REQUIREMENTS.with_suffix(".lock")) == wanted


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What pip was called with; it does nothing."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(environment, "install", lambda python, arguments, *more, **named: found.append(arguments))
    return found


def test_locked_packages_are_installed_by_their_hashes(
    requirements: Path, venv: Path, calls: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(environment, "torch_index", lambda gpu: environment.CPU_INDEX)
    lock = requirements.with_suffix(".lock")
    lock.write_text("alpha==1 --hash=sha256:0\n", encoding="utf-8")
    environment.fill_venv(venv, requirements, lambda text: None)
    assert calls[-3:] == [
        ("--no-deps", "--require-hashes", "-r", str(lock)),
        ("--no-deps", "--extra-index-url", environment.CPU_INDEX, "torch==2.13.0"),
        ("-r", str(requirements)),
    ]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_each_supported_python_gets_one_exact_version_of_each_package(python: str, platform: str):
    system = {"python_version": python, "sys_platform": platform}
    found = [Requirement(line) for line in environment._lines(environment.DEVELOPERS)]
    found = [pin for pin in found if pin.marker is None or pin.marker.evaluate(system)]
    names = [pin.name.lower() for pin in found]
    assert len(set(names)) == len(names)
    assert {"numpy", "pandas", "diffusers", "transformers", "pytest", "torch", "gradio"} <= set(names)
    assert all(str(pin.specifier).startswith("==") for pin in found)


@pytest.mark.parametrize(
    ("pin", "enough"),
    [
        ("toy==2.13.0", True),  # a build for the CPU
        ("toy==2.13.1", False),
        ("gone==1", False),
        ('gone==1 ; sys_platform == "nowhere"', True),
        ('toy==9 ; python_version < "3"', True),
    ],
)
def test_an_interpreter_with_every_package_needs_no_environment(
    pin: str, enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def version(name: str) -> str:
        if name == "gone":
            raise environment.metadata.PackageNotFoundError(name)
        return "2.13.0+cpu"

    monkeypatch.setattr(environment.metadata, "version", version)
    path = tmp_path / "requirements.txt"
    path.write_text(f"# a comment\n\n{pin}\n", encoding="utf-8")
    assert environment.has_all(path) is enough


def test_ready_only_after_a_finished_installation_of_the_same_pins(requirements: Path, venv: Path):
    assert not environment.is_ready(venv, requirements)
    environment.write_stamp(venv, requirements)
    assert environment.is_ready(venv, requirements)
    requirements.write_text(requirements.read_text(encoding="utf-8") + "delta==1\n", encoding="utf-8")
    assert not environment.is_ready(venv, requirements)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"python": "2.7"}'])
def test_a_damaged_stamp_means_not_ready(content: str, requirements: Path, venv: Path):
    (venv / environment.STAMP).write_text(content, encoding="utf-8")
    assert not environment.is_ready(venv, requirements)


def test_an_interrupted_installation_is_taken_up(requirements: Path, venv: Path, monkeypatch: pytest.MonkeyPatch):
    """The stamp goes before the first package and comes after the last: an interruption never looks finished."""
    environment.write_stamp(venv, requirements)
    calls: list[tuple[str, ...]] = []

    def pip(python: Path, arguments: tuple[str, ...], *more: object, **named: object) -> None:
        calls.append(arguments)
        assert not (venv / environment.STAMP).exists()
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(environment, "install", pip)
    with pytest.raises(KeyboardInterrupt):
        environment.fill_venv(venv, requirements, lambda text: None)
    assert not environment.is_ready(venv, requirements)
    environment.fill_venv(venv, requirements, lambda text: None)
    assert environment.is_ready(venv, requirements)
    assert calls[-1][-2:] == ("-r", str(requirements))


def test_a_folder_of_someone_elses_is_not_overwritten(tmp_path: Path):
    folder = tmp_path / ".venv"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InstallError, match="in the way"):
        environment.make_venv(folder, lambda text: None)
    assert (folder / "diary.txt").read_text(encoding="utf-8") == "mine"


def test_a_python_without_venv_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallError, match=r"apt install python3\.\d+-venv"):
        environment.make_venv(tmp_path / ".venv", lambda text: None)


def test_developers_may_go_without(requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(environment.NO_VENV, "1")
    assert environment.ensure(requirements, lambda text: None, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "checksum differs"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: Temporary failure "
            "in name resolution'\nERROR: No matching distribution found for torch==2.13.0",
            "no connection",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'",
            "cannot be written",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0", "has no torch==2.13.0"),
        ("ERROR: something new", "something new"),
        ("", "log of the installation"),
    ],
)
def test_what_pip_complains_about_becomes_a_sentence(output: str, told: str):
    sentence = explain(output)
    assert told in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


def test_a_failing_pip_ends_in_its_sentence(tmp_path: Path):
    """A real pip, kept away from every index."""
    log = tmp_path / "log.txt"
    with pytest.raises(InstallError, match="has no surely-not-there==1"):
        install(Path(sys.executable), ["--no-index", "surely-not-there==1"], log, lambda text: None)
    assert "surely-not-there" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", [True, False])
def test_pip_compiles_only_what_python_would_compile_at_every_start(kept: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", not kept)
    assert ("--no-compile" in pip.pip_command(Path("python"))) == kept


def test_cancelling_ends_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(pip, "uv_command", lambda python: None)
    monkeypatch.setattr(pip, "pip_command", lambda python: sleeper)
    with pytest.raises(Cancelled):
        install(Path(sys.executable), [], tmp_path / "log.txt", lambda text: None, cancelled=lambda: True)


def test_where_uv_fails_pip_has_a_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(pip, "uv_command", lambda python: [sys.executable, "-c", "raise SystemExit(2)"])
    monkeypatch.setattr(pip, "pip_command", lambda python: [sys.executable, "-c", "print('Collecting alpha')"])
    install(Path(sys.executable), [], tmp_path / "log.txt", said.append)
    assert said == ["  alpha"]


def test_progress_counts_packages_once():
    said: list[str] = []
    progress = Progress(said.append, 4)
    for line in (
        "Ignoring delta: markers 'python_version < \"3\"' don't match your environment",
        "Collecting alpha==1",
        "  Downloading alpha-1.whl (12.5 MB)",
        "Collecting alpha>=0 (from beta)",
        "Requirement already satisfied: beta in x",
        "Processing /wheels/gamma_ray-1.0-py3-none-any.whl",
        "WARNING: Retrying (Retry(total=4)) after connection broken by \"HTTPSConnection(host='a.org', port=443)",
        "WARNING: Retrying (Retry(total=3)) after connection broken by \"HTTPSConnection(host='a.org', port=443)",
        "Installing collected packages: a, b",
    ):
        progress.read(line)
    assert [text.strip() for text in said] == [
        "[1/3] alpha",
        "downloading 12.5 MB",
        "[3/3] gamma_ray",
        "a.org does not answer; trying again ...",
        "unpacking 2 packages ...",
    ]


@pytest.mark.parametrize(
    ("gpu", "platform", "index"),
    [
        (False, "linux", environment.CPU_INDEX),
        (True, "linux", None),  # PyPI's build is right
        (True, "win32", environment.CUDA_INDEX),
        (False, "win32", None),
        (False, "darwin", None),
    ],
)
def test_the_build_of_torch_fits_the_machine(gpu: bool, platform: str, index: str | None):
    assert environment.torch_index(gpu, platform) == index


def test_the_stamp_names_python_and_pins(requirements: Path, venv: Path):
    environment.write_stamp(venv, requirements)
    stamp = json.loads((venv / environment.STAMP).read_text(encoding="utf-8"))
    assert stamp["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert len(stamp["requirements.txt"]) == 64
