"""A running host for each test module, and jobs for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.standalone import tiny


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes tiny checkpoints, each once: `checkpoints("sd1")`, with `folder=True`, with `in_channels=9` ..."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(family: str, *, folder: bool = False, **kwargs: Any) -> Path:
        name = "-".join([family, *(f"{key}{value}" for key, value in sorted(kwargs.items()))])
        path = root / "folders" / name if folder else root / f"{name}.safetensors"
        if not path.exists():
            model = tiny.build(family, **kwargs)
            if folder:
                tiny.write_folder(model, path)
            else:
                tiny.write_file(model, path)
        return path

    return get


@pytest.fixture(scope="session")
def models() -> dict[str, tiny.Tiny]:
    """A tiny model of every family, made once; nobody changes it."""
    return {family: tiny.build(family) for family in ("sd1", "sd2", "sdxl")}


class Running:
    """A host, with a short way to run jobs on it."""

    def __init__(self, host: Any, output: Path) -> None:
        self.host = host
        self.output = output

    def make(self, kind: str = "txt2img", *, script_args: dict[str, list[Any]] | None = None, **fields: Any) -> Any:
        """A job that is not run: small, with a fixed seed, without files. The caller closes it."""
        from modules import processing
        from standalone.host.scripts.loading import runner_of

        cls = (
            processing.StableDiffusionProcessingImg2Img
            if kind == "img2img"
            else processing.StableDiffusionProcessingTxt2Img
        )
        base: dict[str, Any] = {
            "prompt": "a red circle",
            "negative_prompt": "grey",
            "seed": 1,
            "steps": 3,
            "sampler_name": "Euler",
            "cfg_scale": 3.0,
            "width": 64,
            "height": 64,
            "do_not_save_samples": True,
            "do_not_save_grid": True,
            "outpath_samples": str(self.output),
            "outpath_grids": str(self.output),
        }
        p = cls(**{**base, **fields})
        runner = runner_of(kind == "img2img")
        args = runner.default_args()
        for name, values in (script_args or {}).items():
            script = next(script for script in runner.scripts if script.name in (name, f"steer {name}"))
            args[script.args_from : script.args_from + len(values)] = values
        p.scripts = runner
        p.script_args = tuple(args)
        return p

    def generate(self, kind: str = "txt2img", **fields: Any) -> Any:
        """Runs a job through the queue; the Processed."""
        from modules.processing import process_images

        with closing(self.make(kind, **fields)) as p:
            return self.host.queue.run(process_images, p)

    def latents(self, kind: str = "txt2img", **fields: Any) -> Any:
        """Runs a job; the latents that its last sampling gave, a tensor (B, C, h, w)."""
        import torch

        from modules import sd_samplers_common
        from modules.processing import process_images

        seen: list[torch.Tensor] = []
        original = sd_samplers_common.Sampler.launch_sampling

        def watched(self: Any, steps: int, func: Any) -> torch.Tensor:
            seen.append(original(self, steps, func))
            return seen[-1]

        sd_samplers_common.Sampler.launch_sampling = watched  # type: ignore[method-assign]
        try:
            with closing(self.make(kind, **fields)) as p:
                self.host.queue.run(process_images, p)
        finally:
            sd_samplers_common.Sampler.launch_sampling = original  # type: ignore[method-assign]
        return seen[-1]


@pytest.fixture(scope="module")
def start_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts hosts, one at a time; asked again for the running one, it gives that. Closed at the end of the module."""
    from standalone import host as standalone_host

    current: list[tuple[Any, Running]] = []

    def start(checkpoint: Path, extension_dirs: list[Path]) -> Running:
        key = (checkpoint, tuple(extension_dirs))
        if current and current[0][0] == key and not current[0][1].host.closed:
            return current[0][1]
        for _, running in current:
            running.host.close()
        data = tmp_path_factory.mktemp("data")
        host = standalone_host.start(checkpoint=checkpoint, data_dir=data, device="cpu", extension_dirs=extension_dirs)
        _snapshot()
        current[:] = [(key, Running(host, data / "made"))]
        return current[0][1]

    yield start
    for _, running in current:
        running.host.close()


@pytest.fixture
def sd1(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    """A host with a tiny SD1 model and no scripts."""
    return start_host(checkpoints("sd1", levels=1), extension_dirs=[])


def _snapshot() -> None:
    """Remembers settings and callbacks of the host that was just started."""
    from modules import script_callbacks, shared

    _as_started["settings"] = copy.copy(shared.opts.data)
    _as_started["callbacks"] = {name: list(entries) for name, entries in script_callbacks.callback_map.items()}


_as_started: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    """Settings and callbacks that a test changes are put back to what they were when the host started."""
    yield
    if _as_started:
        from modules import script_callbacks, shared

        shared.opts.data.clear()
        shared.opts.data.update(_as_started["settings"])
        for name, entries in script_callbacks.callback_map.items():
            entries[:] = _as_started["callbacks"][name]
