"""The door for JSON bodies: what comes through has text that can be encoded, finite numbers and little nesting."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

DEEPEST = 100
# half a character beyond U+FFFF: what is left when text was cut inside an emoji
_HALF = re.compile(
    r"(?P<before>(?<!\\)(?:\\\\)*)"
    r"(?:(?P<pair>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


class BadBody(Exception):
    """The body is refused; the text is a sentence."""


def _no_constant(name: str) -> NoReturn:
    raise BadBody(f"The request has {name} in it, which is not a number.")


def checked(body: bytes, check_object: Callable[[Mapping[str, Any]], None] | None = None) -> bytes:
    """`body` as UTF-8, with the replacement character for text that cannot be encoded. Raises BadBody.

    Refuses what is not JSON, NaN, infinite numbers, and more than 100 levels of nesting. `check_object` is called with
    every object in it, and raises BadBody.
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
    _check(value, check_object or (lambda found: None))
    return text.encode()


def _check(value: Any, check_object: Callable[[Mapping[str, Any]], None]) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                check_object(item)
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise BadBody("The request has a number in it that is too large.")
        if not inner:
            return
        level = inner
    raise BadBody(f"The request is nested more than {DEEPEST} levels deep.")
