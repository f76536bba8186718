"""An infotext sets the fields of a job that it means, and says what it could not set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from standalone import host

host.import_modules()

from modules import infotext_utils  # noqa: E402
from standalone.infotext.fields import CHOICES, IMG2IMG, TXT2IMG, job_fields, without_control  # noqa: E402
from standalone.page import paste  # noqa: E402

HEAD = "a cat\nNegative prompt: grey\nSteps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 5, "


def fields_of(line: str, table: Any = TXT2IMG) -> tuple[dict[str, Any], list[str]]:
    return job_fields(infotext_utils.parse_generation_parameters(HEAD + line), table)


@pytest.mark.parametrize(
    ("line", "on"),
    [
        ("Size: 64x64", False),
        ("Size: 64x64, Denoising strength: 0.5", False),  # img2img
        ("Size: 64x64, Denoising strength: 0.5, Mask blur: 4, Inpaint area: Only masked", False),
        ("Size: 64x64, Denoising strength: 0.5, Hires resize: 0x0", False),
        ("Size: 64x64, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent", True),
        ("Size: 64x64, Denoising strength: 0.5, Hires resize: 128x128", True),
        ("Size: 64x64, Denoising strength: 0.5, Hires resize: 0x128", True),
        ("Size: 1024x512, Denoising strength: 0.7, First pass size: 0x0", True),
    ],
)
def test_hires_fix_is_on_where_the_image_had_it(line: str, on: bool) -> None:
    assert fields_of(line)[0]["enable_hr"] is on


@pytest.mark.parametrize(
    ("size", "first", "wanted"),
    [
        ("1024x512", "0x0", ("768", "384", "1024", "512")),
        ("1024x1024", "512x448", ("512", "448", "1024", "1024")),
        ("many", "0x0", (None, None, 0, 0)),
    ],
)
def test_a_first_pass_size_of_old_hosts_becomes_a_hires_resize(size: str, first: str, wanted: tuple[Any, ...]) -> None:
    values, _ = fields_of(f"Size: {size}, Denoising strength: 0.7, First pass size: {first}")
    if size == "many":
        wanted = ("512", "512", "512", "512")
    assert tuple(values.get(name) for name in ("width", "height", "hr_resize_x", "hr_resize_y")) == wanted


def test_every_field_of_the_second_pass_is_set() -> None:
    values, left_out = fields_of(
        "Size: 64x72, Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 3, Hires upscaler: Latent (nearest), "
        'Hires sampler: DPM++ 2M Karras, Hires prompt: "64x64, (b:1.2)", Hires negative prompt: 4x4, '
        "Hires CFG scale: 5, Seed resize from: 32x48, Variation seed: 7, Variation seed strength: 0.2"
    )
    assert not left_out
    wanted = {
        "hr_scale": "1.5",
        "hr_second_pass_steps": "3",
        "hr_upscaler": "Latent (nearest)",
        "hr_sampler_name": "DPM++ 2M",
        "hr_prompt": "64x64, (b:1.2)",
        "hr_negative_prompt": "4x4",
        "hr_cfg": "5",
        "seed_resize_from_w": "32",
        "seed_resize_from_h": "48",
        "subseed": "7",
        "subseed_strength": "0.2",
        "scheduler": "Karras",
    }
    assert {name: values[name] for name in wanted} == wanted


def test_inpainting_is_set() -> None:
    values, _ = fields_of(
        "Size: 64x64, Denoising strength: 0.5, Mask blur x: 2, Mask blur y: 5, Mask mode: Inpaint not masked, "
        "Masked content: latent noise, Inpaint area: Only masked, Masked area padding: 8, Resize mode: Crop and resize",
        IMG2IMG,
    )
    assert {name: values[name] for name in CHOICES} == {
        "inpainting_mask_invert": 1,
        "inpainting_fill": 2,
        "inpaint_full_res": 1,
        "resize_mode": 1,
    }
    assert (values["mask_blur_x"], values["mask_blur_y"], values["inpaint_full_res_padding"]) == ("2", "5", "8")


def test_names_that_are_not_here_are_left_out_with_a_word() -> None:
    values, left_out = fields_of(
        "Size: 64x64, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: 4x-UltraSharp, "
        "Hires checkpoint: nothing.safetensors, Hires sampler: Restart, Refiner: xl [abc], Refiner switch at: 0.8"
    )
    assert values["enable_hr"] is True
    assert not {"hr_upscaler", "hr_checkpoint_name", "hr_sampler_name", "refiner_checkpoint", "refiner_switch_at"} & {
        *values
    }
    assert len(left_out) == 4
    assert "Hires upscaler '4x-UltraSharp' does not exist here and was left out." in left_out


def test_a_model_that_is_not_here_is_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import sd_models, shared

    monkeypatch.setitem(shared.opts.data, "disable_weights_auto_swap", False)
    for name, known in (("loaded", "0123456789"), ("never loaded", None)):
        found = SimpleNamespace(title=name, shorthash=known)
        for alias in filter(None, (name, known)):
            monkeypatch.setitem(sd_models.checkpoint_aliases, alias, found)

    def chosen(line: str) -> tuple[list[str], list[str]]:
        params = infotext_utils.parse_generation_parameters(f"{HEAD}Size: 8x8, {line}")
        settings = infotext_utils.get_override_settings(params)
        return [value for _, name, value in settings if name == "sd_model_checkpoint"], job_fields(params, TXT2IMG)[1]

    missing = "Model '{}' does not exist here and was left out."
    assert chosen("Model hash: deadbeef, Model: foo") == ([], [missing.format("foo [deadbeef]")])
    assert chosen("Model hash: deadbeef, Model: loaded") == ([], [missing.format("loaded [deadbeef]")])
    assert chosen("Model: foo") == ([], [missing.format("foo")])
    assert chosen("Model hash: 0123456789, Model: foo") == (["0123456789"], [])
    assert chosen("Model hash: deadbeef, Model: never loaded") == (["never loaded"], [])
    assert chosen("Model: loaded, VAE: Automatic") == ([], [])
    assert chosen("VAE: x.pt") == ([], ["VAE 'x.pt' does not exist here and was left out."])
    monkeypatch.setitem(shared.opts.data, "disable_weights_auto_swap", True)
    assert chosen("Model hash: deadbeef, Model: foo") == ([], [])


def test_what_the_webui_did_and_this_host_cannot_is_left_out_with_a_word() -> None:
    _, left_out = fields_of("Size: 64x64, Tiling: True, Token merging ratio: 0.5, Hypernet: x, FP8 weight: Disable")
    assert [sentence.split(" '")[0] for sentence in left_out] == ["Hypernet", "Tiling", "Token merging ratio"]


def test_an_unknown_choice_is_left_out_with_a_word() -> None:
    values, left_out = fields_of("Size: 64x64, Mask mode: Sketch, Resize mode: Crop and resize", IMG2IMG)
    assert "inpainting_mask_invert" not in values and values["resize_mode"] == 1
    assert left_out == ["Mask mode 'Sketch' does not exist here and was left out."]


def test_metadata_of_other_programs_is_read_or_left_out_with_a_word() -> None:
    from modules import images

    image = Image.new("RGB", (8, 8))
    image.info = {"Software": "NovelAI", "Comment": '{"prompt": "a cat", "steps": 20, "seed": 5, "sampler": "k_euler"}'}
    values, left_out = job_fields(
        infotext_utils.parse_generation_parameters(str(images.read_info_from_image(image)[0])), TXT2IMG
    )
    assert (values["prompt"], values["sampler_name"], values["seed"], left_out) == ("a cat", "Euler", "5", [])
    image.info = {"prompt": '{"3": {"class_type": "KSampler"}}', "workflow": "{}"}
    values, left_out = job_fields(
        infotext_utils.parse_generation_parameters(str(images.read_info_from_image(image)[0])), TXT2IMG
    )
    assert (values["prompt"], left_out) == ("", ["This is metadata of ComfyUI, not an infotext. It was left out."])


def test_what_the_page_has_no_control_for_is_said() -> None:
    params = infotext_utils.parse_generation_parameters(
        HEAD + "Size: 8x8, Denoising strength: 0.5, Hires upscale: 2, Hires checkpoint: x, Seed resize from: 8x8"
    )
    controls = {name: None for name in TXT2IMG if not name.startswith(("hr_checkpoint", "seed_resize", "refiner"))}
    assert without_control(params, TXT2IMG, controls) == [
        "This page has no control for: Seed resize from, Hires checkpoint. Left out."
    ]
    assert not without_control(infotext_utils.parse_generation_parameters(HEAD + "Size: 8x8"), TXT2IMG, controls)


def test_png_info_has_old_names_as_two_fields() -> None:
    old = "a\nSteps: 2, Sampler: DPM++ 2M Karras, CFG scale: 3, Seed: 1, Hires sampler: DPM++ SDE Exponential"
    params = infotext_utils.parse_generation_parameters(old)
    assert (params["Sampler"], params["Schedule type"]) == ("DPM++ 2M", "Karras")
    assert (params["Hires sampler"], params["Hires schedule type"]) == ("DPM++ SDE", "Exponential")


def test_settings_that_our_texts_leave_out_have_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import shared

    monkeypatch.setitem(shared.opts.data, "uni_pc_order", 2)
    ours = infotext_utils.parse_generation_parameters(f"{HEAD}Size: 8x8, Version: steer-0.1.0")
    assert ("UniPC order", "uni_pc_order", 3) in infotext_utils.get_override_settings(ours)
    others = infotext_utils.parse_generation_parameters(f"{HEAD}Size: 8x8, Version: v1.10.1")
    assert not any(label == "UniPC order" for label, _, _ in infotext_utils.get_override_settings(others))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("a\nSteps: 3, Sampler: Euler", True),
        ("a\r\nSteps: 20, Sampler: Euler, Seed: 1\r\n", True),
        ("a Steps: 20, Sampler: Euler, Seed: 1", True),
        ("a cat on the Steps: the red ones", False),
        ("a cat, mood: calm", False),
        ("", False),
    ],
)
def test_the_page_knows_an_infotext(words: str, found: bool) -> None:
    assert paste.looks_like_infotext(words) is found
