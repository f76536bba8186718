"""Text of strangers costs time in proportion to its length, whichever parser gets it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib_methods.checkpoints.ldm_names import read_yaml
from lib_methods.errors import CheckpointError, UserError
from lib_methods.files import MAX_JSON_BYTES, read_json
from standalone.engine.prompts import Timeline, parse_prompt_attention, prompt_schedule

LENGTH, SECONDS = 50_000, 4.0
"""Quadratic work on so many letters takes half a minute or more, linear work a fraction of a second."""
DEEP = 250  # schedules nest so deep at most; deeper ones are text


def schedule(prompt: str) -> list[list[Any]]:
    return prompt_schedule(prompt, Timeline(20))


def tags(prompt: str) -> Any:
    from modules.extra_networks import parse_prompt

    return parse_prompt(prompt)


def parts(prompt: str) -> Any:
    from modules.prompt_parser import get_multicond_prompt_list

    return get_multicond_prompt_list([prompt])


UNITS = (
    *(
        "a",
        " ",
        "(",
        "[",
        ")",
        "]",
        "(a",
        "[a",
        "((",
        "(a)",
        "[a]",
        "\\(",
        "\\",
        ":",
        ": ",
        ":1",
        "1",
        "a:",
        "[:",
        "(:",
    ),
    *("|", "[|", "[a|b", "BREAK", "BREAK ", " BREAK", "AND ", " AND ", "a AND b:1", "\n", "[a:b:", "[[a:b:0.5]:c"),
    *("<", "<a:", "<lora:", "<a:b>", "<lora:a:1>"),
)
WHOLE = {
    "digits": lambda n: "(a:" + "1" * n,
    "digits after a dot": lambda n: "(a:." + "1" * n + "x)",
    "weight of AND": lambda n: "a AND b:" + "1" * n + "x",
    "blanks before a weight": lambda n: "a" + " " * n + ":1 x",
    "closed brackets": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "closed squares": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "weights in weights": lambda n: "(a" * (n // 8) + ":1.1)" * (n // 8),
    "long text deep inside": lambda n: "[" * DEEP + "(a" * (n // 2) + ":1]" * DEEP,
    "schedules in schedules": lambda n: "[a:" * DEEP + "(b|" * (n // 3) + ":5]" * DEEP,
    "one after another": lambda n: "[a:b:5]" * (n // 7),
}


@pytest.mark.parametrize("parser", [parse_prompt_attention, schedule, tags, parts])
@pytest.mark.parametrize("make", [*UNITS, *WHOLE])
def test_prompts_are_parsed_in_linear_time(sd1_modules: None, parser: Callable[[str], Any], make: str) -> None:
    prompt = WHOLE[make](LENGTH) if make in WHOLE else make * (LENGTH // len(make))
    started = time.process_time()
    with contextlib.suppress(UserError):  # a weight may be too large
        parser(prompt)
    assert time.process_time() - started < SECONDS


@pytest.fixture(scope="module")
def sd1_modules() -> None:
    """The host's modules by the WebUI's names."""
    from standalone import host  # noqa: F401


YAMLS = {
    "squares": "[" * 50_000,
    "curlies": "a: " + "{a: " * 15_000,
    "dashes": "- " * 30_000,
    "questions": "? " * 30_000,
    "too large": "a: b\n" * 20_000,
    "aliases": "a: &a [x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [*{chr(97 + i)}, *{chr(97 + i)}]}}\n" for i in range(20)),
    "a long number": "a: " + "1" * 60_000,
    "a bad date": "a: 2001-99-99",
    "a tag": "a: !!python/object/apply:os.system [true]",
    "bytes": "a: \udcff",
    "a list": "- a",
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_hostile_yaml_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.yaml").write_bytes(YAMLS[name].encode(errors="surrogateescape"))
    started = time.process_time()
    with pytest.raises(CheckpointError, match="model.yaml, the configuration beside the checkpoint"):
        read_yaml(tmp_path / "model.safetensors")
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"{", b"1" * 5_000, b" " * (MAX_JSON_BYTES + 1)])
def test_json_that_cannot_be_read_is_one_kind_of_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")
