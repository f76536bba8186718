"""Packages for jobs that the host lacks, in a folder of the pack: the host's packages never change.

Tested versions: diffusers 0.35.2 works with transformers 4.30 (AUTOMATIC1111) and 5.x alike; from 0.36 on it needs a
newer transformers. A host that has a newer diffusers keeps that one.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.version import InvalidVersion, Version

from lib_methods.pip import InstallError, install

Say = Callable[[str, int, int], None]
"""A line of text, and how much is done of how much."""


@dataclass(frozen=True)
class Requirement:
    """name: of the distribution. least: the oldest version that will do. install: the version to install otherwise."""

    name: str
    least: str
    install: str


REQUIREMENTS = (
    Requirement("diffusers", "0.35.2", "0.35.2"),
    Requirement("huggingface-hub", "0.34", "0.36.2"),
    Requirement("safetensors", "0.3.1", "0.4.5"),
    Requirement("regex", "2019", "2024.11.6"),
    Requirement("requests", "2.20", "2.34.2"),
    Requirement("filelock", "3", "4.1.0"),
    Requirement("PyYAML", "5.1", "6.0.2"),
)
OPTIONAL = {
    "prodigy": Requirement("prodigyopt", "1.1", "1.1.2"),
    "cascade": Requirement("sentencepiece", "0.1.97", "0.2.0"),
}
"""What only some runs need, by the optimizer's or the command's name."""
HOSTS_OWN = ("torch", "transformers", "numpy", "Pillow")
"""What every host provides."""


def folder_for(root: Path) -> Path:
    """The folder of this interpreter's packages: binary ones fit one version of Python."""
    return root / f"{sys.implementation.name}{sys.version_info[0]}{sys.version_info[1]}"


def use(folder: Path) -> None:
    """Lets this process import from the folder, before the host's own: there may be an older one of the same name."""
    os.environ.setdefault("_CHECK_PEFT", "0")  # diffusers refuses a host's older PEFT, which jobs do not need
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _version(name: str, path: Sequence[str]) -> Version | None:
    """The installed version; None when it is not there."""
    for found in metadata.distributions(name=name, path=list(path)):
        try:
            return Version(found.version or "")
        except InvalidVersion:
            continue
    return None


def missing(folder: Path, wanted: Sequence[Requirement] | None = None) -> list[Requirement]:
    """What neither the interpreter nor the folder has in a new enough version. wanted: None for `REQUIREMENTS`."""

    def there(requirement: Requirement) -> bool:
        versions = _version(requirement.name, sys.path), _version(requirement.name, [str(folder)])
        return any(version is not None and version >= Version(requirement.least) for version in versions)

    return [requirement for requirement in (REQUIREMENTS if wanted is None else wanted) if not there(requirement)]


def outdated(folder: Path) -> list[Requirement]:
    """What an earlier version of the pack has put into the folder, and what is now installed in a newer one."""
    there = [(needed, _version(needed.name, [str(folder)])) for needed in (*REQUIREMENTS, *OPTIONAL.values())]
    return [needed for needed, version in there if version is not None and version < Version(needed.install)]


def ensure(folder: Path, say: Say, cancelled: Callable[[], bool] = lambda: False, also: Iterable[str] = ()) -> None:
    """Installs what is missing into the folder, all of it or nothing, and lets this process use it.

    Older versions from an earlier pack are replaced, or stay where that fails. also: keys of `OPTIONAL`;
    other words do not count. Raises `InstallError` with a sentence, `Cancelled`.
    """
    absent = [name for name in HOSTS_OWN if _version(name, sys.path) is None]
    if absent:
        raise InstallError(f"This WebUI's Python has no {', '.join(absent)}. Repair the WebUI's environment first.")
    try:
        _put(outdated(folder), folder, say, cancelled)
    except InstallError as error:
        print(f"{error} The installed version is used.", flush=True)
    optional = [OPTIONAL[name] for name in also if name in OPTIONAL]
    _put(missing(folder, [*REQUIREMENTS, *optional]), folder, say, cancelled)
    use(folder)


def _put(needed: Sequence[Requirement], folder: Path, say: Say, cancelled: Callable[[], bool]) -> None:
    """Only the packages themselves, ready built: nothing of the host is touched, and nothing is compiled."""
    if not needed:
        return
    names = ", ".join(f"{requirement.name} {requirement.install}" for requirement in needed)
    say(f"Installing {names}, once", 0, len(needed))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=folder.parent, ignore_cleanup_errors=True) as new:
        log, target = Path(new) / "pip.log", Path(new) / "packages"
        pins = [f"{requirement.name}=={requirement.install}" for requirement in needed]
        arguments = ["--no-deps", "--only-binary=:all:", "--target", str(target), *pins]
        try:
            install(Path(sys.executable), arguments, log, lambda line: None, cancelled=cancelled)
        except InstallError as error:
            raise InstallError(f"Missing packages cannot be installed ({names}). {error}") from None
        finally:
            if log.exists():  # the run's console file keeps it
                print(log.read_text(encoding="utf-8", errors="replace"), flush=True)
        for old in needed:  # else two versions would have their metadata there
            for entry in folder.glob(f"{old.name.replace('-', '_')}-*.dist-info"):
                shutil.rmtree(entry)
        for entry in target.iterdir():
            if (folder / entry.name).is_dir():
                shutil.rmtree(folder / entry.name)
            os.replace(entry, folder / entry.name)
    say("Installed missing packages", len(needed), len(needed))
