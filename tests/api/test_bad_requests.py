"""What cannot be done is refused with 4xx and one sentence, before a job is made of it."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.conftest import SMALL, Server

LEAKS = ("Traceback", "/work", "/home", "/tmp", "site-packages", ".py", "\\")


def refused(answer: Any, *told: str) -> dict[str, Any]:
    """Checks that an answer is a refusal in the WebUI's form, with one clean sentence."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"error", "detail", "body", "errors"}
    assert isinstance(body["detail"], str)
    assert not any(leak in body["detail"] for leak in LEAKS), answer.text
    for part in told:
        assert part in body["detail"], body["detail"]
    return dict(body)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sampler_name": "Nope"}, "no sampler named 'Nope'"),
        ({"sampler_index": "Euler c"}, "no sampler named 'Euler c'"),
        ({"scheduler": "Nope"}, "no schedule named 'Nope'"),
        ({"width": 0}, "width: 0 is not a size"),
        ({"width": -64}, "width: -64 is not a size"),
        ({"height": 100000}, "height: 100000 is not a size"),
        ({"width": 4096, "height": 4096, "batch_size": 8}, "batch_size"),
        ({"steps": 0}, "steps: 0 is not between"),
        ({"steps": 10**9}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10**6}, "batch_size"),
        ({"n_iter": 0}, "n_iter"),
        ({"cfg_scale": -3}, "cfg_scale"),
        ({"cfg_scale": "seven"}, 'cfg_scale: "seven" is not a number.'),
        ({"steps": 2.5}, "steps: 2.5 is not a whole number."),
        ({"steps": "2.5"}, 'steps: "2.5" is not a whole number.'),
        ({"steps": True}, "steps: true is not a number."),
        ({"cfg_scale": False}, "cfg_scale: false is not a number."),
        ({"cfg_scale": ""}, 'cfg_scale: "" is not a number.'),
        ({"cfg_scale": "inf"}, 'cfg_scale: "inf" is not a finite number.'),
        ({"seed": ["1"]}, "seed: a list is not a whole number."),
        ({"prompt": 5}, "prompt: 5 is not text."),
        ({"styles": "x"}, 'styles: "x" is not a list.'),
        ({"tiling": "x"}, 'tiling: "x" is not true or false.'),
        ({"eta": -1}, "eta: -1 is not between"),
        ({"s_noise": 1e30}, "s_noise"),
        ({"seed_resize_from_w": 10**9, "seed_resize_from_h": 10**9}, "seed_resize_from_w"),
        ({"refiner_switch_at": 2}, "refiner_switch_at"),
        ({"enable_hr": True, "hr_resize_x": 3}, "hr_resize_x"),
        ({"enable_hr": True, "hr_prompt": "a" * 200_000}, "hr_prompt: longer than"),
        ({"width": 4096, "height": 16, "enable_hr": True, "hr_resize_x": 16}, "cannot make an image of 16x0 pixels"),
        ({"denoising_strength": 1.5}, "denoising_strength"),
        ({"seed": 2**70}, "seed"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "a" * 200_000}, "prompt: longer than"),
        ({"enable_hr": True, "hr_upscaler": "Magic"}, "no upscaler named 'Magic'"),
        ({"enable_hr": True, "hr_scale": 100}, "hr_scale"),
        (
            {"enable_hr": True, "hr_sampler_name": "Nope"},
            "hr_sampler_name: there is no sampler named 'Nope'. Available",
        ),
        ({"enable_hr": True, "hr_sampler_name": "DDIM Karras"}, "hr_sampler_name: there is no sampler"),
        ({"enable_hr": True, "hr_scheduler": "Nope"}, "hr_scheduler: there is no schedule named 'Nope'"),
        ({"enable_hr": True, "hr_checkpoint_name": "Nope"}, "hr_checkpoint_name: there is no checkpoint named 'Nope'"),
        ({"refiner_checkpoint": "Nope"}, "refiner_checkpoint: there is no checkpoint named 'Nope'"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "two"}}, "CLIP_stop_at_last_layers"),
        ({"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, "no checkpoint named"),
        ({"script_name": "Nope"}, "no script named 'Nope'"),
        ({"script_name": "Probe"}, "no script named 'Probe'"),
        ({"script_name": "Chosen", "script_args": [1, 2, 3]}, "takes 1 arguments, not 3"),
        ({"alwayson_scripts": {"Nope": {"args": []}}}, "no script named 'Nope'"),
        ({"alwayson_scripts": {"Chosen": {"args": []}}}, "not always on"),
        ({"alwayson_scripts": {"Probe": {"args": [1, 2, 3, 4, 5]}}}, "takes 4 arguments, not 5"),
        ({"alwayson_scripts": {"Probe": {"args": "word"}}}, "not a list"),
        ({"alwayson_scripts": {"Probe": ["word"]}}, "give"),
        ({"alwayson_scripts": ["Probe"]}, "alwayson_scripts"),
    ],
)
def test_txt2img_says_what_is_wrong(server: Server, fields: dict[str, Any], told: str):
    refused(server.post("/sdapi/v1/txt2img", **{**SMALL, **fields}), told)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "init_images: there is no image"),
        ({"init_images": []}, "init_images: there is no image"),
        ({"init_images": "abc"}, "init_images"),
        ({"init_images": [7]}, "init_images"),
        ({"init_images": ["@ not base64 @"]}, "init_images[0]: The image cannot be read: send it as base64"),
        ({"init_images": [base64.b64encode(b"just text" * 5).decode()]}, "not one of PNG"),
        ({"init_images": [base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 40).decode()]}, "not one of PNG"),
        ({"init_images": ["data:text/html;base64," + base64.b64encode(b"<svg/>").decode()]}, "is not an image"),
        ({"init_images": ["http://127.0.0.1:1/a.png"]}, "links and paths are not accepted"),
        ({"init_images": ["/etc/passwd"]}, "init_images[0]"),
        ({"init_images": ["file:///etc/passwd"]}, "paths are not accepted"),
        ({"init_images": [""]}, "The image is empty"),
    ],
)
def test_img2img_says_what_is_wrong_with_a_picture(server: Server, fields: dict[str, Any], told: str):
    refused(server.post("/sdapi/v1/img2img", **{**SMALL, **fields}), told)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize_mode", 9),
        ("inpainting_fill", -1),
        ("mask", "no image"),
        ("mask_blur", -2),
        ("inpainting_mask_invert", 4),
    ],
)
def test_img2img_says_what_is_wrong_with_a_field(server: Server, picture: str, field: str, value: Any):
    refused(server.post("/sdapi/v1/img2img", **SMALL, init_images=[picture], **{field: value}), field)


def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(server: Server):

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82").decode()
    refused(server.post("/sdapi/v1/png-info", image=bomb), "image")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"prompt": NaN}', b'{"cfg_scale": 1e999}']
)
def test_what_is_no_request_is_refused(server: Server, body: bytes):
    refused(server.client.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"}))


HALVES = {"prompt": "a \ud83d", "negative_prompt": "\ude00", "styles": ["\ud83d"], "\udfff": {"\ud800": "\udc00"}}


def test_half_an_emoji_in_any_text_is_replaced(server: Server):
    """JSON may carry half of a character; nothing that has it can be encoded, saved or answered."""
    answer = server.client.post("/sdapi/v1/txt2img", content=json.dumps({**SMALL, **HALVES}).encode())
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["prompt"] == "a \ufffd"
    whole = server.client.post("/sdapi/v1/txt2img", content=json.dumps({**SMALL, "prompt": "\U0001f600"}).encode())
    assert whole.json()["parameters"]["prompt"] == "\U0001f600"


@pytest.mark.parametrize("field", ["sampler_name", "scheduler", "script_name", "refiner_checkpoint"])
def test_half_an_emoji_in_a_name_is_an_unknown_name(server: Server, field: str):
    refused(server.client.post("/sdapi/v1/txt2img", content=json.dumps({**SMALL, field: "\ud800"}).encode()), "\ufffd")


def test_settings_and_the_page_have_the_same_door(server: Server):
    for path, body in (
        ("/sdapi/v1/options", {"\ud800": 1}),
        ("/sdapi/v1/png-info", {"image": "\ud800"}),
        ("/gradio_api/queue/join", {"data": ["\ud800"], "fn_index": 0, "session_hash": "\ud800"}),
        ("/internal/progress", {"id_task": "\ud800"}),
    ):
        assert server.client.post(path, content=json.dumps(body).encode()).status_code < 500, path
    assert server.get("/sdapi/v1/options").status_code == 200


def test_options_are_answered_whatever_a_file_has_put_into_them(server: Server):
    from modules import shared

    before = dict(shared.opts.data)
    try:
        shared.opts.data |= {
            "samples_format": "\ud800",
            "sigma_min": float("nan"),
            "from elsewhere": ["\udc00", {"\ud800": 1}],
        }
        answer = server.get("/sdapi/v1/options")
        assert answer.status_code == 200
        assert answer.json()["samples_format"] == "?"
    finally:
        shared.opts.data.clear()
        shared.opts.data.update(before)


@pytest.mark.parametrize("levels", [101, 300, 1000, 200_000])
@pytest.mark.parametrize(
    "path", ["/sdapi/v1/txt2img", "/sdapi/v1/options", "/gradio_api/queue/join", "/sdapi/v1/png-info"]
)
def test_deep_nesting_is_refused(server: Server, path: str, levels: int):
    for start, end in (("[", "]"), ('{"a":', "}")):
        body = '{"x": ' + start * levels + "1" + end * levels + "}"
        refused(server.client.post(path, content=body.encode()), "nested more than 100 levels")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (f"(a:{'1' * 40})", "attention weight of 1.11e+39"),
        ("(" * 2000 + "a" + ")" * 2000, "attention weight"),
        ("(" * 2000 + "a", "attention weight"),
        (f"a (b:-{'9' * 40})", "attention weight of -1e+40"),
        (f"a AND b:{'9' * 40}", "AND weight of 1e+40"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_weight_that_no_model_can_bear_is_named(server: Server, field: str, prompt: str, told: str):
    if "AND" in prompt and field == "negative_prompt":
        pytest.skip("there AND is text")
    refused(server.post("/sdapi/v1/txt2img", **{**SMALL, field: prompt}), told)


@pytest.mark.parametrize(
    "prompt",
    [
        "a BREAK (b:-1)",
        "[" * 2000 + "a",
        "BREAK " * 300,
        "a AND " * 40,
        "\u200b" * 300,
        "\0",
        "(a:0)",
        "[a:b:" + "9" * 40 + "]",
    ],
)
def test_odd_prompts_are_drawn(server: Server, prompt: str):
    server.txt2img(prompt=prompt, steps=1)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"no_such_setting": 1}, "no setting named"),
        ({"sd_model_checkpoint": "nothing"}, "no checkpoint named"),
        ({"samples_save": "maybe"}, "samples_save"),
        ({"jpeg_quality": [80]}, "jpeg_quality"),
    ],
)
def test_settings_that_cannot_be_are_refused_and_stay(server: Server, wanted: dict[str, Any], told: str):
    before = server.get("/sdapi/v1/options").json()
    refused(server.post("/sdapi/v1/options", **wanted), told)
    assert server.get("/sdapi/v1/options").json() == before


@pytest.mark.parametrize("path", ["/sdapi/v1/nothing", "/sdapi/v2/txt2img", "/steer/../run.py"])
def test_an_unknown_address_is_not_found(server: Server, path: str):
    assert server.get(path).status_code == 404


def test_docs_lists_the_routes_and_loads_nothing_from_elsewhere(server: Server):
    page = server.get("/docs").text
    assert "/sdapi/v1/img2img" in page and "/internal/" not in page and "//" not in page.replace("</", "")


def test_the_wrong_verb_is_told(server: Server):
    refused(server.get("/sdapi/v1/txt2img"))
    assert server.get("/sdapi/v1/txt2img").status_code == 405


def test_an_infotext_with_a_value_that_does_not_fit_is_drawn_without_it(server: Server):
    infotext = "a\nSteps: many, Sampler: \ud800, Seed: 1, Size: 64x64"
    answer = server.client.post("/sdapi/v1/txt2img", content=json.dumps({"infotext": infotext, "steps": 1}).encode())
    assert answer.status_code == 200
    assert answer.json()["parameters"]["seed"] == 1


def test_null_stands_for_the_default(server: Server):
    answer = server.post(
        "/sdapi/v1/txt2img", **{**SMALL, "cfg_scale": None, "batch_size": None, "styles": None, "sampler_index": None}
    )
    assert answer.status_code == 200
    assert answer.json()["parameters"]["cfg_scale"] == 7.0


TEXT = st.text(st.characters(exclude_characters="\\"), max_size=20)  # a backslash would look like a leaked path
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "width",
        "steps",
        "sampler_name",
        "scheduler",
        "alwayson_scripts",
        "override_settings",
        "seed",
        "script_name",
        "script_args",
        "styles",
        "cfg_scale",
        "infotext",
        "hr_upscaler",
        "firstpass_image",
        "batch_size",
        "enable_hr",
        "hr_scale",
        "hr_resize_x",
        "hr_sampler_name",
        "refiner_checkpoint",
        "refiner_switch_at",
        "seed_resize_from_w",
        "eta",
        "s_noise",
        "tiling",
        "a field of another host",
    ]
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_no_request_whatsoever_breaks_the_server(server: Server, fields: dict[str, Any]):
    """Either an image, or a refusal in one sentence; never an error of the server."""
    small = isinstance(fields.get("width", 64), int) and isinstance(fields.get("steps", 1), int)
    if small and 0 < (fields.get("width") or 0) <= 5000:
        fields["width"] = 64  # keep the test quick
    if isinstance(fields.get("steps"), int) and fields["steps"] > 3:
        fields["steps"] = 3
    if isinstance(fields.get("batch_size"), int) and fields["batch_size"] > 2:
        fields["batch_size"] = 2
    answer = server.client.post("/sdapi/v1/txt2img", content=json.dumps({**SMALL, "steps": 1, **fields}).encode())
    assert answer.status_code == 200 or refused(answer), json.dumps(fields)
