"""install.py only looks: it says what is missing in one sentence, and never stops the WebUI's start."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

INSTALL = Path(__file__).resolve().parents[2] / "install.py"


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", INSTALL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_silent_where_all_is_well() -> None:
    done = subprocess.run([sys.executable, str(INSTALL)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_names_what_is_missing(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "NEEDED", {"numpy": "numpy", "no_such_module": "the-package", "a.b.c": "another"})
    (sentence,) = install.problems()
    assert "the-package, another" in sentence
    assert sentence.endswith(".")


def test_it_changes_no_package() -> None:
    text = INSTALL.read_text(encoding="utf-8")
    assert "subprocess" not in text
    assert "pip" not in text
