"""The worked example of docs/add_a_method.md runs, and a control that is declared once is found in all seven places."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lib_methods
from lib_methods.checks import SettingsError
from tests.shared import jobs
from tests.shared.jobs import REPO, loaded, same
from tests.standalone.conftest import Running, checkpoints, start_host

__all__ = ["checkpoints", "start_host"]
BLOCK = re.compile(r"```python\n# (\S+)\n(.*?)```", re.DOTALL)
ADDED = '    amount: float = slider(1.0, 0, 1, 0.1, "Amount", "how much", axis="Amount", old=("interval_amount",))\n'


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An extension with the example's files, to whose settings one more control was added."""
    root = tmp_path_factory.mktemp("example")
    for name, code in BLOCK.findall((REPO / "docs" / "add_a_method.md").read_text(encoding="utf-8")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        code = code.replace("\n    def __post_init__", f"{ADDED}\n    def __post_init__", 1)
        (root / name).write_text(code, encoding="utf-8")
    lib_methods.__path__.append(str(root / "lib_methods"))
    yield root
    lib_methods.__path__.remove(str(root / "lib_methods"))
    for name in [name for name in sys.modules if name.startswith("lib_methods.interval")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path], example: Path) -> Running:
    return start_host(checkpoints("sd1"), extension_dirs=[example])


@pytest.fixture
def script(host: Running) -> ModuleType:
    return loaded("interval.py")


def run(host: Running, *arguments: Any, **more: Any) -> Any:
    return jobs.run(host, {"guidance interval": list(arguments)} if arguments else None, steps=5, **more)


def test_the_example_is_short() -> None:
    text = (REPO / "docs" / "add_a_method.md").read_text(encoding="utf-8")
    lines = [line for _, code in BLOCK.findall(text) for line in code.splitlines() if line.strip()]
    assert len(lines) <= 50


def test_the_example_changes_the_image_and_says_so(host: Running) -> None:
    off, on = run(host), run(host, True)
    assert not same(off, on)
    assert "Guidance interval start: 0.2" in on.info
    assert "Guidance interval" not in off.info
    assert same(off, run(host, False))
    assert "All steps lie in the interval." in run(host, {"start": 0, "end": 1}).info


def test_a_control_that_is_declared_once_is_found_in_all_seven_places(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    table, method = script.CONTROLS, script.IntervalScript()
    method.is_img2img = False
    with gr.Blocks():
        controls = dict(zip(table.names, method.ui(False), strict=True))
    amount = controls["amount"]
    assert (amount.label, amount.value, amount.minimum, amount.maximum) == ("Amount", 1.0, 0, 1), "on the page"
    with pytest.raises(SettingsError, match="Amount must be between 0 and 1"):  # checked
        table.settings(amount=2)
    named = table.request([{"amount": 0.5}])  # in the API
    assert named == table.request([True, None, None, 0.5]) == table.settings(amount=0.5)
    assert table.request([True]).amount == 1.0
    assert jobs.posted(script, table.title, [{"amount": 2}]).status_code == 422
    shown = run(host, {"amount": 0.5}).info  # in the infotext
    assert "Guidance interval amount: 0.5" in shown
    pasted = dict(method.infotext_fields)[amount]  # and out of it
    assert str(pasted) == "Guidance interval amount"
    assert pasted({"Guidance interval amount": "0.5"}) == 0.5
    assert pasted({"Guidance interval start": "0.1"}) == 1.0
    axis = jobs.plot_axes(script, monkeypatch)[-1]  # on the plot
    assert axis.label == "[Guidance interval] Amount"
    job = jobs.run(host, {"guidance interval": [True]}, attributes=_cell(axis, 0.3), steps=5)
    assert "Guidance interval amount: 0.3" in job.info
    assert "| Amount | `amount` 0 to 1, **1** | how much |" in table.markdown()  # in the docs


def _cell(axis: Any, value: float) -> dict[str, Any]:
    class Cell:
        pass

    cell = Cell()
    axis.apply(cell, value, [value])
    return vars(cell)
