"""The verb serve: the page and the API."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
import time
import webbrowser
from pathlib import Path
from typing import Any

from lib_methods.errors import UserError
from lib_methods.webui.door import WRITE_ACCOUNTS, parse_accounts, read_accounts
from standalone import ROOT
from standalone.setup.environment import LOGINS, stay_local

from . import arguments

SHIPPED = ROOT / "models" / "shapes" / "shapes.safetensors"


def say(text: str) -> None:
    print(text, flush=True)


def data_folder(options: argparse.Namespace) -> Path:
    """Where settings, outputs and feedback images go. UserError where nothing can be written."""
    return arguments.writable_folder(Path(options.data_dir or ROOT), "--data-dir")


def find_checkpoint(given: Path | None) -> Path:
    """The checkpoint to load: the one given, the first in a folder of them, or the one that ships. UserError: none."""
    path = arguments.full_path(Path(given), "--checkpoint") if given is not None else SHIPPED
    if path.is_dir() and not (path / "unet" / "config.json").is_file():
        inside = sorted(path.glob("*.safetensors"))
        if not inside:
            raise UserError(f"The folder {path.name} has no .safetensors checkpoint in it.")
        return inside[0]
    if not path.exists():
        raise UserError(f"There is no checkpoint named {path.name}.")
    if path.is_file():
        arguments.existing_file(path, "--checkpoint")
    return path


def port_is_free(address: str, port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def read_logins(options: argparse.Namespace) -> dict[str, Any]:
    """The logins as `build_app` takes them, from the command line or the environment, where no child process finds
    them afterwards. UserError for those that cannot be read."""
    found: dict[str, Any] = {"gradio_auth_path": options.gradio_auth_path}
    for option, variable in LOGINS.items():
        name = option[2:].replace("-", "_")
        inherited = os.environ.pop(variable, None)
        found[name] = inherited if getattr(options, name) is None else getattr(options, name)
    for name, given in found.items():
        option = f"--{name.replace('_', '-')}"
        try:
            accounts = read_accounts(given) if name == "gradio_auth_path" and given else parse_accounts(given)
        except ValueError as error:
            raise UserError(f"{option}: {error}") from None
        if given is not None and not accounts:
            raise UserError(f"{option}: There is no account in it. {WRITE_ACCOUNTS}")
    return found


def run(options: argparse.Namespace) -> int:
    """Starts everything and serves until Ctrl+C."""
    address = "0.0.0.0" if options.listen else "127.0.0.1"
    started = time.monotonic()
    try:
        # what needs no library first: an answer at once when it is no
        data_dir = data_folder(options)
        stay_local(data_dir)
        logins = read_logins(options)
        checkpoint = find_checkpoint(options.checkpoint)
        if not port_is_free(address, options.port):
            raise UserError(
                f"Port {options.port} is in use by another program. Choose another one: --port {options.port + 1}"
            )
        say("Starting ...")
        from standalone import host as standalone_host

        host = standalone_host.start(
            checkpoint=checkpoint, data_dir=data_dir, progress=say, as_chosen=options.checkpoint is None
        )
        from standalone.page.server import build_app

        app = build_app(host, local_only=not options.listen, allowed_hosts=options.allowed_hosts, **logins)
    except OSError as error:
        from standalone.host.jobs.queue import explain

        raise UserError(explain(error)) from None
    import uvicorn

    url = f"http://127.0.0.1:{options.port}"

    class Server(uvicorn.Server):
        """Ends the jobs first when it is asked to stop, so that their requests are answered; and ends in silence."""

        def handle_exit(self, sig: int, frame: object) -> None:
            self.force_exit, self.should_exit = self.should_exit, True  # the second time it waits for nothing
            host.stop()
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut off now is no news

    server = Server(
        uvicorn.Config(app, host=address, port=options.port, log_level="warning", timeout_graceful_shutdown=3)
    )
    threading.Thread(target=_announce, args=(server, url, options, logins, started), daemon=True).start()
    try:
        try:
            server.run()
        finally:
            if not server.force_exit:
                host.close()
    except KeyboardInterrupt:
        server.force_exit = True
    say("Stopped.")
    # asked twice, or a step that takes too long: Python cannot end a thread that computes, and would abort
    if server.force_exit or not host.queue.has_ended:
        sys.stdout.flush()
        os._exit(130)
    return 0


def _announce(server: object, url: str, options: argparse.Namespace, logins: dict[str, Any], started: float) -> None:
    while not getattr(server, "started", False):
        if getattr(server, "should_exit", False):
            return
        time.sleep(0.05)
    say(f"The page is at {url} (started in {time.monotonic() - started:.1f} s). Ctrl+C stops it.")
    if options.listen:
        say(f"Other machines can reach it{_what_is_open(logins)}.")
    if not options.no_browser:
        webbrowser.open(url)


def _what_is_open(logins: dict[str, Any]) -> str:
    if logins["gradio_auth"] or logins["gradio_auth_path"]:
        return ", with a login"
    return ", and the page asks for no login" if logins["api_auth"] else ", and there is no login"
