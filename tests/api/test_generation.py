"""txt2img and img2img as a client written for the WebUI uses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.api.conftest import SMALL, Server
from tests.shared.pictures import decode, pixels


def test_an_image_comes_as_png_with_its_infotext(server: Server):
    answer = server.txt2img(negative_prompt="grey")
    assert set(answer) == {"images", "parameters", "info"}
    image = decode(answer["images"][0])
    info = json.loads(answer["info"])
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert image.info["parameters"] == info["infotexts"][0]
    assert image.info["parameters"].startswith("a red circle\nNegative prompt: grey\nSteps: 2, Sampler: Euler,")
    assert (info["seed"], info["all_seeds"], info["steps"]) == (1, [1], 2)


def test_the_answer_repeats_the_request_with_defaults(server: Server):
    parameters = server.txt2img(steps=2)["parameters"]
    assert parameters["prompt"] == "a red circle"
    assert (parameters["n_iter"], parameters["hr_scale"], parameters["enable_hr"], parameters["send_images"]) == (
        1,
        2.0,
        False,
        True,
    )


def test_the_same_request_gives_the_same_image_and_another_seed_another(server: Server):
    first, second, other = (server.txt2img(seed=seed)["images"][0] for seed in (5, 5, 6))
    assert np.array_equal(pixels(first), pixels(second))
    assert not np.array_equal(pixels(first), pixels(other))


def test_batches_have_consecutive_seeds(server: Server):
    answer = server.txt2img(batch_size=2, n_iter=2, override_settings={"return_grid": False})
    assert len(answer["images"]) == 4
    assert json.loads(answer["info"])["all_seeds"] == [1, 2, 3, 4]


def test_images_can_be_left_out(server: Server):
    assert server.txt2img(send_images=False)["images"] == []


def test_images_are_saved_only_on_request_and_only_in_the_output_folder(server: Server):
    def saved() -> set[Path]:
        return set(Path(server.host.output_dir).rglob("*.png"))

    before = saved()
    server.txt2img()
    assert saved() == before
    server.txt2img(save_images=True, outpath_samples="/tmp/elsewhere")
    assert len(saved() - before) == 1


@pytest.mark.parametrize(
    ("sampler", "written"),
    [
        ({"sampler_name": "DPM++ 2M Karras"}, "Sampler: DPM++ 2M, Schedule type: Karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, "Sampler: DPM++ 2M, Schedule type: Karras"),
        ({"sampler_name": "dpm++ 2m", "scheduler": "karras"}, "Sampler: DPM++ 2M, Schedule type: Karras"),
        ({"sampler_name": "k_euler_a"}, "Sampler: Euler a, Schedule type: Automatic"),
        ({"sampler_name": "Euler A", "scheduler": "KARRAS"}, "Sampler: Euler a, Schedule type: Karras"),
        ({"sampler_index": "k_heun", "sampler_name": ""}, "Sampler: Heun, Schedule type: Automatic"),
    ],
)
def test_samplers_by_old_and_new_names(server: Server, sampler: dict[str, str], written: str):
    assert written in json.loads(server.txt2img(**sampler)["info"])["infotexts"][0]


def test_names_of_the_second_pass(server: Server):
    answer = server.txt2img(
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler="LATENT",
        hr_sampler_name="DPM++ 2M Karras",
        hr_checkpoint_name="TINY.safetensors",
        sampler_name="k_euler",
        refiner_checkpoint="none",
    )
    infotext = json.loads(answer["info"])["infotexts"][0]
    for written in ("Hires sampler: DPM++ 2M", "Hires schedule type: Karras", "Hires upscaler: Latent,"):
        assert written in infotext
    assert "Hires checkpoint: tiny" in infotext


def test_the_old_name_of_the_field_works_too(server: Server):
    assert "Sampler: Heun" in json.loads(server.txt2img(sampler_index="Heun")["info"])["infotexts"][0]


def test_sizes_are_rounded_as_the_webui_does(server: Server):
    assert decode(server.txt2img(width=71, height=87)["images"][0]).size == (64, 80)


def test_hires_fix_enlarges(server: Server):
    answer = server.txt2img(
        enable_hr=True, hr_scale=2, hr_upscaler="Latent", hr_second_pass_steps=2, denoising_strength=0.6
    )
    assert decode(answer["images"][0]).size == (128, 128)
    assert "Hires upscaler: Latent" in json.loads(answer["info"])["infotexts"][0]


def test_override_settings_hold_for_one_job(server: Server):
    def clip_skip() -> object:
        return server.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"]

    plain = server.txt2img()["images"][0]
    skipped = server.txt2img(override_settings={"CLIP_stop_at_last_layers": 2})["images"][0]
    assert not np.array_equal(pixels(plain), pixels(skipped))
    assert clip_skip() == 1
    assert np.array_equal(pixels(plain), pixels(server.txt2img()["images"][0]))


def test_always_on_scripts_get_defaults_then_what_is_given(server: Server):
    def words(**scripts: object) -> str:
        return str(json.loads(server.txt2img(alwayson_scripts=scripts)["info"])["infotexts"][0])

    assert "Probe word: none, Probe number: 3" in words()
    assert "Probe word: hello, Probe number: 3" in words(Probe={"args": ["hello"]})
    assert "Probe word: hello, Probe number: 7" in words(pRoBe={"args": ["hello", 7]})
    assert "Probe word: none, Probe number: 3" in words(Probe={})


def test_named_arguments_reach_the_script(server: Server):
    answer = server.txt2img(alwayson_scripts={"Probe": {"args": {"word": "named", "number": 9}}})
    assert "Probe word: named, Probe number: 9" in json.loads(answer["info"])["infotexts"][0]


def test_a_selectable_script_does_the_job(server: Server):
    answer = server.txt2img(script_name="chosen", script_args=["a green cross"])
    assert json.loads(answer["info"])["infotexts"][0].startswith("a green cross\n")


def test_an_infotext_fills_what_the_request_leaves_open(server: Server):
    first = server.txt2img(prompt="a blue star", seed=77, alwayson_scripts={"Probe": {"args": ["kept", 5]}})
    infotext = json.loads(first["info"])["infotexts"][0]
    again = server.post("/sdapi/v1/txt2img", infotext=infotext).json()
    assert json.loads(again["info"])["infotexts"][0] == infotext
    assert np.array_equal(pixels(first["images"][0]), pixels(again["images"][0]))
    changed = server.post("/sdapi/v1/txt2img", infotext=infotext, seed=78).json()
    assert json.loads(changed["info"])["seed"] == 78


def test_old_sampler_names_in_an_infotext_set_sampler_and_schedule(server: Server):
    old = (
        "a red circle\nSteps: 2, Sampler: DPM++ 2M SDE Karras, CFG scale: 3, Seed: 1, Size: 64x64, "
        "Denoising strength: 0.6, Hires upscale: 1.5, Hires upscaler: Latent, Hires sampler: DPM++ 2M Karras"
    )
    answer = server.post("/sdapi/v1/txt2img", infotext=old)
    infotext = json.loads(answer.json()["info"])["infotexts"][0]
    for written in ("Sampler: DPM++ 2M SDE, Schedule type: Karras", "Hires sampler: DPM++ 2M,"):
        assert written in infotext
    again = json.loads(server.post("/sdapi/v1/txt2img", infotext=infotext).json()["info"])["infotexts"][0]
    assert again == infotext


EVERYTHING = {
    "hires": {
        "enable_hr": True,
        "hr_resize_x": 96,
        "hr_resize_y": 80,
        "hr_second_pass_steps": 3,
        "hr_sampler_name": "DPM++ 2M",
        "hr_scheduler": "Exponential",
        "hr_checkpoint_name": "tiny",
        "hr_prompt": '"a 64x64 grid"',
        "hr_negative_prompt": "4x4",
        "hr_cfg": 2.0,
        "denoising_strength": 0.6,
        "seed_resize_from_w": 48,
        "seed_resize_from_h": 32,
        "subseed": 9,
        "subseed_strength": 0.3,
        "sampler_name": "Euler",
        "scheduler": "Karras",
        "negative_prompt": " grey, \nNegative prompt: x ",
    },
    "refiner": {"refiner_checkpoint": "tiny", "refiner_switch_at": 0.5, "scheduler": "Karras", "eta": 0.5, "steps": 4},
    "UniPC": {
        "sampler_name": "UniPC",
        "steps": 4,
        "override_settings": {
            "uni_pc_order": 2,
            "uni_pc_variant": "bh2",
            "uni_pc_skip_type": "logSNR",
            "uni_pc_lower_order_final": False,
        },
    },
    "sigmas": {
        "sampler_name": "Heun",
        "s_churn": 0.5,
        "s_noise": 1.01,
        "scheduler": "Karras",
        "override_settings": {"sigma_max": 9.0, "rho": 5.0, "enable_quantization": True, "CLIP_stop_at_last_layers": 2},
    },
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_an_infotext_alone_gives_the_same_image_again(server: Server, name: str):
    first = server.txt2img(**EVERYTHING[name])
    infotext = json.loads(first["info"])["infotexts"][0]
    again = server.post("/sdapi/v1/txt2img", infotext=infotext).json()
    assert json.loads(again["info"])["infotexts"][0] == infotext
    assert np.array_equal(pixels(first["images"][0]), pixels(again["images"][0]))


def test_an_infotext_gives_the_same_inpainting_again(server: Server, picture: str, as_base64):
    from PIL import Image

    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    pictures = {"init_images": [picture], "mask": as_base64(mask)}
    fields = {"mask_blur_x": 2, "mask_blur_y": 5, "inpainting_fill": 2, "inpaint_full_res": True, "resize_mode": 1}
    fields |= {"inpaint_full_res_padding": 8, "inpainting_mask_invert": 1}
    first = server.post(
        "/sdapi/v1/img2img", **{**SMALL, **fields, **pictures, "width": 72, "initial_noise_multiplier": 0.9}
    ).json()
    infotext = json.loads(first["info"])["infotexts"][0]
    again = server.post("/sdapi/v1/img2img", infotext=infotext, **pictures).json()
    assert json.loads(again["info"])["infotexts"][0] == infotext
    assert np.array_equal(pixels(first["images"][0]), pixels(again["images"][0]))


def test_an_infotext_of_img2img_is_no_hires_fix(server: Server):
    line = "a red circle\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 1, Size: 64x64, Denoising strength: 0.4"
    answer = server.post("/sdapi/v1/txt2img", infotext=line).json()
    assert decode(answer["images"][0]).size == (64, 64)
    assert not answer["parameters"]["enable_hr"]


def test_what_an_infotext_names_and_is_not_here_is_left_out_with_a_word(server: Server):
    line = (
        "a red circle\nSteps: 2, Sampler: Restart, Schedule type: Beta, CFG scale: much, Seed: 1, Size: 64x64, "
        "Denoising strength: 0.4, Hires resize: 96x96, Hires upscaler: 4x-UltraSharp, Hires checkpoint: sdxl [abc]"
    )
    answer = server.post("/sdapi/v1/txt2img", infotext=line)
    assert answer.status_code == 200
    assert decode(answer.json()["images"][0]).size == (96, 96)
    comments = json.loads(answer.json()["info"])["comments"]
    for name in ("Sampler 'Restart'", "Schedule type 'Beta'", "'much'", "'4x-UltraSharp'", "'sdxl [abc]'"):
        assert name in comments


def test_values_of_an_infotext_that_cannot_be_are_left_out_with_a_word(server: Server):
    line = (
        "a red circle\nSteps: 9000, Sampler: Euler, CFG scale: -3, Seed: 99999999999999999999, Size: 0x64, "
        "Clip skip: 50, Batch size: 100, Variation seed: 1, Variation seed strength: 9"
    )
    answer = server.post("/sdapi/v1/txt2img", infotext=line, width=64, steps=2)
    assert answer.status_code == 200
    assert answer.json()["parameters"]["width"] == 64
    comments = json.loads(answer.json()["info"])["comments"]
    for name in ("cfg_scale '-3'", "seed '9999", "Clip skip '50'", "batch_size '100'", "subseed_strength '9'"):
        assert name in comments
    refused = server.post("/sdapi/v1/txt2img", infotext=line, width=64, steps=9000)
    assert refused.status_code == 422 and "steps: 9000" in refused.json()["detail"]


@pytest.mark.parametrize("words", ['{"3": {"inputs": {"seed": 5}}}', "{" * 5000, "Steps: " * 5000, "\r\n"])
def test_text_of_other_programs_does_no_harm(server: Server, words: str):
    assert server.post("/sdapi/v1/txt2img", **{**SMALL, "infotext": words}).status_code == 200


def test_an_infotext_has_an_end(server: Server):
    answer = server.post("/sdapi/v1/txt2img", **{**SMALL, "infotext": "a" * 1_000_001})
    assert (answer.status_code, "infotext: longer than" in answer.text) == (422, True)


def test_img2img_starts_from_the_picture(server: Server, picture: str):
    fields = {**SMALL, "init_images": [picture], "steps": 4}
    near = server.post("/sdapi/v1/img2img", **fields, denoising_strength=0.1).json()
    far = server.post("/sdapi/v1/img2img", **fields, denoising_strength=1.0).json()
    assert decode(near["images"][0]).size == (64, 64)
    assert not np.array_equal(pixels(near["images"][0]), pixels(far["images"][0]))
    assert near["parameters"]["init_images"] is None


def test_input_images_come_back_on_request(server: Server, picture: str):
    answer = server.post(
        "/sdapi/v1/img2img", **SMALL, init_images=["data:image/png;base64," + picture], include_init_images=True
    )
    assert answer.json()["parameters"]["init_images"][0].endswith(picture)


def test_inpainting_leaves_the_rest_as_it_is(server: Server, picture: str, as_base64):
    from PIL import Image

    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    answer = server.post(
        "/sdapi/v1/img2img",
        **SMALL,
        init_images=[picture],
        mask=as_base64(mask),
        mask_blur=0,
        inpainting_fill=1,
        inpaint_full_res=False,
        denoising_strength=1.0,
    ).json()
    made, given = pixels(answer["images"][0]).astype(int), pixels(picture).astype(int)
    assert np.abs(made[:, :28] - given[:, :28]).max() <= 1
    assert np.abs(made[:, 36:] - given[:, 36:]).max() > 10


def test_png_info_reads_what_was_made(server: Server):
    image = server.txt2img(seed=9)["images"][0]
    answer = server.post("/sdapi/v1/png-info", image=image).json()
    assert answer["info"] == decode(image).info["parameters"]
    assert (answer["parameters"]["Seed"], answer["parameters"]["Prompt"]) == ("9", "a red circle")
    assert set(answer) == {"info", "items", "parameters"}


def test_a_picture_without_infotext_is_no_error(server: Server, picture: str):
    assert server.post("/sdapi/v1/png-info", image=picture).json()["info"] == ""
