"""`modules` holds the WebUI's names and nothing else, and what is done to them is done to the host."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from standalone import host as standalone_host

standalone_host.import_modules()

from standalone.host import devices, images, shared  # noqa: E402

NAMES = Path(__file__).with_name("webui_names.txt")
MODULES = Path(standalone_host.__file__).resolve().parents[1] / "modules"


def facade_names() -> dict[str, set[str]]:
    """The names of the WebUI's modules (v1.10.1) that the host has: lines "module: name name ...", as facts."""
    lines = NAMES.read_text(encoding="utf-8").splitlines()
    return {module: set(names.split()) for module, names in (line.split(":") for line in lines if line)}


def _module(name: str) -> ModuleType:
    import importlib

    return importlib.import_module(f"modules.{name}")


@pytest.mark.parametrize("file", sorted(MODULES.rglob("[!_]*.py")), ids=lambda file: file.stem)
def test_a_module_has_only_names_of_the_webui(file: Path) -> None:
    name = ".".join(file.relative_to(MODULES).with_suffix("").parts)
    public = {key for key in dir(_module(name)) if not key.startswith("_")}
    assert public == facade_names()[name]
    body = ast.parse(file.read_text(encoding="utf-8")).body
    assert not [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)], "it holds code"


def test_what_an_extension_replaces_is_replaced_in_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    facade: Any = _module("images")
    monkeypatch.setattr(facade, "save_image", len)
    assert images.save_image is len
    monkeypatch.undo()
    assert facade.save_image is images.save_image is not len


def test_what_the_host_changes_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "sd_model", "loaded")
    monkeypatch.setattr(devices, "dtype_vae", "float64")
    assert _module("shared").sd_model == "loaded"
    assert _module("devices").dtype_vae == "float64"
    with pytest.raises(AttributeError, match="nothing"):
        _ = _module("shared").nothing


def test_an_old_name_of_the_infotext_module_is_known() -> None:
    assert (
        _module("generation_parameters_copypaste").parse_generation_parameters("a cat\nSteps: 4, Seed: 1, Size: 64x64")[
            "Steps"
        ]
        == "4"
    )
