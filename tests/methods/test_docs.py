"""The docs' tables of controls are those of the methods. `python -m tests.methods.test_docs` writes them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
METHODS = {"cascade", "fabric", "image_cfg", "pix2pix_zero", "guiders", "nag"}
SECTION = re.compile(r"(?<=<!-- controls: )(\w+)( -->\n).*?(?=<!-- end of controls -->)", re.DOTALL)


def _filled(found: re.Match[str]) -> str:
    table = importlib.import_module(f"lib_methods.{found[1]}.settings").CONTROLS
    return f"{found[1]}{found[2]}{table.markdown()}\n\n"


def update(text: str) -> str:
    return SECTION.sub(_filled, text)


def test_every_method_has_a_table_and_none_is_out_of_date() -> None:
    seen = set()
    for file in sorted(DOCS.glob("*.md")):
        text = file.read_text(encoding="utf-8")
        assert update(text) == text, f"{file.name}: run python -m tests.methods.test_docs"
        seen |= {name for name, _ in SECTION.findall(text)}
    assert seen == METHODS


if __name__ == "__main__":
    for file in DOCS.glob("*.md"):
        file.write_text(update(file.read_text(encoding="utf-8")), encoding="utf-8")
