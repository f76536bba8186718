"""What training needs and a host's interpreter lacks, in a folder of the pack's own: the host's packages never change.

Versions that were tried: diffusers 0.35.2 works with transformers 4.30 (AUTOMATIC1111) and 5.x alike; from 0.36 on it
needs a newer transformers. A host that has a newer diffusers of its own keeps to that one.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_methods.dreambooth.errors import DreamBoothError, TrainingStopped

Say = Callable[[str, int, int], None]
"""A line of text, and how much is done of how much."""

_WAIT = 0.2  # seconds between two looks at pip


@dataclass(frozen=True)
class Requirement:
    """name: of the distribution. least: the version from which on a host's own does. install: what is put beside it."""

    name: str
    least: tuple[int, ...]
    install: str


REQUIREMENTS = (
    Requirement("diffusers", (0, 35, 2), "0.35.2"),
    Requirement("huggingface-hub", (0, 34), "0.36.2"),
    Requirement("safetensors", (0, 3, 1), "0.4.5"),
    Requirement("regex", (2019,), "2024.11.6"),
    Requirement("requests", (2, 20), "2.34.2"),
    Requirement("filelock", (3,), "4.1.0"),
    Requirement("PyYAML", (5, 1), "6.0.2"),
)
OPTIONAL = {"prodigy": Requirement("prodigyopt", (1, 1), "1.1.2")}
"""What only some trainings need, by the optimizer's name."""
HOSTS_OWN = ("torch", "transformers", "numpy", "Pillow")
"""What a host brings along, or else it is none."""


def folder_for(root: Path) -> Path:
    """The folder of this interpreter's packages: binary ones fit one version of Python."""
    return root / f"{sys.implementation.name}{sys.version_info[0]}{sys.version_info[1]}"


def use(folder: Path) -> None:
    """Lets this process import from the folder, before the host's own: there may be an older one of the same name."""
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def missing(folder: Path, wanted: Sequence[Requirement] | None = None) -> list[Requirement]:
    """What neither the interpreter nor the folder has in a version that does. wanted: None for `REQUIREMENTS`."""
    return [
        requirement
        for requirement in (REQUIREMENTS if wanted is None else wanted)
        if not _does(_version(requirement.name, None), requirement.least)
        and not _does(_version(requirement.name, folder), requirement.least)
    ]


def outdated(folder: Path) -> list[Requirement]:
    """What an earlier version of the pack has put into the folder, and what is now installed in a newer one."""
    there = [(requirement, _version(requirement.name, folder)) for requirement in (*REQUIREMENTS, *OPTIONAL.values())]
    return [needed for needed, version in there if version is not None and not _does(version, _numbers(needed.install))]


def ensure(folder: Path, say: Say, cancelled: Callable[[], bool] = lambda: False, optimizer: str = "") -> None:
    """Installs what is missing into the folder, whole or not at all, and lets this process use it.

    What is there in an older version than is now installed is replaced, or stays where that cannot be. optimizer: may
    need a package of `OPTIONAL`. Raises `DreamBoothError` with a sentence, `TrainingStopped` when it is cancelled.
    """
    absent = [name for name in HOSTS_OWN if _version(name, None) is None]
    if absent:
        raise DreamBoothError(f"This WebUI's Python lacks {', '.join(absent)}. Repair the WebUI's environment first.")
    old = outdated(folder)
    try:
        _put(old, folder, say, cancelled)
    except DreamBoothError as error:
        print(f"{error} The version that is there is used.", flush=True)
    _put(
        missing(folder, [*REQUIREMENTS, *(OPTIONAL[name] for name in [optimizer] if name in OPTIONAL)]),
        folder,
        say,
        cancelled,
    )
    use(folder)


def _put(needed: Sequence[Requirement], folder: Path, say: Say, cancelled: Callable[[], bool]) -> None:
    if not needed:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=folder.parent, ignore_cleanup_errors=True) as new:
        for number, requirement in enumerate(needed):
            say(f"Installing {requirement.name} {requirement.install}, once", number, len(needed))
            _install(requirement, Path(new), cancelled)
        for old in needed:  # else two versions would have their metadata there
            for entry in folder.glob(f"{old.name.replace('-', '_')}-*.dist-info"):
                shutil.rmtree(entry)
        for entry in Path(new).iterdir():
            _replace(entry, folder / entry.name)
    say("Installed what training needs", len(needed), len(needed))


def pip_command(requirement: Requirement, target: Path) -> list[str]:
    """Only the package itself, ready built, into a folder: nothing of the host is touched, and nothing is compiled."""
    return [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--no-deps",
        "--only-binary=:all:",
        "--no-warn-script-location",
        "--progress-bar=off",
        "--target",
        str(target),
        f"{requirement.name}=={requirement.install}",
    ]


def _install(requirement: Requirement, target: Path, cancelled: Callable[[], bool]) -> None:
    # what would make pip install elsewhere, or not at all
    unwanted = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            pip_command(requirement, target),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process:
            while True:
                try:
                    status = process.wait(_WAIT)
                    break
                except subprocess.TimeoutExpired:
                    if cancelled():
                        process.terminate()
                        raise TrainingStopped from None
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    print(text, flush=True)  # the training's console file keeps it
    if status:
        raise DreamBoothError(explain(text, f"{requirement.name} {requirement.install}"))


def explain(output: str, what: str) -> str:
    """One sentence for the user about pip's failure."""
    start = f"Training needs {what}, which this WebUI lacks, and it could not be installed: "
    if "No module named pip" in output:
        return start + "this Python has no pip. Install pip into the WebUI's environment."
    if "No space left" in output or "Errno 28" in output:
        return start + "the disk is full."
    if "Permission denied" in output or "Errno 13" in output or "Access is denied" in output:
        return start + "the folder of the pack's packages cannot be written."
    signs = (
        "NewConnectionError",
        "ConnectTimeout",
        "name resolution",
        "getaddrinfo",
        "ProxyError",
    )
    if any(sign in output for sign in signs):
        return start + "there is no connection to the package index. It is needed once; try again when there is one."
    if "No matching distribution" in output or "Could not find a version" in output:
        return start + "the package index has no version of it for this Python, or cannot be reached."
    return start + "pip failed; the training's console file says why."


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def _version(name: str, folder: Path | None) -> tuple[int, ...] | None:
    """The numbers of an installed version; None when it is not there. folder None: the interpreter's own."""
    paths = [str(folder)] if folder is not None else list(sys.path)
    return _of_paths(name, paths)


def _of_paths(name: str, paths: Sequence[str]) -> tuple[int, ...] | None:
    for found in importlib.metadata.distributions(name=name, path=list(paths)):
        numbers = re.match(r"\d+(?:\.\d+)*", str(found.version or ""))
        if numbers:
            return _numbers(numbers[0])
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _does(version: tuple[int, ...] | None, least: tuple[int, ...]) -> bool:
    return version is not None and version >= least
