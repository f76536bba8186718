"""The error that ends a command in one sentence, and what pip's complaints mean."""

from __future__ import annotations

import platform
import re
import sys


class SetupError(Exception):
    """The set-up cannot go on. The message is what the user reads in the last line."""


NO_VENV = (
    "This Python has no venv module. On Debian and Ubuntu it is a package of its own: "
    "sudo apt install python{0}.{1}-venv, then start again."
)
DISK_FULL = (
    "The disk is full. Make room (about {need:.0f} GB are needed in all) and start again: it goes on where it stopped."
)
NO_NETWORK = (
    "The packages cannot be downloaded: there is no connection to the package index. "
    "Check the network (and the proxy, if there is one) and start again: it goes on where it stopped."
)
NOT_WRITABLE = "The folder of the pack cannot be written to. Move it to a place where you may write and start again."
WRONG_HASH = (
    "A downloaded package is not the file that this version was tested with: its checksum differs. Start again; "
    "if it happens again, look at where pip takes its packages from (mirror, proxy)."
)
NO_BUILD = "The package index has no {what} for Python {version} on {system}. Another Python from 3.10 to 3.12 may do."

# What pip and the operating systems say, most telling first: a full disk also shows as a broken download.
_SIGNS: tuple[tuple[str, str], ...] = (
    (r"No space left on device|Errno 28\b|ENOSPC|There is not enough space on the disk|Disk quota exceeded", "disk"),
    (r"Permission denied|Errno 13\b|Access is denied|Read-only file system", "write"),
    (r"DO NOT MATCH THE HASHES", "hash"),
    (
        r"Temporary failure in name resolution|Name or service not known|nodename nor servname|getaddrinfo failed"
        r"|NewConnectionError|ConnectTimeout|Network is unreachable|Connection refused|No route to host"
        r"|Could not fetch URL|ProxyError|Max retries exceeded|ReadTimeout|Connection reset by peer"
        r"|Connection broken|RemoteDisconnected|SSLError|CERTIFICATE_VERIFY_FAILED|Retrying \(Retry",
        "network",
    ),
    (r"No matching distribution found|Could not find a version that satisfies", "build"),
)


def explain(output: str, need_gb: float = 3.0) -> str:
    """One sentence for what pip printed before it gave up.

    `output` is the end of its output, `need_gb` the room that the whole installation takes.
    """
    kind = next((kind for pattern, kind in _SIGNS if re.search(pattern, output, re.IGNORECASE)), "")
    if kind == "disk":
        return DISK_FULL.format(need=need_gb)
    if kind == "write":
        return NOT_WRITABLE
    if kind == "hash":
        return WRONG_HASH
    if kind == "network":
        return NO_NETWORK
    if kind == "build":
        found = re.search(r"(?:No matching distribution found for|satisfies the requirement) ([^\s(]+)", output)
        what = found.group(1) if found else "package that is needed"
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return NO_BUILD.format(what=what, version=version, system=f"{platform.system()} {platform.machine()}")
    last = next((line for line in reversed(output.splitlines()) if line.strip().lower().startswith("error")), "")
    reason = f" It said: {last.strip()}" if last else ""
    return f"pip could not install the packages; what it printed is in setup.log in the folder .venv.{reason}"


def no_venv() -> str:
    """The sentence for a Python without venv or ensurepip."""
    return NO_VENV.format(*sys.version_info[:2])
