"""Starts the WebUI in a private data folder on a free loopback port, and stops it."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import checkpoint as checkpoints
from .client import Client
from .hosts import A1111, Host, WebUIUnavailable
from .models import made

REPO = Path(__file__).resolve().parents[2]
PACK_NAME = "sd-webui-steer"
START_TIMEOUT = 900.0  # a busy machine
SETTINGS = {
    # previews without a model of their own, which the WebUI would try to download
    "show_progress_type": "Approx cheap",
    # what single requests override: the WebUI puts an option back only if it was set before
    "batch_cond_uncond": True,
    "skip_early_cond": 0.0,
    "s_min_uncond_all": False,
    "token_merging_ratio": 0.0,
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "s_churn": 0.0,
}
NO_REMOTE = "*** Failed reading extension data from Git repository"


@dataclass(frozen=True)
class Installation:
    """A checkout of a WebUI, the interpreter that runs it and the checkpoint to give it."""

    host: Host
    root: Path
    python: Path
    checkpoint: Path

    @classmethod
    def of(cls, host: Host = A1111) -> Installation:
        """Reads the host's environment variables, see `Host`. Raises WebUIUnavailable."""
        root = host.root()
        python = host.python()
        own = made("sd1") if host.guesses else REPO / "models" / "shapes" / "shapes.safetensors"
        checkpoint = Path(os.environ.get(f"SD_{host.variable}_CKPT") or own)
        if not checkpoint.is_file():
            raise WebUIUnavailable(f"no checkpoint at {checkpoint}; set SD_{host.variable}_CKPT")
        return cls(host, root, python, checkpoint.resolve())


@contextmanager
def serving(installation: Installation, data: Path, extensions: dict[str, Path] | None = None) -> Iterator[WebUI]:
    """A WebUI that runs inside the `with` block; see `WebUI`."""
    server = WebUI(installation, data, extensions)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def link_folder(source: Path, link: Path) -> None:
    """Makes `link` another name of the folder `source`: a symbolic link, on Windows a junction."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        import _winapi  # a junction needs no special right, which a symbolic link does there

        _winapi.CreateJunction(str(source), str(link))
    else:
        link.symlink_to(source, target_is_directory=True)


def free_port() -> int:
    """A TCP port on the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class WebUI:
    """One WebUI process. `data` must be an empty folder that nobody else uses.

    `extensions` are the folders to link into its `extensions/`, by the name they get there.
    """

    def __init__(self, installation: Installation, data: Path, extensions: dict[str, Path] | None = None) -> None:
        self.installation = installation
        self.data = data
        self.extensions = extensions or {}
        self.log_path = data / "server.log"
        self.trace_path = data / "lifecycle.jsonl"  # written by the probe extension, where that is linked
        self.client = Client("")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until its API answers. Raises RuntimeError with the end of the log otherwise."""
        for name, source in self.extensions.items():
            link_folder(source, self.data / "extensions" / name)
        host, models = self.installation.host, self.data / "models"
        port = free_port()
        self.client = Client(f"http://127.0.0.1:{port}", died=self.died, adapted=host.adapted)
        command = [str(self.installation.python), "launch.py", *host.arguments, "--port", str(port)]
        # gradio 4 serves the host's own scripts from allowed folders alone; the data folder is one, its code is not
        command += ["--data-dir", str(self.data), "--gradio-allowed-path", str(self.installation.root)]
        command += shlex.split(os.environ.get(f"SD_{host.variable}_ARGS", ""))
        if host.guesses:
            checkpoints.place(self.installation.checkpoint, models)
        else:
            vocabulary, webui = REPO / "models" / "clip_bpe", self.installation.root
            model = checkpoints.prepare(self.installation.checkpoint, vocabulary, models, webui)
            command += ["--ckpt", str(model)]
        (self.data / "config.json").write_text(json.dumps({**SETTINGS, **host.settings}), encoding="utf-8")
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.installation.root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait()

    def _environment(self) -> dict[str, str]:
        """The server's environment: offline, private temporary files, nothing of the Python that runs the tests."""
        foreign = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COMMANDLINE_ARGS", "SD_WEBUI_RESTARTING"}
        env = {name: value for name, value in os.environ.items() if name not in foreign}
        env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False", PYTHONUNBUFFERED="1")
        env.update(
            HF_HOME=str(self.data / "hf"), GRADIO_TEMP_DIR=str(self.data / "gradio"), no_proxy="127.0.0.1,localhost"
        )
        env["LIFECYCLE_PROBE_LOG"] = str(self.trace_path)
        env.setdefault("OMP_NUM_THREADS", "1")  # sums in a fixed order: two servers can agree to the last bit
        return env

    def _wait(self) -> None:
        """Waits for the line that the WebUI prints once all its paths are there.

        A request before that would start the application, to which the WebUI then cannot add its API any more.
        """
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while "Startup time:" not in self.log():
            if (end := self.died()) is not None:
                raise RuntimeError(end)
            if time.monotonic() > deadline:
                raise RuntimeError(f"the WebUI did not start within {START_TIMEOUT:.0f} s:\n{self.log()[-4000:]}")
            time.sleep(0.2)

    def died(self) -> str | None:
        """How the process ended, with the last lines of its log; None while it runs."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else f"the WebUI ended with code {code}:\n{self.log()[-4000:]}"

    def stop(self) -> None:
        """Ends the server, if it runs, and takes the links out of its data folder."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
        for name in self.extensions:
            remove_link(self.data / "extensions" / name)

    def log(self) -> str:
        """All that the server printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def errors(self, since: int = 0) -> list[str]:
        """The errors that the host caught and logged after the first `since` characters of the log.

        Without its complaint about a linked clone that has no remote to update from.
        """
        known = (NO_REMOTE, *self.installation.host.complaints)
        return [report for report in logged_errors(self.log()[since:]) if not report.startswith(known)]


def remove_link(link: Path) -> None:
    """Removes a link made by `link_folder`, never what it points to."""
    if link.is_symlink():
        link.unlink()
    elif sys.platform == "win32" and link.exists():
        link.rmdir()  # removes the junction itself


def logged_errors(log: str) -> list[str]:
    """Error reports in a log of the WebUI: lines that start with ``***`` with what belongs to them, and tracebacks."""
    reports: list[list[str]] = []
    inside = False
    for line in log.splitlines():
        starts = line.startswith(("*** ", "Traceback (most recent call last)"))
        if starts and not (inside and line.startswith("*** ")):
            reports.append([])
            inside = True
        elif inside and line and not line.startswith((" ", "*** ")):
            reports[-1].append(line)  # the last line of a traceback, or the closing ---
            inside = False
        if inside:
            reports[-1].append(line)
    return ["\n".join(lines) for lines in reports]
