"""The environment beside run.py: made once, taken up after an interruption, and every failure one sentence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import cast

import pytest

from standalone.setup import environment, errors, pins, places, torch_build
from standalone.setup.pip_runner import PipRunner, Progress

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


def test_the_shipped_pins_are_exact_and_read_by_us():
    for path in (places.RUNTIME_PINS, places.DEVELOPER_PINS):
        found = pins.read_pins(path)
        assert len({pin.name.lower() for pin in found}) == len(found), "a package is pinned twice for one Python"
        assert {"torch", "gradio", "diffusers"} <= {pin.name for pin in found}


@pytest.mark.parametrize("python", ["3.10.4", "3.11.0", "3.12.9"])
@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_the_lock_file_has_hashes_for_all_pins_but_torch(python: str, platform: str):
    """After a change of requirements.txt, run the command in the first lines of requirements.lock."""
    from packaging.requirements import Requirement

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
                assert path == places.RUNTIME_PINS or hashed, line
        return found

    wanted = pinned(places.RUNTIME_PINS)
    del wanted["torch"]
    assert pinned(places.RUNTIME_PINS.with_suffix(".lock")) == wanted


def test_locked_packages_are_installed_by_their_hashes(requirements: Path, venv: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(PipRunner, "install", lambda self, *arguments, **kwargs: calls.append(arguments))
    monkeypatch.setattr(environment, "install_torch", lambda *args, **kwargs: None)
    lock = requirements.with_suffix(".lock")
    lock.write_text("alpha==1 --hash=sha256:0\n", encoding="utf-8")
    environment.fill_venv(venv, requirements, lambda text: None)
    assert calls[-2:] == [
        ("--no-deps", "--require-hashes", "-r", str(lock)),
        ("-r", str(requirements)),
    ]


@pytest.mark.parametrize("version", [(3, 10, 4), (3, 11, 0), (3, 12, 9)])
def test_each_supported_python_gets_one_version_of_each_package(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pins.sys, "version_info", version)
    names = [pin.name.lower() for pin in pins.read_pins(places.DEVELOPER_PINS)]
    assert len(set(names)) == len(names)
    assert {"numpy", "pandas", "diffusers", "transformers", "pytest"} <= set(names)


def test_markers_choose_the_version(requirements: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pins.sys, "version_info", (3, 10, 1))
    assert pins.Pin("beta", "1.5") in pins.read_pins(requirements)
    monkeypatch.setattr(pins.sys, "version_info", (3, 12, 1))
    found = pins.read_pins(requirements)
    assert pins.Pin("beta", "2.0") in found
    assert all(pin.name != "gamma" for pin in found)


def test_a_line_that_is_no_pin_is_refused(tmp_path: Path):
    path = tmp_path / "requirements.txt"
    path.write_text("alpha>=1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a pin"):
        pins.read_pins(path)


def test_a_cpu_build_satisfies_the_pin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pins.metadata, "version", lambda name: "2.13.0+cpu")
    assert pins.missing([pins.Pin("torch", "2.13.0")]) == []


def test_ready_only_after_a_finished_installation_of_the_same_pins(requirements: Path, venv: Path):
    assert not environment.is_ready(venv, requirements)
    environment._write_stamp(venv, requirements)
    assert environment.is_ready(venv, requirements)
    requirements.write_text(requirements.read_text(encoding="utf-8") + "delta==1\n", encoding="utf-8")
    assert not environment.is_ready(venv, requirements)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"python": "2.7"}'])
def test_a_damaged_stamp_means_not_ready(content: str, requirements: Path, venv: Path):
    (venv / environment.STAMP).write_text(content, encoding="utf-8")
    assert not environment.is_ready(venv, requirements)


def test_an_interrupted_installation_is_taken_up(requirements: Path, venv: Path, monkeypatch: pytest.MonkeyPatch):
    """The stamp goes before the first package and comes after the last: an interruption never looks finished."""
    environment._write_stamp(venv, requirements)
    calls: list[tuple[str, ...]] = []

    def install(self: PipRunner, *arguments: str, **kwargs: object) -> None:
        calls.append(arguments)
        assert not (venv / environment.STAMP).exists()
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PipRunner, "install", install)
    monkeypatch.setattr(environment, "install_torch", lambda *args, **kwargs: None)
    with pytest.raises(KeyboardInterrupt):
        environment.fill_venv(venv, requirements, lambda text: None)
    assert not environment.is_ready(venv, requirements)
    environment.fill_venv(venv, requirements, lambda text: None)
    assert environment.is_ready(venv, requirements)
    assert calls[-1][:2] == ("-r", str(requirements))


def test_a_folder_of_someone_elses_is_not_overwritten(tmp_path: Path):
    folder = tmp_path / ".venv"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(errors.SetupError, match="in the way"):
        environment.make_venv(folder, lambda text: None)
    assert (folder / "diary.txt").read_text(encoding="utf-8") == "mine"


def test_a_python_without_venv_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.SetupError, match=r"apt install python3\.\d+-venv"):
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
        ("", "setup.log"),
    ],
)
def test_what_pip_complains_about_becomes_a_sentence(output: str, told: str):
    sentence = errors.explain(output)
    assert told in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


def test_a_failing_pip_ends_in_its_sentence(tmp_path: Path):
    """A real pip, kept away from every index."""
    pip = PipRunner(Path(sys.executable), tmp_path / "log.txt", lambda text: None)
    with pytest.raises(errors.SetupError, match="has no surely-not-there==1"):
        pip.install("--no-index", "--find-links", str(tmp_path), "surely-not-there==1")
    assert "surely-not-there" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_progress_counts_packages_once():
    said: list[str] = []
    progress = Progress(said.append, 3)
    for line in (
        "Collecting alpha==1",
        "  Downloading alpha-1.whl (12.5 MB)",
        "Collecting alpha>=0 (from beta)",
        "Requirement already satisfied: beta in x",
        "Collecting gamma",
        "Installing collected packages: a, b",
    ):
        progress.read(line)
    assert [text.strip() for text in said] == [
        "[1/3] alpha",
        "downloading 12.5 MB",
        "[3/3] gamma",
        "unpacking 2 packages ...",
    ]


class FakePip:
    """Offers what it is told to, and writes down what is installed."""

    def __init__(self, plain: dict[str, object] | None, other: dict[str, object] | None) -> None:
        self.plain, self.other = plain, other
        self.installed: list[tuple[str, ...]] = []
        self.said: list[str] = []

    def offered(self, requirement: str, *arguments: str) -> dict[str, object] | None:
        return self.other if arguments else self.plain

    def install(self, *arguments: str, **kwargs: object) -> None:
        self.installed.append(arguments)

    def say(self, text: str) -> None:
        self.said.append(text)


CUDA = {"version": "2.13.0", "requires_dist": ["nvidia-cudnn-cu13==9 ; platform_system == 'Linux'"]}
CPU = {"version": "2.13.0+cpu", "requires_dist": ["filelock"]}


@pytest.mark.parametrize(
    ("plain", "other", "gpu", "platform", "index"),
    [
        (CUDA, CPU, False, "linux", torch_build.CPU_INDEX),  # PyPI on a machine without a GPU
        (CPU, None, False, "linux", None),  # a mirror that has the small build
        (CUDA, None, False, "linux", None),  # the small build's site cannot be reached
        (CUDA, CPU, True, "linux", None),  # a GPU: PyPI's build is right
        (CPU, CUDA, True, "win32", torch_build.CUDA_INDEX),
        (CPU, CUDA, False, "win32", None),
        (CPU, CUDA, False, "darwin", None),
    ],
)
def test_the_build_of_torch_fits_the_machine(plain, other, gpu, platform, index):
    pip = FakePip(plain, other)
    torch_build.install_torch(cast(PipRunner, pip), "torch==2.13.0", gpu=gpu, platform=platform)
    assert [arguments[2] for arguments in pip.installed] == ([index] if index else [])
    assert bool(pip.said) == (bool(index) or (plain is CUDA and not gpu))


def test_the_stamp_names_python_and_pins(requirements: Path, venv: Path):
    environment._write_stamp(venv, requirements)
    stamp = json.loads((venv / environment.STAMP).read_text(encoding="utf-8"))
    assert stamp["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert stamp["requirements.txt"] == pins.fingerprint(requirements)
