"""Images of a request are counted and measured before a pixel of them is decoded."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest

from tests.api.conftest import SMALL, Server
from tests.api.test_bad_requests import refused


def claims(width: int, height: int) -> str:
    """Base64 of a PNG of a few bytes whose header names a size."""
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(body)).decode()


@pytest.mark.parametrize(
    ("path", "fields", "told"),
    [
        ("png-info", {"image": claims(60000, 60000)}, "image"),
        ("png-info", {"image": claims(9000, 9000)}, "too large (9000x9000)"),
        ("img2img", {"init_images": [claims(9000, 9000)]}, "init_images[0]: The image is too large (9000x9000)"),
        ("img2img", {"init_images": [claims(20000, 1)]}, "too large (20000x1)"),
        ("img2img", {"init_images": [claims(0, 8)]}, "init_images[0]"),
        ("img2img", {"init_images": [claims(8000, 8000)] * 8, "batch_size": 8}, "too large together (512 megapixels)"),
        (
            "img2img",
            {"init_images": [claims(8000, 8000)] * 2, "mask": claims(8000, 8000), "batch_size": 2},
            "too large together",
        ),
        ("img2img", {"init_images": [claims(8, 8)], "mask": claims(9000, 9000)}, "mask: The image is too large"),
    ],
)
def test_images_are_measured_before_a_pixel_is_decoded(
    server: Server, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any], told: str
):
    def decode(*args: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    refused(server.post(f"/sdapi/v1/{path}", **(SMALL if path == "img2img" else {}) | fields), told)


def test_more_images_than_the_batch_are_refused_before_they_are_decoded(
    server: Server, monkeypatch: pytest.MonkeyPatch, picture: str
):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *args: pytest.fail("decoded"))
    refused(server.post("/sdapi/v1/img2img", **SMALL, init_images=[picture] * 3, batch_size=2), "init_images", "3")


def test_a_waiting_job_keeps_no_decoded_image(server: Server, picture: str):
    from standalone.api.generation import Generation
    from standalone.api.models import ImageToImageRequest

    request = ImageToImageRequest(**{**SMALL, "steps": 1}, init_images=[picture], mask=picture)
    generation = Generation.from_api(request)
    waiting = [*generation.fields["init_images"], generation.fields["mask"]]
    assert all(image.tile for image in waiting), "Pillow empties the list when it has decoded the file"
    assert server.host.queue.run(generation.run).images
    assert "init_images" not in generation.fields
    assert "mask" not in generation.fields


def test_an_image_without_a_name_in_a_batch_of_extras_is_named(server: Server):
    refused(server.post("/sdapi/v1/extra-batch-images", imageList=["abc"]), 'imageList.0: "abc" is not an object')
