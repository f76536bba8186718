"""The virtual environment beside run.py: made once, filled from the pinned requirements, left alone while they stay."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from importlib import metadata
from pathlib import Path

from lib_methods.pip import InstallError, Say, explain, install
from standalone import ROOT

VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements.txt"
DEVELOPERS = ROOT / "requirements-dev.txt"
NO_VENV = "STEER_NO_VENV"
INSIDE = "STEER_INSIDE_VENV"
STAMP = "steer-setup.json"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
_OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
_NO_VENV_MODULE = (
    "This Python has no venv module. On Debian and Ubuntu it is a separate package: "
    f"sudo apt install python{VERSION}-venv, then start again."
)


def stay_local(data_dir: Path) -> None:
    """No telemetry, no look-ups, temporary files in our own folder. Call it before the libraries are imported."""
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    os.environ["GRADIO_TEMP_DIR"] = str(data_dir / "tmp" / "gradio")


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def _lines(requirements: Path) -> Iterator[str]:
    """The requirements in a file and in those it includes."""
    for line in requirements.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            yield from _lines(requirements.parent / line[3:].strip())
        elif line.strip() and not line.startswith("#"):
            yield line


def has_all(requirements: Path) -> bool:
    """Whether the running interpreter has every pinned package, as in a container built for the pack."""
    try:
        from packaging.requirements import Requirement  # pinned like the others
    except ImportError:
        return False
    for requirement in map(Requirement, _lines(requirements)):
        try:
            if requirement.marker and not requirement.marker.evaluate():
                continue
            if not requirement.specifier.contains(metadata.version(requirement.name), prereleases=True):
                return False
        except metadata.PackageNotFoundError:
            return False
    return True


def _stamp(requirements: Path) -> dict[str, str]:
    return {"python": VERSION, requirements.name: hashlib.sha256("\n".join(_lines(requirements)).encode()).hexdigest()}


def is_ready(venv: Path, requirements: Path) -> bool:
    """Whether `venv` was filled, to the end, from exactly these requirements and with this version of Python."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and _stamp(requirements).items() <= stamp.items() and venv_python(venv).exists()


def write_stamp(venv: Path, requirements: Path) -> None:
    """Notes that the environment has all of these requirements."""
    stamp = _stamp(requirements) | (_stamp(REQUIREMENTS) if requirements == DEVELOPERS else {})
    (venv / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")


def make_venv(venv: Path, say: Say) -> None:
    """Makes the environment, or keeps one that works. InstallError with a sentence."""
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    if venv_python(venv).exists():
        done = subprocess.run([str(venv_python(venv)), "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == VERSION:
            return
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise InstallError(_NO_VENV_MODULE)
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        raise InstallError(
            "The folder .venv is in the way: it is not a virtual environment. Rename or remove it, then start again."
        )
    say("Creating a Python environment in .venv ...")
    command = [sys.executable, "-m", "venv", "--clear", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = done.stdout + done.stderr
        if "ensurepip" in output and "No space left" not in output:
            raise InstallError(_NO_VENV_MODULE)
        shutil.rmtree(venv / "lib", ignore_errors=True)
        raise InstallError(explain(output))


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is at work on this machine."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def torch_index(gpu: bool, platform: str = sys.platform) -> str | None:
    """Where the build of PyTorch for this machine is; None for PyPI, which has CUDA for Linux and the CPU elsewhere."""
    if platform.startswith("linux") and not gpu:
        return CPU_INDEX
    return CUDA_INDEX if platform == "win32" and gpu else None


def fill_venv(venv: Path, requirements: Path, say: Say) -> None:
    """Installs the requirements; continues an interrupted installation. InstallError with a sentence.

    Where there is a lock file beside them, its packages must have its hashes. PyTorch is not among them: its builds
    come from several places, with CUDA's libraries or without. A build for this machine ("2.13.0+cpu") comes before
    PyPI's in pip's order of versions; without it, where its site cannot be reached, pip takes PyPI's.
    """
    started = time.monotonic()
    (venv / STAMP).unlink(missing_ok=True)
    index = torch_index(has_nvidia_gpu())
    total = len(list(_lines(requirements)))
    need_gb = 3.0 if index == CPU_INDEX or sys.platform == "darwin" else 9.0

    def pip(*arguments: str, total: int = total) -> None:
        install(venv_python(venv), arguments, venv / "setup.log", say, total=total, need_gb=need_gb)

    say("Installing the packages, once. The largest is PyTorch; a few minutes with a fast connection ...")
    pip("--quiet", "pip==26.3", total=0)
    lock = requirements.with_suffix(".lock")
    if lock.is_file():
        pip("--no-deps", "--require-hashes", "-r", str(lock), total=total - 1)
    if index:  # for PyTorch alone: pip asks an index for every package, and waits each time where it does not answer
        torch = [line for line in _lines(requirements) if line.startswith("torch==")]
        pip("--no-deps", "--extra-index-url", index, *torch, total=0)
    pip("-r", str(requirements))
    write_stamp(venv, requirements)
    say(f"Everything is installed ({time.monotonic() - started:.0f} s). The next start takes seconds.")


def ensure(requirements: Path, say: Say, venv: Path = VENV) -> Path | None:
    """The interpreter that has all requirements, after installing them if need be; None when it is the running one."""
    if os.environ.get(NO_VENV) == "1":
        return None
    if is_ready(venv, requirements) or (requirements == REQUIREMENTS and is_ready(venv, DEVELOPERS)):
        return None if Path(sys.prefix).resolve() == venv.resolve() else venv_python(venv)
    if os.environ.get(INSIDE) == "1" or has_all(requirements):
        return None
    try:
        make_venv(venv, say)
        fill_venv(venv, requirements, say)
    except OSError as error:
        raise InstallError(explain(str(error))) from error
    return venv_python(venv)


LOGINS = {"--gradio-auth": "STEER_GRADIO_AUTH", "--api-auth": "STEER_API_AUTH"}
"""Options with passwords, and the environment variables that may hold them instead."""


def without_logins(arguments: list[str], environment: MutableMapping[str, str]) -> list[str]:
    """The arguments without those of `LOGINS`, which move to the environment: every user of a machine can read the
    command lines of its processes."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option in LOGINS:
            environment[LOGINS[option]] = value if equals else next(rest, "")
        else:
            kept.append(argument)
    return kept


def run_again(python: Path, arguments: list[str]) -> int:
    """Runs the same command with `python`, in place of this process where the system can do that."""
    command = [str(python), str(ROOT / "run.py"), *arguments]
    environment = {**os.environ, INSIDE: "1"}
    if os.name != "nt":
        sys.stdout.flush()
        os.execve(str(python), command, environment)
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the child got it, too, and ends in its own words
                continue
