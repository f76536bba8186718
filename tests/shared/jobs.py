"""Jobs on the standalone host with the pack's scripts, what is seen of them, and what a script adds to the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lib_methods.webui.method_script import MethodScript
from tests.standalone.conftest import Running

REPO = Path(__file__).resolve().parents[2]
"""The pack, as an extension of the host."""


def loaded(file_name: str) -> ModuleType:
    """A script's module as the running host has loaded it."""
    from modules import scripts

    module: Any = next(data.module for data in scripts.scripts_data if Path(data.path).name == file_name)
    return module


def method_of(script: ModuleType) -> Any:
    """The class of the method in a script's module."""
    classes = [value for value in vars(script).values() if isinstance(value, type)]
    return next(value for value in classes if issubclass(value, MethodScript) and value is not MethodScript)


def run(
    host: Running,
    script_args: dict[str, list[Any]] | None = None,
    *,
    api: bool = False,
    attributes: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """A txt2img job of three steps; the Processed.

    api: whether it comes from the REST API; else it is a page's.
    attributes: what is set on the job before it runs, as the X/Y/Z plot does it.
    """
    from modules.processing import process_images

    with closing(host.make(script_args=script_args, **fields)) as p:
        p.is_api = api
        for name, value in (attributes or {}).items():
            setattr(p, name, value)
        return host.host.queue.run(process_images, p)


def pixels(processed: Any) -> np.ndarray:
    """The images without their grid, (images, height, width, 3)."""
    return np.stack([np.asarray(image) for image in processed.images[processed.index_of_first_image :]])


def same(one: Any, other: Any) -> bool:
    """Whether two jobs gave the same images, bit for bit. Jobs that gave another number of images are an error."""
    return all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(other), strict=True))


def left_on_the_model() -> list[str]:
    """What a method has left on the loaded model: layers with hooks, or with another `forward`."""
    from modules import shared

    unet = shared.sd_model.model.diffusion_model
    hooks = [name for name, module in unet.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    return hooks + [name for name, module in unet.named_modules() if "forward" in module.__dict__]


def check(host: Running, kind: str, job: dict[str, Any], script_args: dict[str, list[Any]], title: str) -> None:
    """A method changes every image, a repeat is identical, and afterwards the host is as it was.

    title: with which its fields in the infotext begin.
    """
    before = host.generate(kind, **job)
    made = host.generate(kind, script_args=script_args, **job)
    assert f"{title} " in made.infotexts[0]
    assert f"{title} error" not in made.infotexts[0]
    assert not any(np.array_equal(a, b) for a, b in zip(pixels(before), pixels(made), strict=True))
    assert same(made, host.generate(kind, script_args=script_args, **job))
    assert same(before, host.generate(kind, **job))
    assert left_on_the_model() == []


def fields_of(processed: Any, title: str) -> dict[str, Any]:
    """The fields of the infotext that carry a method's title."""
    from modules.infotext_utils import parse_generation_parameters

    return {key: text for key, text in parse_generation_parameters(processed.info).items() if title in key}


def plot_axes(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a script adds to the X/Y/Z plot, with `label` and `apply(p, value, values)`; hosts may ask for it twice."""
    from modules import scripts

    def option(label: str, kind: type, apply: Any, confirm: Any, choices: Any = None) -> SimpleNamespace:
        return SimpleNamespace(label=label, kind=kind, apply=apply, confirm=confirm, choices=choices)

    grid = SimpleNamespace(axis_options=[], AxisOption=option)  # all that the plots of the WebUI and its forks share
    entry = SimpleNamespace(path="/somewhere/scripts/xyz_grid.py", module=grid)
    monkeypatch.setattr(scripts, "scripts_data", [*scripts.scripts_data, entry])
    for _ in range(2):
        method_of(script).add_axes()
    return grid.axis_options


def first_values(instance: Any, is_img2img: bool, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the controls of a new script hold at first, by the names of its request; twice, as the WebUI builds them
    again for the API. What is pasted and sent from tab to tab belongs to the same controls."""
    import gradio as gr

    instance.is_img2img = is_img2img
    for _ in range(2):
        with gr.Blocks():
            controls = instance.ui(is_img2img)
        assert [component for component, _ in instance.infotext_fields] == controls
        assert set(instance.paste_field_names) == {str(key) for _, key in instance.infotext_fields}
        yield dict(zip(names, (control.value for control in controls), strict=True))


def posted(script: ModuleType, title: str, arguments: Any, path: str = "/sdapi/v1/txt2img") -> Any:
    """The answer of a REST API that does nothing to a request with these arguments of a script, behind its guard."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    app.post(path)(lambda: 1)
    method_of(script).guard(None, app)
    return TestClient(app).post(path, json={"alwayson_scripts": {title: {"args": arguments}}})
