"""Styles: a file in the WebUI's format, their texts in a job's prompts, and prompts of infotexts without them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.errors import UserError
from standalone.host.styles import StyleDatabase

TEXTS = st.sampled_from(["", "anime", "{prompt}, in blue", "a photo of {prompt}", "{prompt} {prompt}", " big , red "])
PROMPTS = st.text(alphabet="a ,{}", max_size=12) | st.sampled_from(["a cat", "a photo of a cat", "cat, anime"])


def database(folder: Path, text: str | bytes) -> StyleDatabase:
    path = folder / "styles.csv"
    path.write_bytes(text.encode("utf-8-sig") if isinstance(text, str) else text)
    return StyleDatabase([path])


def test_the_webuis_file_is_read_and_written(tmp_path: Path):
    styles = database(
        tmp_path,
        'name,prompt,negative_prompt\r\n# mine,,\r\nphoto,"a photo of {prompt}, sharp",blurry\r\nshort,ink\r\n\r\n',
    )
    assert list(styles.styles) == ["photo", "short"]
    assert styles.apply_styles_to_prompt("a cat", ["Photo", "short", "none"]) == "a photo of a cat, sharp, ink"
    assert styles.apply_negative_styles_to_prompt("", ["photo"]) == "blurry"
    assert styles.keep(' in "red" ', "red,\nvery", "") == 'in "red"'
    assert styles.drop("short")
    assert not styles.drop("short")
    data = (tmp_path / "styles.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfname,prompt,negative_prompt\r\n# mine,,\r\n")
    rows = list(csv.DictReader(data.decode("utf-8-sig").splitlines(keepends=True)))
    assert rows[1:] == [
        {"name": "photo", "prompt": "a photo of {prompt}, sharp", "negative_prompt": "blurry"},
        {"name": 'in "red"', "prompt": "red,\nvery", "negative_prompt": ""},
    ]


def test_the_first_format_and_styles_of_another_program_are_there(tmp_path: Path):
    styles = database(tmp_path, "name,text\nold,ink\n")
    assert styles.apply_styles_to_prompt("a cat", ["old"]) == "a cat, ink"
    database(tmp_path, "name,prompt,negative_prompt\nother program,x,y\n")
    styles.keep("mine", "z", "")
    assert list(StyleDatabase([tmp_path / "styles.csv"]).styles) == ["other program", "mine"]


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"\xff\xfe\x00", "UTF-8"), (b"a,b\n1,2", "first line"), (b'name,prompt\n"' + b"a" * 200_000, "field larger")],
)
def test_a_file_that_cannot_be_read_is_not_written_over(tmp_path: Path, data: bytes, told: str):
    styles = database(tmp_path, data)
    assert styles.styles == {}
    with pytest.raises(UserError, match=told):
        styles.keep("mine", "a", "")
    assert (tmp_path / "styles.csv").read_bytes() == data


@pytest.mark.parametrize(
    ("name", "prompt", "told"),
    [("", "a", "name"), ("  ", "a", "name"), ("#1", "a", "#"), ("a\0", "a", "invisible"), ("empty", " ", "needs")],
)
def test_a_style_needs_a_name_and_a_text(tmp_path: Path, name: str, prompt: str, told: str):
    with pytest.raises(UserError, match=told):
        StyleDatabase([tmp_path / "styles.csv"]).keep(name, prompt, "")
    assert not (tmp_path / "styles.csv").exists()


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4), PROMPTS, PROMPTS, st.lists(st.integers(0, 3), max_size=3))
def test_styles_found_in_prompts_give_exactly_these_prompts(texts: Any, prompt: str, negative: str, chosen: list[int]):
    styles = StyleDatabase()
    for number, (text, other) in enumerate(texts):
        if text or other:
            styles.keep(str(number), text, other)
    used = [str(number) for number in dict.fromkeys(chosen)]
    made = styles.apply_styles_to_prompt(prompt, used), styles.apply_negative_styles_to_prompt(negative, used)
    found, *plain = styles.extract_styles_from_prompt(*made)
    again = styles.apply_styles_to_prompt(plain[0], found), styles.apply_negative_styles_to_prompt(plain[1], found)
    assert again == made


def test_a_job_has_the_styles_texts_and_its_infotext_names_them(sd1: Any):
    from modules import shared
    from modules.infotext_utils import parse_generation_parameters

    shared.prompt_styles.keep("blue", "{prompt} in blue", "red")
    asked = {"prompt": "a circle", "negative_prompt": "", "styles": ["BLUE"], "enable_hr": True, "hr_prompt": "a cross"}
    info = sd1.generate(**asked, hr_upscaler="Latent", hr_scale=1.5).info
    assert info.startswith("a circle in blue\nNegative prompt: red\nSteps: 3")
    assert "Hires prompt: a cross in blue" in info
    keys = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt", "Styles array")
    found = parse_generation_parameters(info)
    assert [found[key] for key in keys] == ["a circle", "", "a cross", "", ["blue"]]
    shared.opts.infotext_styles = "Ignore"
    found = parse_generation_parameters(info)
    assert [found.get(key) for key in keys] == ["a circle in blue", "red", "a cross in blue", "", None]
    shared.prompt_styles.drop("blue")
