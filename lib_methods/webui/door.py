"""Which requests a web server answers, by their head alone: host names, websites, content types and logins.

One set of rules for the pack's routes in every host, and for everything that the standalone host serves.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import ipaddress
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

READING = ("GET", "HEAD", "OPTIONS")
WRONG_HOST = "This server answers only on this machine, as localhost or 127.0.0.1."
OTHER_HOST = "This server does not answer to this host name."
FOREIGN = "Requests from other websites are refused."
NOT_JSON = "The body of the request must be JSON, sent as application/json."
NO_LOGIN = "Incorrect user name or password."
NOT_UPLOADED = "This file was not uploaded here, or no longer exists. Choose it again."
WRITE_ACCOUNTS = "Write accounts as name:password, separated by commas."
_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


def is_json(content_type: str | None) -> bool:
    """Whether a body is read as JSON. One without a type is, as in the WebUI: clients send `data=json.dumps(...)`."""
    return not content_type or _JSON_TYPE.fullmatch(content_type.strip()) is not None


def is_loopback_name(name: str) -> bool:
    """Whether a host name or address, without its port, means this very machine."""
    if name.lower().rstrip(".") == "localhost" or name.lower().endswith(".localhost"):
        return True
    return _is_address(name) and ipaddress.ip_address(name.strip("[]")).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def host_name(host_header: str) -> str:
    """The name in a Host header or in an address without a scheme, lower case, without the port; "" for none."""
    try:
        return (urlsplit(f"//{host_header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_own(origin: str, host_header: str) -> bool:
    """Whether an Origin header, or another full address, names this server as the Host header calls it."""
    try:
        found = urlsplit(origin)
    except ValueError:
        return False
    return found.scheme in ("http", "https") and found.netloc.lower() == host_header.lower()


def parse_accounts(text: str | None) -> tuple[tuple[str, str], ...]:
    """The accounts in "name:password,name:password". Raises ValueError with a sentence that repeats none of it."""
    pairs = [part.strip().partition(":") for part in (text or "").split(",") if part.strip()]
    if not all(name and colon and password for name, colon, password in pairs):
        raise ValueError(WRITE_ACCOUNTS)
    return tuple((name, password) for name, _, password in pairs)


def read_accounts(path: Path) -> tuple[tuple[str, str], ...]:
    """The accounts in a text file, one or several a line. Raises ValueError with a sentence."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"The file of accounts, {path.name}, cannot be read.") from None
    return tuple(account for line in lines for account in parse_accounts(line))


def is_account(accounts: tuple[tuple[str, str], ...], name: str, password: str) -> bool:
    """Whether name and password are one of the accounts. Takes the same time whichever part is wrong."""
    return _matches(accounts, f"{name}:{password}".encode("utf-8", "surrogatepass"))


def _matches(accounts: tuple[tuple[str, str], ...], given: bytes) -> bool:
    digest = hashlib.sha256(given).digest()
    matches = [secrets.compare_digest(digest, hashlib.sha256(known).digest()) for known in _encoded(accounts)]
    return any(matches)


def _encoded(accounts: tuple[tuple[str, str], ...]) -> Iterator[bytes]:
    for name, password in accounts:
        yield f"{name}:{password}".encode("utf-8", "surrogatepass")
        with contextlib.suppress(UnicodeEncodeError):
            yield f"{name}:{password}".encode("latin-1")  # what the package requests sends


@dataclass(frozen=True)
class Door:
    """The rules. `local_only`: the server listens on this machine only, where another name in the Host header means
    DNS rebinding. `hosts`: further names it answers to. `origins`, `origins_regex`: websites that the host lets in.
    `accounts`: who may use the API; empty where no login is needed.
    """

    accounts: tuple[tuple[str, str], ...] = ()
    local_only: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    origins_regex: str | None = None

    @classmethod
    def of_host(cls, options: Any) -> Door:
        """The rules that follow from a host's command line. Raises ValueError for accounts that cannot be read."""

        def given(name: str) -> Any:
            return getattr(options, name, None)

        accounts = parse_accounts(given("api_auth")) or page_accounts(options)
        origins = tuple(text.strip() for text in (given("cors_allow_origins") or "").split(",") if text.strip())
        return cls(
            accounts,
            local_only=not is_reachable(options) and not accounts,  # a rebound name comes without the login
            hosts=tuple(given("allowed_hosts") or ()) + tuple(host_name(text.partition("://")[2]) for text in origins),
            origins=origins,
            origins_regex=given("cors_allow_origins_regex"),
        )

    def refusal(self, method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Status and sentence for a request that must not be answered. `headers` has lower-case names."""
        host = headers.get("host", "")
        name = host_name(host)
        is_known = is_loopback_name(name) or name in self.hosts
        if not is_known and (self.local_only or (self.hosts and not _is_address(name))):
            return 403, WRONG_HOST if self.local_only else OTHER_HOST
        if not self._lets_in(method, headers, host):
            return 403, FOREIGN
        if method not in READING and not is_json(headers.get("content-type")):
            return 422, NOT_JSON
        return None

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request has a login of HTTP Basic that is one of the accounts, or none is needed."""
        if not self.accounts:
            return True
        kind, _, text = headers.get("authorization", "").partition(" ")
        try:
            return kind.lower() == "basic" and _matches(self.accounts, base64.b64decode(text.strip(), validate=True))
        except (binascii.Error, ValueError):
            return False

    def _lets_in(self, method: str, headers: Mapping[str, str], host: str) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and not is_own(origin, host):
            named = "*" in self.origins or origin in self.origins
            return named or (self.origins_regex is not None and bool(re.fullmatch(self.origins_regex, origin)))
        opened = headers.get("sec-fetch-mode") == "navigate" and method in READING
        return origin is not None or site != "cross-site" or opened


def is_reachable(options: Any) -> bool:
    """Whether a host's command line lets other machines in."""
    return any(getattr(options, name, None) for name in ("listen", "share", "ngrok", "server_name", "subpath"))


def page_accounts(options: Any) -> tuple[tuple[str, str], ...]:
    """The accounts of a host's page: --gradio-auth and --gradio-auth-path. Raises ValueError."""
    path = getattr(options, "gradio_auth_path", None)
    return parse_accounts(getattr(options, "gradio_auth", None)) + (read_accounts(Path(path)) if path else ())


def guarded_router(door: Door) -> Any:
    """A FastAPI router whose routes ask `door` before they read a body."""
    from fastapi import APIRouter, HTTPException, Request
    from fastapi.routing import APIRoute

    class Guarded(APIRoute):
        def get_route_handler(self) -> Any:
            handle = super().get_route_handler()

            async def behind_the_door(request: Request) -> Any:
                refused = door.refusal(request.method, request.headers)
                if refused is not None:
                    raise HTTPException(*refused)
                if not door.knows(request.headers):
                    raise HTTPException(401, NO_LOGIN, {"WWW-Authenticate": "Basic"})
                return await handle(request)

            return behind_the_door

    return APIRouter(route_class=Guarded)
