"""Installs packages with uv, where that is installed, or with pip, and says in plain words how far it is.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lib_methods.errors import Cancelled, UserError

Say = Callable[[str], None]

_WAIT = 0.2  # seconds between two looks at the log
_AGAIN = "start again: it continues where it stopped."
_REASONS = {  # what pip, uv and the systems say; the most telling first, as a full disk also breaks a download
    r"No module named pip": "This Python has no pip. Install pip into it.",
    r"No space left on device|Errno 28\b|ENOSPC|not enough space on the disk|Disk quota exceeded": "The disk is full. "
    f"Make room (about {{need:.0f}} GB are needed in all) and {_AGAIN}",
    r"Permission denied|Errno 13\b|Access is denied|Read-only file system": "The folder cannot be written to. "
    "Move the pack to a folder where you may write, and start again.",
    r"DO NOT MATCH THE HASHES|Hash mismatch": "The checksum differs: a downloaded package is not the file that this "
    "version was tested with. Start again; if it happens again, check where pip takes packages from (mirror, proxy).",
    r"name resolution|Name or service not known|nodename nor servname|getaddrinfo failed|NewConnectionError"
    r"|ConnectTimeout|Network is unreachable|Connection refused|No route to host|Could not fetch URL|ProxyError"
    r"|Max retries exceeded|ReadTimeout|Connection reset by peer|Connection broken|RemoteDisconnected|SSLError"
    r"|CERTIFICATE_VERIFY_FAILED|Retrying \(Retry|error sending request|dns error": "There is no connection to the "
    f"package index. Check the network (and the proxy, if there is one) and {_AGAIN}",
    r"No matching distribution found|Could not find a version|No solution found": "The package index has no {what} "
    f"for Python {sys.version_info[0]}.{sys.version_info[1]} on {platform.system()} {platform.machine()}, "
    "or cannot be reached. Another Python from 3.10 to 3.12 may work.",
}


class InstallError(UserError):
    """Packages cannot be installed. The text says why, and what to do."""


def explain(output: str, need_gb: float = 3.0) -> str:
    """What is wrong and what to do, from what pip printed; names no folder. need_gb: room for all packages."""
    found = re.search(r"(?:No matching distribution found for|satisfies the requirement) ([^\s(]+)", output)
    for pattern, sentence in _REASONS.items():
        if re.search(pattern, output, re.IGNORECASE):
            return sentence.format(need=need_gb, what=found[1] if found else "package that is needed")
    errors = [line.strip() for line in output.splitlines() if line.strip().lower().startswith("error")]
    said = f" It said: {errors[-1]}" if errors and not re.search(r"[/\\]", errors[-1]) else ""
    return f"pip failed; its output is in the log of the installation.{said}"


class Progress:
    """Turns the lines of pip and uv into one line a package. total: the packages to count to, those included that pip
    then leaves out by their markers; 0 does not count."""

    def __init__(self, say: Say, total: int = 0) -> None:
        self.say = say
        self.total = total
        self.seen: set[str] = set()
        self.silent: set[str] = set()

    def read(self, line: str) -> None:
        """Takes one line of output."""
        if line.startswith("Ignoring "):
            self.total -= 1
        elif found := re.match(r"(Collecting|Processing|Requirement already satisfied:) (\S+)", line):
            name = re.split(r"-\d|[=<>~!;[]", re.split(r"[/\\]", found[2])[-1])[0]  # Processing names a file
            if name.lower() not in self.seen:
                self.seen.add(name.lower())
                count = f"[{min(len(self.seen), self.total)}/{self.total}] " if self.total > 0 else ""
                if not found[1].startswith("Requirement"):
                    self.say(f"  {count}{name}")
        elif (found := re.search(r"Retrying .*host='([^']+)'", line)) and found[1] not in self.silent:
            self.silent.add(found[1])
            self.say(f"  {found[1]} does not answer; trying again ...")
        elif found := re.match(r"\s*Downloading (\S+) \(([\d.]+) ?([MG])i?B\)", line):
            if found[3] == "G" or float(found[2]) >= 5:
                self.say(f"      downloading {found[2]} {found[3]}B")
        elif found := re.match(r"Installing collected packages: (.*)", line):
            number = found[1].count(",") + 1
            patience = ", which takes a minute or two" if number > 5 else ""
            self.say(f"  unpacking {number} package{'s' if number > 1 else ''}{patience} ...")
        elif re.match(r"(Resolved|Prepared|Installed) \d+ packages? in", line):  # uv
            self.say(f"  {line.strip()}")


def pip_command(python: Path) -> list[str]:
    """pip of an interpreter; like uv, it leaves compiling to the first import, where Python may keep the result."""
    # it would compile every file of every package, one after the other: half of the time that it takes
    later = [] if sys.dont_write_bytecode else ["--no-compile"]
    return [
        *(str(python), "-m", "pip", "--disable-pip-version-check", "--no-input"),
        *("install", "--progress-bar=off", *later),
    ]


def uv_command(python: Path) -> list[str] | None:
    """uv for the same interpreter, choosing among package indexes as pip does; None where it is not installed."""
    uv = shutil.which("uv")
    return uv and [uv, "pip", "install", "--index-strategy=unsafe-best-match", "--python", str(python)] or None


def install(
    python: Path,
    arguments: Sequence[str],
    log: Path,
    say: Say,
    *,
    total: int = 0,
    need_gb: float = 3.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Runs `pip install` with these arguments, in the environment of `python`; where uv fails, pip has a try.

    log: a file that collects the output. total: for `Progress`. InstallError with a sentence; Cancelled.
    """
    commands = [command for command in (uv_command(python), pip_command(python)) if command]
    for command in commands:
        try:
            status, output = _run([*command, *arguments], log, Progress(say, total), cancelled)
        except OSError as error:
            status, output = 1, str(error)
        if not status:
            return
    raise InstallError(explain(output, need_gb))


def _run(command: list[str], log: Path, progress: Progress, cancelled: Callable[[], bool]) -> tuple[int, str]:
    # what would make pip install elsewhere, or not at all
    unwanted = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "UV_SYSTEM_PYTHON")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "UV_NO_PROGRESS": "1"}
    with log.open("ab") as target:
        target.write(f"\n$ {' '.join(command)}\n".encode())
        target.flush()
        start = target.tell()
        with (
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=target, stderr=subprocess.STDOUT, env=environment
            ) as process,
            log.open("rb") as reader,
        ):
            reader.seek(start)
            rest = b""
            status = None
            try:
                while status is None:
                    try:
                        status = process.wait(_WAIT)
                    except subprocess.TimeoutExpired:
                        if cancelled():
                            raise Cancelled from None
                    *lines, rest = (rest + reader.read()).split(b"\n")
                    for line in lines:
                        progress.read(line.decode("utf-8", "replace"))
            except BaseException:
                process.terminate()
                raise
            reader.seek(start)
            return status, reader.read().decode("utf-8", "replace")
