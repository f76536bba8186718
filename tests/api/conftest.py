"""The whole server in this process, with a tiny random model and a script that shows what it gets."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.standalone import tiny

EXTENSION = Path(__file__).resolve().parent / "extension"
SMALL: dict[str, Any] = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 1, "cfg_scale": 3}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 checkpoint as one file, alone in its folder."""
    path = tmp_path_factory.mktemp("api-checkpoint") / "tiny.safetensors"
    tiny.write_file(tiny.build("sd1"), path)
    return path


class Server:
    """The application with a client, as if it listened on 127.0.0.1."""

    def __init__(self, host: Any, client: Any) -> None:
        self.host = host
        self.client = client

    def post(self, path: str, **json: Any) -> Any:
        return self.client.post(path, json=json)

    def get(self, path: str, **kwargs: Any) -> Any:
        return self.client.get(path, **kwargs)

    def txt2img(self, **fields: Any) -> dict[str, Any]:
        """A small job that must work."""
        answer = self.post("/sdapi/v1/txt2img", **{**SMALL, **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture(scope="package")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from fastapi.testclient import TestClient

    from standalone import host as standalone_host

    data = tmp_path_factory.mktemp("server-data")
    host = standalone_host.start(checkpoint=tiny_checkpoint, data_dir=data, extension_dirs=[EXTENSION], device="cpu")
    try:
        from standalone.page.server import build_app

        app = build_app(host, max_body=4 * 2**20)
        with TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False) as client:
            yield Server(host, client)
    finally:
        host.close()


@pytest.fixture(scope="module", autouse=True)
def _settings_stay() -> Iterator[None]:
    """The one server of all modules begins each of them with its first settings and checkpoint."""
    from standalone import host as standalone_host
    from standalone.host import checkpoints, shared

    running = standalone_host.running()
    before = dict(shared.opts.data) if running is not None else None
    yield
    running = standalone_host.running()
    if running is not None:
        first = {key: info.default for key, info in shared.opts.data_labels.items()}
        outputs = {key: value for key, value in shared.opts.data.items() if key.startswith("outdir_")}
        shared.opts.data = {**first, **outputs} if before is None else before
        shared.opts.data["sd_model_checkpoint"] = shared.sd_model.sd_checkpoint_info.title
        checkpoints.list_models()


@pytest.fixture(scope="session")
def as_base64() -> Callable[[Image.Image], str]:
    """Encodes a PIL image as PNG in base64 text."""

    def encode(image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    return encode


@pytest.fixture(scope="session")
def picture(as_base64: Callable[[Image.Image], str]) -> str:
    """A small image as base64 text."""
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    image.paste((20, 20, 200), (0, 0, 32, 64))
    return as_base64(image)
