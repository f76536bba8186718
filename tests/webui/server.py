"""Starts the WebUI in a private data folder on a free loopback port, and stops it."""

from __future__ import annotations

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

REPO = Path(__file__).resolve().parents[2]
PACK_NAME = "sd-webui-steer"
START_TIMEOUT = 300.0
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
OPTIONS = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--no-download-sd-model",
    "--do-not-download-clip", "--use-cpu", "all", "--no-half", "--disable-console-progressbars", "--api",
)  # fmt: skip


class WebUIUnavailable(Exception):
    """There is no WebUI to test with; the message says what is missing."""


@dataclass(frozen=True)
class Installation:
    """A checkout of the WebUI, the interpreter that runs it and the checkpoint to give it."""

    root: Path
    python: Path
    checkpoint: Path

    @classmethod
    def from_environment(cls) -> Installation:
        """Reads SD_WEBUI_DIR, SD_WEBUI_PYTHON and SD_WEBUI_CKPT. Raises WebUIUnavailable."""
        root = webui_root()
        checkpoint = Path(os.environ.get("SD_WEBUI_CKPT") or REPO / "models" / "shapes" / "shapes.safetensors")
        named = os.environ.get("SD_WEBUI_PYTHON")
        candidates = (
            [Path(named)] if named else [root / "venv" / "bin" / "python", root / "venv" / "Scripts" / "python.exe"]
        )
        python = next((path for path in candidates if path.is_file()), None)
        if python is None:
            raise WebUIUnavailable(
                f"no Python for the WebUI at {' or '.join(map(str, candidates))}; set SD_WEBUI_PYTHON"
            )
        if not checkpoint.is_file():
            raise WebUIUnavailable(f"no checkpoint at {checkpoint}; set SD_WEBUI_CKPT")
        return cls(root, python, checkpoint.resolve())


def webui_root() -> Path:
    """The checkout that SD_WEBUI_DIR names. Raises WebUIUnavailable."""
    named = os.environ.get("SD_WEBUI_DIR")
    if not named:
        raise WebUIUnavailable("SD_WEBUI_DIR is not set to a checkout of the WebUI v1.10.1")
    root = Path(named).resolve()
    if not (root / "launch.py").is_file() or not (root / "modules" / "scripts.py").is_file():
        raise WebUIUnavailable(f"SD_WEBUI_DIR names {root}, which holds no WebUI (launch.py, modules/scripts.py)")
    return root


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
        vocabulary = REPO / "models" / "clip_bpe"
        model = checkpoints.prepare(self.installation.checkpoint, vocabulary, self.data / "models")
        port = free_port()
        self.client = Client(f"http://127.0.0.1:{port}", died=self.died)
        command = [str(self.installation.python), "launch.py", *OPTIONS, "--port", str(port)]
        command += [
            "--data-dir",
            str(self.data),
            "--ckpt",
            str(model),
            *shlex.split(os.environ.get("SD_WEBUI_ARGS", "")),
        ]
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
        self.client.post("/sdapi/v1/options", dict(SETTINGS))

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
        return [report for report in logged_errors(self.log()[since:]) if not report.startswith(NO_REMOTE)]


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
