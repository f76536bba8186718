"""The real command: its own process, called over the network and stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from standalone import ROOT
from tests.api.process import Process, free_port


@pytest.fixture(scope="module")
def process(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    running = Process("--checkpoint", str(tiny_checkpoint), "--data-dir", str(tmp_path_factory.mktemp("served")))
    try:
        running.wait()
        yield running
    finally:
        running.stop()


def test_it_serves_page_and_api(process: Process):
    status, page = process.ask("/")
    assert (status, b"gradio" in page) == (200, True)
    scripts = re.findall(rb'src="(/steer/[^"]+)"', page)
    assert [process.ask(address.decode())[0] for address in scripts] == [200] * len(scripts)
    assert len(scripts) >= 2
    status, answer = process.ask("/sdapi/v1/txt2img", {"prompt": "x", "steps": 1, "width": 64, "height": 64})
    assert status == 200
    assert json.loads(answer)["images"]


def test_it_listens_on_loopback_only(process: Process):
    """On every other address of this machine the port is closed."""
    for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}:
        if str(address).startswith("127."):
            continue
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((address, process.port)) != 0


def serve_once(*options: object) -> subprocess.CompletedProcess[str]:
    """`run.py serve` that must end by itself; the last option is its data folder."""
    *given, data = map(str, options)
    command = [sys.executable, str(ROOT / "run.py"), "serve", "--no-browser", *given, "--data-dir", data]
    environment = {**os.environ, "STEER_NO_VENV": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)


def test_a_port_in_use_is_told_in_one_sentence(process: Process, tiny_checkpoint: Path, tmp_path: Path):
    done = serve_once("--port", process.port, "--checkpoint", tiny_checkpoint, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"Port {process.port} is in use")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals there")
def test_it_stops_when_it_is_told_to(process: Process):
    """In mid-job, and in silence: the client gets a sentence. Told twice: tests/page/test_reload.py."""
    request = {"prompt": "x", "steps": 1000, "width": 256, "height": 256}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(process.ask, "/sdapi/v1/txt2img", request)
        while not json.loads(process.ask("/sdapi/v1/progress")[1])["current_task"]:
            assert not answer.done(), answer.result()
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(300) in (0, 130)
        status, told = answer.result()
        assert status == 200 or "shutting down" in told.decode()
    process.stopped_in_silence()


def test_a_checkpoint_that_is_not_there_ends_in_one_sentence(tmp_path: Path):
    """Before anything large is imported. Files that cannot be read: tests/standalone/host/test_host.py."""
    done = serve_once("--port", str(free_port()), "--checkpoint", str(tmp_path / "missing.safetensors"), tmp_path)
    assert done.returncode == 1
    assert "There is no checkpoint named missing.safetensors" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert str(tmp_path) not in done.stderr
