"""What there is: the answers that a client reads before it asks for a picture."""

from __future__ import annotations

import pytest

from tests.api.conftest import Server

FIELDS = {
    "samplers": {"name", "aliases", "options"},
    "schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
    "upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
    "latent-upscale-modes": {"name"},
    "sd-models": {"title", "model_name", "hash", "sha256", "filename", "config"},
    "script-info": {"name", "is_alwayson", "is_img2img", "args"},
}


@pytest.mark.parametrize("path", list(FIELDS))
def test_lists_have_the_webuis_fields(server: Server, path: str):
    items = server.get(f"/sdapi/v1/{path}").json()
    assert items
    assert all(set(item) == FIELDS[path] for item in items)


def test_the_named_samplers_are_there(server: Server):
    names = {item["name"] for item in server.get("/sdapi/v1/samplers").json()}
    assert {"Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC", "LCM"} <= names


def test_every_sampler_that_is_listed_works(server: Server):
    for item in server.get("/sdapi/v1/samplers").json():
        assert server.txt2img(sampler_name=item["name"], steps=3)["images"], item["name"]


def test_every_schedule_that_is_listed_works(server: Server):
    for item in server.get("/sdapi/v1/schedulers").json():
        assert server.txt2img(scheduler=item["name"], steps=3)["images"], item["name"]
        assert server.txt2img(scheduler=item["label"], steps=3)["images"], item["label"]


def test_every_upscaler_that_is_listed_works(server: Server):
    names = [
        item["name"]
        for path in ("upscalers", "latent-upscale-modes")
        for item in server.get(f"/sdapi/v1/{path}").json()
    ]
    for name in names:
        assert server.txt2img(enable_hr=True, hr_upscaler=name, hr_scale=1.5, steps=1, denoising_strength=0.5)[
            "images"
        ], name


def test_checkpoints_are_named_without_folders(server: Server):
    models = server.get("/sdapi/v1/sd-models").json()
    mine = next(model for model in models if model["filename"] == "tiny.safetensors")
    assert mine["title"].startswith("tiny.safetensors [")
    assert len(mine["sha256"]) == 64
    assert all("/" not in model["filename"] and "\\" not in model["filename"] for model in models)


def test_scripts_are_listed_with_their_arguments(server: Server):
    assert server.get("/sdapi/v1/scripts").json() == {"txt2img": ["probe", "chosen"], "img2img": ["probe", "chosen"]}
    infos = server.get("/sdapi/v1/script-info").json()
    probe = next(info for info in infos if info["name"] == "probe" and not info["is_img2img"])
    assert probe["is_alwayson"]
    assert [argument["label"] for argument in probe["args"]] == ["Word", "Number", "Trouble", "Wait"]
    number = probe["args"][1]
    assert (number["value"], number["minimum"], number["maximum"], number["step"]) == (3, 0, 10, 1)
    assert probe["args"][2]["choices"] == ["", "error", "memory"]


def test_settings_are_read_set_and_kept(server: Server):
    before = server.get("/sdapi/v1/options").json()
    assert before["sd_model_checkpoint"].startswith("tiny")
    answer = server.post("/sdapi/v1/options", CLIP_stop_at_last_layers=2, jpeg_quality=70)
    assert (answer.status_code, answer.json()) == (200, None)
    after = server.get("/sdapi/v1/options").json()
    assert (after["CLIP_stop_at_last_layers"], after["jpeg_quality"]) == (2, 70)
    import json
    from pathlib import Path

    kept = json.loads((Path(server.host.data_dir) / "config.json").read_text(encoding="utf-8"))
    assert kept["jpeg_quality"] == 70
    server.post("/sdapi/v1/options", CLIP_stop_at_last_layers=1, jpeg_quality=before["jpeg_quality"])


def test_folders_of_the_server_are_not_told_and_cannot_be_set(server: Server, tmp_path):
    for path in ("options", "cmd-flags", "sd-models", "upscalers", "script-info", "memory", "progress"):
        text = server.get(f"/sdapi/v1/{path}").text
        assert str(server.host.data_dir) not in text, path
        assert "site-packages" not in text, path
    server.post("/sdapi/v1/options", outdir_txt2img_samples=str(tmp_path))
    server.txt2img(save_images=True)
    assert list(tmp_path.iterdir()) == []


def test_memory_is_told_in_bytes(server: Server):
    memory = server.get("/sdapi/v1/memory").json()
    assert set(memory) == {"ram", "cuda"}
    assert memory["ram"].get("error") or 10**6 < memory["ram"]["used"] < memory["ram"]["total"]


def test_clients_that_look_for_more_get_empty_lists(server: Server):
    for path in ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles"):
        assert server.get(f"/sdapi/v1/{path}").json() == []
    assert server.get("/sdapi/v1/embeddings").json() == {"loaded": {}, "skipped": {}}
