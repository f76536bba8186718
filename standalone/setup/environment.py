"""The virtual environment beside run.py: made once, filled from the pins, and left alone while they stay the same."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import pins, places
from .errors import SetupError, explain, no_venv
from .pip_runner import PipRunner, Say
from .torch_build import has_nvidia_gpu, install_torch

NO_VENV = "STEER_NO_VENV"
INSIDE = "STEER_INSIDE_VENV"
STAMP = "steer-setup.json"
_PIP = "pip==26.3"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def _stamp(requirements: Path) -> dict[str, str]:
    return {"python": VERSION, requirements.name: pins.fingerprint(requirements)}


def is_ready(venv: Path, requirements: Path) -> bool:
    """Whether `venv` was filled, to the end, from exactly these pins and with this version of Python."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = _stamp(requirements)
    same = isinstance(stamp, dict) and all(stamp.get(key) == value for key, value in wanted.items())
    return same and venv_python(venv).exists()


def _write_stamp(venv: Path, requirements: Path) -> None:
    stamp = _stamp(requirements)
    if requirements == places.DEVELOPER_PINS:
        stamp |= _stamp(places.RUNTIME_PINS)
    (venv / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")


def _works(venv: Path) -> bool:
    """Whether the environment's interpreter runs and is this version of Python."""
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([str(venv_python(venv)), "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == VERSION


def make_venv(venv: Path, say: Say) -> None:
    """Makes the environment, or keeps the one that is there and works. SetupError with a sentence if it cannot."""
    if _works(venv):
        return
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(no_venv())
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        raise SetupError(
            "The folder .venv is in the way: it is not a virtual environment. Rename or remove it, then start again."
        )
    say("Making a Python environment of its own in .venv ...")
    command = [sys.executable, "-m", "venv", "--clear", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = done.stdout + done.stderr
        if "ensurepip" in output and "No space left" not in output:
            raise SetupError(no_venv())
        shutil.rmtree(venv / "lib", ignore_errors=True)
        raise SetupError(explain(output))


def fill_venv(venv: Path, requirements: Path, say: Say) -> None:
    """Installs the pins. Takes up an interrupted installation where it stopped. SetupError with a sentence.

    Where there is a lock file beside them, its packages must have its hashes. PyTorch is not among them: its builds
    come from several places, with CUDA's libraries or without.
    """
    started = time.monotonic()
    (venv / STAMP).unlink(missing_ok=True)
    wanted = pins.read_pins(requirements)
    pip = PipRunner(venv_python(venv), venv / "setup.log", say)
    gpu = has_nvidia_gpu()
    say(f"Installing {len(wanted)} packages, once. The largest is PyTorch; a few minutes with a fast connection ...")
    pip.install("--quiet", _PIP)
    torch = next(pin for pin in wanted if pin.name == "torch")
    install_torch(pip, f"{torch.name}=={torch.version}", gpu=gpu)
    lock = requirements.with_suffix(".lock")
    if lock.is_file():
        pip.install("--no-deps", "--require-hashes", "-r", str(lock), total=len(wanted) - 1)
    pip.install("-r", str(requirements), total=len(wanted), need_gb=9.0 if gpu else 3.0)
    _write_stamp(venv, requirements)
    say(f"Everything is installed ({time.monotonic() - started:.0f} s). The next start takes seconds.")


def suitable(requirements: Path) -> bool:
    """Whether the running interpreter needs no set-up: told so, inside .venv already, or it has every pin."""
    if os.environ.get(NO_VENV) == "1" or os.environ.get(INSIDE) == "1":
        return True
    return not pins.missing(pins.read_pins(requirements))


def ensure(requirements: Path, say: Say, venv: Path = places.VENV) -> Path | None:
    """The interpreter to go on with, ready with all pins; None when it is the running one."""
    developers = is_ready(venv, places.DEVELOPER_PINS) and requirements == places.RUNTIME_PINS
    if os.environ.get(NO_VENV) != "1" and (is_ready(venv, requirements) or developers):
        inside = Path(sys.prefix).resolve() == venv.resolve()
        return None if inside else venv_python(venv)
    if suitable(requirements):
        return None
    try:
        make_venv(venv, say)
        fill_venv(venv, requirements, say)
    except OSError as error:
        raise SetupError(explain(str(error))) from error
    return venv_python(venv)


def run_again(python: Path, arguments: list[str]) -> int:
    """Runs the same command with `python`, in place of this process where the system can do that."""
    command = [str(python), str(places.ROOT / "run.py"), *arguments]
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
