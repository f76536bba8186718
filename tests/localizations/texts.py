"""The fixed texts of the pack's own controls, read from the tables and from the source: what a localisation file has to
translate."""

from __future__ import annotations

import ast
import html
import importlib
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from lib_methods.webui.controls import controls_of

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "lib_methods.fabric.settings": "FabricSettings",
    "lib_methods.guiders.settings": "GuidanceSettings",
    "lib_methods.image_cfg.settings": "ImageCfgSettings",
    "lib_methods.nag.settings": "NagSettings",
    "lib_methods.pix2pix_zero.settings": "Pix2PixZeroSettings",
    "lib_methods.cascade.settings": "CascadeSettings",
    "lib_methods.dreambooth.settings": "TrainingSettings",
}
PAGES = (
    *("lib_methods/webui/widgets.py", "lib_methods/webui/method_script.py", "lib_methods/jobs/page.py"),
    *("lib_methods/fabric/page.py", "lib_methods/guiders/page.py", "lib_methods/pix2pix_zero/page.py"),
    *("lib_methods/cascade/tab/page.py", "lib_methods/dreambooth/tab/page.py"),
    *("scripts/cascade.py", "scripts/dreambooth.py", "scripts/fabric.py", "scripts/guidance.py"),
    *("scripts/image_cfg.py", "scripts/nag.py", "scripts/pix2pix_zero.py"),
)
HIDDEN = ("hidden_textbox", "hidden_button")
_NAMED = {"label", "info", "placeholder"}
_SHOWING = {
    **{"Button": (0,), "accordion": (0,), "Accordion": (0,), "_drop": (0,), "status_html": (0,), "aside_html": (0,)},
    **{"_files": (1,), "image": (1,), "beside": (1,), "_text": (1, 2)},
}
"""The arguments by place in which functions of the pages get texts."""
_TOLD = {"label", "told"}
"""Variables that a page gives to its components."""
_IN_HTML = re.compile(r'>([^<>]+)<|(?:title|aria-label)="([^"]+)"')
_IN_JS = re.compile(
    r"(?:\.textContent|\.title|\b(?:title|text|add|remove):|const [A-Z]+)\s*=?\s*"
    r"""\"([^"\n]+)"(?=[,;\n}])|\bsay\("([^"\n]+)"\)"""
)


def _folded(node: ast.expr | None) -> set[str]:
    """A constant text, or both of a choice; none for anything that is put together."""
    if isinstance(node, ast.IfExp):
        return _folded(node.body) | _folded(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _constants(tree: ast.Module) -> dict[str, set[str]]:
    """The module's constants that are texts."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _folded(node.value)
    return found


def _in_call(call: ast.Call, constants: dict[str, set[str]]) -> Iterator[str]:
    name = _name(call)
    if name in HIDDEN or any("HIDDEN" in ast.unparse(keyword.value) for keyword in call.keywords):
        return
    given = [keyword.value for keyword in call.keywords if keyword.arg in _NAMED or name == "buttons"]
    given += [call.args[place] for place in _SHOWING.get(name, ()) if place < len(call.args)]
    for node in given:
        yield from constants.get(node.id, ()) if isinstance(node, ast.Name) else _folded(node)


def in_python(file: str) -> set[str]:
    """The texts of a page's file: labels, help, buttons, and those in templates of HTML."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    constants, found = _constants(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= set(_in_call(node, constants))
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in _TOLD:
            found |= _folded(node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "<" in node.value:
            found |= set(in_html(node.value))
    return {text for text in found if text.strip()}


def in_html(text: str) -> Iterator[str]:
    """The fixed texts, titles and names in a template of HTML."""
    for parts in _IN_HTML.findall(text):
        yield from (html.unescape(part.strip()) for part in parts if "{" not in part)


def in_javascript(file: Path) -> set[str]:
    """The texts that a script puts on the page."""
    return {text for parts in _IN_JS.findall(file.read_text(encoding="utf-8")) for text in parts if text}


def in_table(module: str, names: Collection[str] = ()) -> set[str]:
    """The texts of a method's controls. names: of those on the page, where that is not all of them."""
    found: set[str] = set()
    for control in controls_of(getattr(importlib.import_module(module), SETTINGS[module])):
        if control.images is not None or (names and control.name not in names):
            continue
        found |= {control.label, control.help, control.example}
        if control.kind == "radio":  # a dropdown shows its value in an input, which is never translated
            found |= set(control.choices)
    return found - {""}


@cache
def all_texts() -> frozenset[str]:
    """Every fixed text of the pack's controls."""
    from lib_methods.dreambooth.tab.page import CONTROLS

    found: set[str] = set()
    for module in SETTINGS:
        found |= in_table(module, CONTROLS if module == "lib_methods.dreambooth.settings" else ())
    for file in PAGES:
        found |= in_python(file)
    for script in (ROOT / "javascript").glob("*.js"):
        found |= in_javascript(script)
    return frozenset(found)
