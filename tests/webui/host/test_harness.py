"""The harness itself: it must see an error that the host logged, and must not harm what it links. Needs no WebUI."""

from __future__ import annotations

import json
import socket
import struct
import urllib.error
from pathlib import Path

import pytest
import yaml

from tests.webui.checkpoint import TEXT_PREFIX, CheckpointUnusable, prepare
from tests.webui.client import Client, ServerDied
from tests.webui.hosts import HOSTS, Host, WebUIUnavailable
from tests.webui.server import link_folder, logged_errors, remove_link

LOG = """Launching Web UI with arguments: --api
*** Error calling: /somewhere/extensions/pack/scripts/fabric.py/process
    Traceback (most recent call last):
      File "modules/scripts.py", line 1, in process
        script.process(p, *script_args)
    ValueError: no

---
Running on local URL:  http://127.0.0.1:1
*** Error running process_batch: first line
*** and a second line of the message
---
Traceback (most recent call last):
  File "launch.py", line 1, in <module>
RuntimeError: bare
Startup time: 7.4s
"""


def test_every_logged_error_is_found() -> None:
    reports = logged_errors(LOG)
    assert [report.splitlines()[0][:20] for report in reports] == [
        "*** Error calling: /",
        "*** Error running pr",
        "Traceback (most rece",
    ]
    assert "ValueError: no" in reports[0]
    assert "RuntimeError: bare" in reports[2]
    assert not any("Startup" in report or "Running" in report for report in reports)
    assert logged_errors("Launching\nModel loaded in 1.1s\n") == []


def test_a_server_that_dies_ends_the_wait_with_its_log() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", died=lambda: "ended with code 1: no memory")
        with pytest.raises(ServerDied, match="no memory"):
            client.get("/sdapi/v1/options")


def test_a_server_that_lives_and_refuses_is_another_matter() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(urllib.error.URLError):
        Client(f"http://127.0.0.1:{port}").get("/sdapi/v1/options")


def test_removing_a_link_leaves_the_folder(tmp_path: Path) -> None:
    target, link = tmp_path / "pack", tmp_path / "data" / "extensions" / "pack"
    target.mkdir()
    (target / "file").write_text("kept")
    link_folder(target, link)
    assert (link / "file").read_text() == "kept"
    remove_link(link)
    assert not link.exists()
    assert (target / "file").read_text() == "kept"


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.title)
@pytest.mark.parametrize("value", ["", "nowhere"])
def test_without_a_webui_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: Host, value: str
) -> None:
    variable = f"SD_{host.variable}_DIR"
    monkeypatch.setenv(variable, str(tmp_path / value) if value else "")
    with pytest.raises(WebUIUnavailable, match=variable):
        host.root()


def test_a_request_is_put_into_a_hosts_words() -> None:
    host = Host("X", "X", (), txt2img={"more": 1}, names={"hr_upscaler": {"Latent": "None"}}, lacks={"*512*": "slow"})
    assert host.adapted({"hr_upscaler": "Latent"}) == {"hr_upscaler": "None", "more": 1}
    assert host.adapted({"init_images": [], "hr_upscaler": "Lanczos"}) == {"init_images": [], "hr_upscaler": "Lanczos"}
    assert host.why_not("test_fabric.py::test_x[512x768-X]") == "slow"
    assert host.why_not("test_fabric.py::test_x[img2img-X]") == ""


def _checkpoint(path: Path, shapes: dict[str, list[int]], params: dict[str, object]) -> Path:
    """A `.safetensors` file that has only a header, and its yaml."""
    entries = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    header = json.dumps(entries).encode("utf-8")
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    config = {
        "model": {
            "params": {
                "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": params}
            }
        }
    }
    path.with_suffix(".yaml").write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "bpe"
    folder.mkdir()
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    return folder


SHAPES = {
    TEXT_PREFIX + "embeddings.token_embedding.weight": [49408, 64],
    TEXT_PREFIX + "embeddings.position_embedding.weight": [77, 64],
    TEXT_PREFIX + "encoder.layers.0.mlp.fc1.weight": [256, 64],
    TEXT_PREFIX + "encoder.layers.2.mlp.fc1.weight": [256, 64],
}


def test_the_text_encoder_gets_the_size_of_its_weights(tmp_path: Path, vocabulary: Path) -> None:
    source = _checkpoint(tmp_path / "small.safetensors", SHAPES, {"num_attention_heads": 4})
    target = prepare(source, vocabulary, tmp_path / "models", tmp_path)
    stage = yaml.safe_load(target.with_suffix(".yaml").read_text())["model"]["params"]["cond_stage_config"]
    assert set(stage["params"]) == {"version", "device"}, "the WebUI's class takes no other argument"
    config = json.loads((Path(stage["params"]["version"]) / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (64, 3, 4)
    assert (config["intermediate_size"], config["vocab_size"], config["max_position_embeddings"]) == (256, 49408, 77)


def test_a_checkpoint_that_cannot_be_laid_out_says_why(tmp_path: Path, vocabulary: Path) -> None:
    source = _checkpoint(tmp_path / "lora.safetensors", {"lora_up.weight": [4, 4]}, {})
    with pytest.raises(CheckpointUnusable, match="text encoder"):
        prepare(source, vocabulary, tmp_path / "models", tmp_path)
    source.with_suffix(".yaml").unlink()
    with pytest.raises(CheckpointUnusable, match=r"lora\.yaml"):
        prepare(source, vocabulary, tmp_path / "models", tmp_path)
