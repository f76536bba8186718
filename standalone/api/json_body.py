"""The door for JSON bodies: what comes through has text that can be encoded, finite numbers and little nesting."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

DEEPEST = 100
_JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)
# half a character beyond U+FFFF: what is left when text was cut inside an emoji
_HALF = re.compile(
    r"(?P<before>(?<!\\)(?:\\\\)*)"
    r"(?:(?P<pair>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


class BadBody(Exception):
    """The body is refused; the text is a sentence."""


def is_json(content_type: str | None) -> bool:
    """Whether a body is read as JSON. One without a type is, as in the WebUI: clients send `data=json.dumps(...)`."""
    return content_type is None or _JSON_TYPE.fullmatch(content_type.strip()) is not None


def _no_constant(name: str) -> NoReturn:
    raise BadBody(f"The request has {name} in it, which is not a number.")


def checked(body: bytes) -> bytes:
    """`body` as UTF-8, with the replacement character for text that cannot be encoded. Raises BadBody.

    Refuses what is not JSON, NaN, infinite numbers, and more than 100 levels of nesting.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    if "\\u" in text:
        text = _HALF.sub(lambda found: found[0] if found["pair"] else found["before"] + "\\ufffd", text)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise BadBody(f"The request is nested more than {DEEPEST} levels deep.") from None
    except ValueError:
        raise BadBody("The request is not valid JSON.") from None
    _check(value)
    return text.encode()


def _check(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise BadBody("The request has a number in it that is too large.")
        if not inner:
            return
        level = inner
    raise BadBody(f"The request is nested more than {DEEPEST} levels deep.")
