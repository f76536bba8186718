"""What README and docs point to is there: files, headings, and commands that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from standalone.setup.options import VERBS, parse

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*/README.md")])


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The headings' names in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{target} is missing"
        assert not anchor or anchor in anchors(linked), f"{target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_run_py_takes(page: Path) -> None:
    for line in re.findall(r"python run\.py ([^`\n#]*)", text_of(page)):
        words = [word for word in shlex.split(line.rstrip(" .,;:)")) if word != "..."]
        if "--help" in words or words in [[verb] for verb in VERBS]:
            continue
        assert parse(words).verb in VERBS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_is_run_exists(page: Path) -> None:
    for module in re.findall(r"python -m ((?:standalone|tests|benchmarks)[\w.]+)", text_of(page)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for test in re.findall(r"\b(tests/[\w/]+\.py)\b", text_of(page)):
        assert (ROOT / test).exists(), test
