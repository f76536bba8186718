"""A server in its own process, for tests that need the real thing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from standalone import ROOT

_GIVEN: set[int] = set()


def free_port() -> int:
    """A free port, each once, below those that systems give to connections: one of these could take it before the
    server does."""
    while True:
        port = random.SystemRandom().randint(10_000, 29_999)
        if port in _GIVEN:
            continue
        _GIVEN.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Process:
    """`run.py serve` on a free port."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._options = options
        self.start()

    def start(self) -> None:
        """Starts it, also again after `stop`: on the same port, as a user does."""
        environment = {**os.environ, "STEER_NO_VENV": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "serve", "--no-browser", "--port", str(self.port), *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def wait(self, seconds: float = 300.0) -> None:
        end = time.monotonic() + seconds
        while not any("The page is at" in line for line in self.lines):
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() < end, "the server did not start: " + "".join(self.lines)
            time.sleep(0.1)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def stopped_in_silence(self) -> None:
        """Whether the console shows that it was stopped, and no error."""
        self.reader.join(60)
        said = "".join(self.lines)
        assert "Stopped." in said
        assert not any(word in said for word in ("Traceback", "ERROR", "terminate")), said
