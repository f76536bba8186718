"""The routes of Extras answer as those of the WebUI v1.10.1."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from tests.api.conftest import Server
from tests.api.test_bad_requests import refused

SINGLE, BATCH = "/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images"


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_an_image_keeps_its_infotext_and_gets_what_was_done(server: Server):
    made = server.txt2img(prompt="a blue square")
    answer = server.post(SINGLE, image=made["images"][0], upscaler_1="Lanczos", upscaling_resize=1.5)
    assert answer.status_code == 200
    found = answer.json()
    done = "Postprocess upscale by: 1.5, Postprocess upscaler: Lanczos"
    assert found.keys() == {"html_info", "image"}
    assert found["html_info"] == f"<p>{done}</p>"
    image = decoded(found["image"])
    assert image.size == (96, 96)
    assert image.info["parameters"].startswith("a blue square\nSteps: 2")
    assert image.info["postprocessing"] == done


def test_a_batch_has_one_result_for_each_image_and_null_is_a_default(server: Server, picture: str):
    images = [{"data": picture, "name": "a.png"}, {"data": f"data:image/png;base64,{picture}", "name": ""}]
    fields: dict[str, Any] = {
        "resize_mode": 1,
        "upscaling_resize_w": 40,
        "upscaling_resize_h": 100,
        "upscaling_crop": None,
        "upscaler_1": "Nearest",
        "show_extras_results": False,  # is about a folder's results alone, in the WebUI, too
    }
    answer = server.post(BATCH, imageList=images, **fields)
    assert answer.status_code == 200, answer.text
    assert [decoded(image).size for image in answer.json()["images"]] == [(40, 100)] * 2
    assert answer.json()["html_info"] == (
        "<p>Postprocess upscale to: 40x100, Postprocess crop to: 40x100, Postprocess upscaler: Nearest</p>"
    )
    assert server.post(BATCH, imageList=[]).json() == {"html_info": "<p></p>", "images": []}


def test_without_an_upscaler_the_image_comes_back(server: Server, picture: str):
    answer = server.post(SINGLE, image=picture).json()
    assert answer["html_info"] == "<p></p>"
    assert decoded(answer["image"]).tobytes() == decoded(picture).tobytes()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image": "/etc/passwd"}, "image:"),
        ({"image": ""}, "image: The image is empty."),
        ({"upscaler_2": "Nirvana"}, "upscaler_2: there is no upscaler named 'Nirvana'"),
        ({"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 8192, "upscaling_resize_h": 8192,
          "image": "wide"}, "image: the result would be"),
        ({"resize_mode": "to"}, "resize_mode"),
        ({"upscaling_resize": True}, "upscaling_resize"),
        ({"extras_upscaler_2_visibility": 1.5}, "extras_upscaler_2_visibility"),
        ({"upscaling_resize_w": 0}, "upscaling_resize_w: 0 is less than 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_a_sentence(
    server: Server, picture: str, as_base64: Any, fields: dict[str, Any], told: str
):
    if fields.get("image") == "wide":
        fields = {**fields, "image": as_base64(Image.new("L", (4000, 1)))}
    refused(server.post(SINGLE, **{"image": picture, **fields}), told)
    if "image" not in fields:
        refused(server.post(BATCH, imageList=[{"data": picture, "name": ""}], **fields), told)


def test_a_damaged_image_of_a_batch_is_named(server: Server, picture: str):
    images = [{"data": picture, "name": ""}, {"data": picture[:80], "name": ""}]
    refused(server.post(BATCH, imageList=images), "imageList[1]")
    refused(server.post(BATCH, imageList=[images[0]] * 65), "65 images are too many")
