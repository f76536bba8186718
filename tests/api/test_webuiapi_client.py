"""The PyPI client `webuiapi`, written for the WebUI, works against this server; what a client reads first."""

from __future__ import annotations

import json
from typing import Any

import pytest
import webuiapi  # type: ignore[import-untyped]
from PIL import Image

from tests.api.conftest import SMALL, Server


@pytest.fixture
def api(server: Server, monkeypatch: pytest.MonkeyPatch) -> webuiapi.WebUIApi:
    """The client, with the server in this process in the place of the network."""
    monkeypatch.setattr("requests.Session", lambda: server.client)
    return webuiapi.WebUIApi(sampler="Euler a", steps=2)


SIZE: dict[str, Any] = {"width": 64, "height": 64, "cfg_scale": 3, "seed": 5}


def picture(color: str = "red") -> Image.Image:
    image = Image.new("RGB", (64, 48), color)
    image.paste("blue", (0, 0, 20, 20))
    return image


def test_txt2img(api: webuiapi.WebUIApi):
    result = api.txt2img(prompt="a red circle", styles=["anime"], restore_faces=True, save_images=True, **SIZE)
    assert result.image.size == (64, 64)
    assert result.info["sampler_name"] == "Euler a"
    assert 'Ignored: "restore_faces, style anime"' in result.info["infotexts"][0]
    hires = api.txt2img(
        prompt="a red circle",
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler=webuiapi.HiResUpscaler.Latent,
        hr_second_pass_steps=2,
        hr_sampler_name="DPM++ 2M Karras",
        denoising_strength=0.6,
        override_settings={"sd_vae": "some.safetensors", "CLIP_stop_at_last_layers": 2},
        **SIZE,
    )
    assert hires.image.size == (96, 96)
    assert "Ignored: sd_vae" in hires.info["infotexts"][0] and "Clip skip: 2" in hires.info["infotexts"][0]


def test_img2img_and_inpainting(api: webuiapi.WebUIApi):
    result = api.img2img(images=[picture()], prompt="a red circle", denoising_strength=0.5, **SIZE)
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (32, 0, 64, 48))
    inpainted = api.img2img(images=[picture()], mask_image=mask, inpainting_fill=1, prompt="a circle", **SIZE)
    assert result.image.size == (64, 64)
    assert inpainted.image.size == (64, 48)  # "only masked", the client's default, keeps the image's size


def test_extras(api: webuiapi.WebUIApi):
    plain = api.extra_single_image(image=picture())
    assert plain.image.size == (64, 48)
    larger = api.extra_single_image(image=picture(), upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
    assert larger.image.size == (96, 72) and "Lanczos" in larger.info
    to_size = api.extra_single_image(
        image=picture("#fff"), resize_mode=1, upscaling_resize_w=100, upscaling_resize_h=100, upscaler_1="nearest"
    )
    assert to_size.image.size == (100, 100)
    assert to_size.image.getpixel((99, 99)) == (255, 255, 255)  # covered to the edge
    mixed = api.extra_batch_images(
        images=[picture(), picture("lime")],
        upscaler_1="Nearest",
        upscaler_2="Lanczos",
        extras_upscaler_2_visibility=0.5,
    )
    assert [image.size for image in mixed.images] == [(128, 96)] * 2
    assert "Postprocess upscaler: Nearest, Postprocess upscaler 2: Lanczos" in mixed.info


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"upscaler_1": webuiapi.Upscaler.ESRGAN_4x},
            "there is no upscaler named 'R-ESRGAN 4x+'. Available",
        ),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 16, "image": Image.new("L", (600, 600))}, "larger than"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 0.001}, "smaller than a pixel"),
        ({"codeformer_visibility": 0.5}, "codeformer_visibility: this host has no CodeFormer. Set it to 0."),
        ({"gfpgan_visibility": 0.1}, "gfpgan_visibility: this host has no GFPGAN. Set it to 0."),
        ({"upscaling_resize": -1}, "upscaling_resize: -1 is not more than 0"),
        ({"resize_mode": 2}, "resize_mode: 2 is more than 1"),
    ],
)
def test_extras_that_cannot_be(api: webuiapi.WebUIApi, fields: dict[str, Any], told: str):
    with pytest.raises(RuntimeError) as caught:
        api.extra_single_image(**{"image": picture(), **fields})
    status, text = caught.value.args
    assert 400 <= status < 500 and told in json.loads(text)["detail"]


def test_png_info_and_interrogate(api: webuiapi.WebUIApi):
    made = api.txt2img(prompt="a red circle", **SIZE)
    assert "a red circle" in api.png_info(made.image).info
    assert api.interrogate(made.image).info == "a red circle"  # what the image itself says
    shape = Image.new("RGB", (64, 64), "white")
    shape.paste((220, 30, 30), (4, 20, 28, 44))
    assert api.interrogate(shape).info == "large plain red squares on the left on a white background"
    for image, model in ((Image.effect_noise((64, 64), 90).convert("RGB"), "clip"), (shape, "deepdanbooru")):
        with pytest.raises(RuntimeError) as caught:
            api.interrogate(image, model)
        assert caught.value.args[0] == 404 and "this host has no" in caught.value.args[1].lower()


def test_settings_and_checkpoints(api: webuiapi.WebUIApi):
    options = api.get_options()
    assert api.set_options(options) is None  # all of them back, as clients do
    assert api.get_options() == options
    title = api.util_get_current_model()
    assert title in api.util_get_model_names()
    api.util_set_model("tiny")
    api.set_options({"sd_model_checkpoint": "TINY", "sd_vae": "Automatic", "token_merging_ratio": 0.5})
    assert api.util_get_current_model() == title
    assert "sd_vae" not in api.get_options()


def test_a_checkpoint_can_be_unloaded_and_reloaded(api: webuiapi.WebUIApi):
    before = api.txt2img(prompt="a red circle", **SIZE).image.tobytes()
    for route in ("unload-checkpoint", "reload-checkpoint", "unload-checkpoint"):
        assert api.custom_post(route, baseurl=True).json == {}
    assert api.txt2img(prompt="a red circle", **SIZE).image.tobytes() == before


def test_everything_else_is_answered(api: webuiapi.WebUIApi):
    lists = (
        "samplers",
        "schedulers",
        "upscalers",
        "latent_upscale_modes",
        "loras",
        "sd_models",
        "sd_vae",
        "hypernetworks",
        "face_restorers",
        "realesrgan_models",
        "prompt_styles",
    )
    assert all(isinstance(getattr(api, f"get_{name}")(), list) for name in lists)
    for name in ("cmd_flags", "scripts", "embeddings", "memory", "progress"):
        assert isinstance(getattr(api, f"get_{name}")(), dict), name
    assert api.interrupt() == {}
    assert api.skip() is None
    assert api.refresh_checkpoints() is None
    api.util_wait_for_ready(check_interval=0.01)
    assert "Euler a" in api.util_get_sampler_names() and "karras" in api.util_get_scheduler_names()
    for name in ("get_artists", "get_artist_categories"):  # the WebUI has them no more
        assert getattr(api, name)()["detail"] == "There is nothing here."


def test_the_clients_custom_scripts(api: webuiapi.WebUIApi):
    result = api.txt2img(prompt="a", script_name="Chosen", script_args=["word"], **SIZE)
    assert result.image.size
    always_on = api.txt2img(prompt="a", alwayson_scripts={"Probe": {"args": ["seen", 4]}}, **SIZE)
    assert "Probe word: seen" in always_on.info["infotexts"][0]


def test_fields_that_only_other_hosts_have_are_ignored_with_a_word(server: Server):
    fields = {
        "sd_vae": "x.safetensors",
        "tiling": True,
        "firstpass_image": "x",
        "distilled_cfg_scale": 3.5,
        "enable_refiner": False,
        "hr_additional_modules": [],
        "self": 1,
        "\n": 1,
        "alwayson_scripts": {"Seed": {"args": [-1, False, -1, 0, 0, 0]}, "Hypertile": {"args": []}},
        "override_settings": {"token_merging_ratio": 0.5, "forge_preset": "sd", "sd_vae": "Automatic"},
    }
    answer = server.client.post("/sdapi/v1/txt2img", json={**SMALL, **fields}).json()
    infotext = json.loads(answer["info"])["infotexts"][0]
    ignored = "firstpass_image, sd_vae, distilled_cfg_scale, self, ?, Seed, Hypertile, tiling"
    assert f'Ignored: "{ignored}, token_merging_ratio, forge_preset"' in infotext
    assert "sd_vae" not in answer["parameters"]
    plain = server.txt2img()
    assert "Ignored" not in json.loads(plain["info"])["infotexts"][0]
    assert plain["images"][0][:50] and json.loads(plain["info"])["seed"] == SMALL["seed"]


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
