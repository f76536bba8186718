"""The standalone host's `modules` can be called as the WebUI's are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from standalone.host import import_modules
from tests.standalone.host.test_facade import facade_names
from tests.webui.host.signatures import Imported, Package, Signature, compare, differences, function_signature, missing
from tests.webui.server import REPO

OURS = REPO / "standalone" / "modules"

# what extensions subclass, receive or call; each must be there in full
COMPLETE = [
    ("scripts", "Script"),
    ("scripts", "PostprocessImageArgs"),
    ("scripts", "PostprocessBatchListArgs"),
    ("script_callbacks", "CFGDenoiserParams"),
    ("script_callbacks", "CFGDenoisedParams"),
    ("script_callbacks", "AfterCFGCallbackParams"),
    ("script_callbacks", "ImageSaveParams"),
    ("script_callbacks", "UiTrainTabParams"),
    ("script_callbacks", "on_*"),
    ("script_callbacks", "remove_*"),
]


@pytest.fixture(scope="module")
def packages(webui_checkout: Path) -> tuple[Package, Package]:
    """The real `modules` and ours."""
    import_modules()
    return Package(webui_checkout / "modules"), Imported(OURS)


def test_every_name_of_the_facade_is_one_of_the_webuis(packages: tuple[Package, Package]) -> None:
    """The list that `tests/standalone/host/test_facade.py` compares with is true."""
    real, _ = packages
    unknown = [f"{module}.{name}" for module, names in facade_names().items() for name in names - real.names(module)]
    assert not unknown


def test_every_shared_name_takes_the_same_arguments(packages: tuple[Package, Package]) -> None:
    found = differences(*packages)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("module", "name"), COMPLETE, ids=lambda value: str(value))
def test_nothing_is_missing(packages: tuple[Package, Package], module: str, name: str) -> None:
    found = missing(*packages, module, name)
    assert not found, f"modules.{module}.{name} lacks {', '.join(found)}"


def test_the_reader_sees_what_it_compares(webui_checkout: Path) -> None:
    """A few facts about the real source, so that an empty comparison cannot pass as a good one."""
    real = Package(webui_checkout / "modules")
    scripts, processing = real.module("scripts"), real.module("processing")
    assert scripts.classes["Script"].methods["process_batch"] == Signature(
        ("p",), var_positional=True, var_keyword=True
    )
    assert "on_cfg_denoiser" in real.module("script_callbacks").functions
    constructor = processing.classes["StableDiffusionProcessingTxt2Img"].methods["__init__"]
    assert constructor.positional[0] == "sd_model"
    assert "enable_hr" in constructor.positional
    assert len(differences(real, real)) == 0


def _signature(source: str) -> Signature:
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    return function_signature(node, method=False)


@pytest.mark.parametrize(
    ("real", "ours", "word"),
    [
        ("def f(a, b=1): ...", "def f(a, b=1): ...", ""),
        ("def f(a, b=1): ...", "def f(a, b=2, c=3, *, d=4): ...", ""),
        ("def f(a, b=1): ...", "def f(*args, **kwargs): ...", ""),
        ("def f(a, b=1): ...", "def f(b, a=1): ...", "takes"),
        ("def f(a, b=1): ...", "def f(a): ...", "lacks b"),
        ("def f(a, b=1): ...", "def f(a, b): ...", "requires b"),
        ("def f(a): ...", "def f(a, c): ...", "requires c"),
        ("def f(a, *, k=1): ...", "def f(a): ...", "keyword k"),
        ("def f(a, *args): ...", "def f(a): ...", "*args"),
        ("def f(a, **kw): ...", "def f(a): ...", "**kwargs"),
    ],
)
def test_the_comparison_knows_a_difference(real: str, ours: str, word: str) -> None:
    problems = "; ".join(compare(_signature(real), _signature(ours)))
    assert (word in problems) if word else not problems
