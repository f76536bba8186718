"""Resizing, masks and grids."""

from __future__ import annotations

import base64
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.pictures.convert import open_image
from tests.pictures.test_convert import GREYS, HOLES, RAMP, claims
from tests.standalone.pictures import half_mask

PROPERTY = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDES = st.integers(1, 90)


@pytest.fixture(autouse=True)
def _host(sd1: Any) -> None:
    """The modules can be imported while a host runs."""


@given(mode=st.integers(0, 2), size=st.tuples(SIDES, SIDES), target=st.tuples(SIDES, SIDES), grey=st.booleans())
@PROPERTY
def test_any_image_takes_any_size(mode: int, size: tuple[int, int], target: tuple[int, int], grey: bool) -> None:
    from modules import images

    image = Image.new("L" if grey else "RGB", size, 90 if grey else (90, 20, 20))
    found = images.resize_image(mode, image, *target, upscaler_name="Lanczos")
    assert found.size == target
    values = np.asarray(found.convert("L"), dtype=int)
    assert np.abs(values - np.asarray(image.convert("L"), dtype=int)[0, 0]).max() <= 1, "one colour stays one colour"


def test_crop_and_fill_keep_the_shape() -> None:
    from modules import images

    image = Image.new("RGB", (40, 20), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 10, 20))
    cropped = np.asarray(images.resize_image(1, image, 20, 20))
    assert cropped[10, 0].tolist() == [0, 0, 255], "the sides are cut off"
    filled = np.asarray(images.resize_image(2, image, 40, 40))
    assert filled[0, 2].tolist() == filled[39, 2].tolist() == [255, 0, 0], "the edge goes on"
    assert filled[0, 38].tolist() == [0, 0, 255]


@given(
    box=st.tuples(SIDES, SIDES, SIDES, SIDES),
    pad=st.integers(0, 40),
    target=st.tuples(st.integers(8, 64), st.integers(8, 64)),
)
@PROPERTY
def test_the_region_around_a_mask(box: tuple[int, int, int, int], pad: int, target: tuple[int, int]) -> None:
    from modules import masking

    mask = Image.new("L", (90, 70), 0)
    x1, y1, x2, y2 = min(box[0], box[2]) - 1, min(box[1], box[3]) - 1, max(box[0], box[2]), max(box[1], box[3])
    mask.paste(255, (x1, y1, x2, y2))
    region = masking.get_crop_region_v2(mask, pad)
    if region is None:
        assert y1 >= 70
        return
    inside = mask.getbbox()
    assert inside is not None
    grown = masking.expand_crop_region(region, *target, 90, 70)
    for outer, inner in ((region, inside), (grown, region)):
        assert outer[0] <= inner[0] <= inner[2] <= outer[2]
        assert outer[1] <= inner[1] <= inner[3] <= outer[3]
    assert 0 <= grown[0] < grown[2] <= 90
    assert 0 <= grown[1] < grown[3] <= 70
    fits = grown[2] - grown[0] < 90 and grown[3] - grown[1] < 70
    ratio = (grown[2] - grown[0]) / (grown[3] - grown[1])
    if fits and min(grown[2] - grown[0], grown[3] - grown[1]) > 20:
        assert abs(ratio / (target[0] / target[1]) - 1) < 0.12


def test_an_empty_mask_has_no_region() -> None:
    from modules import masking

    empty = Image.new("L", (20, 10))
    assert masking.get_crop_region_v2(empty) is None
    assert masking.get_crop_region(empty) == (20, 10, 0, 0)


def test_fill_takes_colours_from_around() -> None:
    from modules import masking

    image = Image.new("RGB", (32, 32), (10, 200, 10))
    image.paste((255, 0, 255), (12, 12, 20, 20))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (10, 10, 22, 22))
    found = np.asarray(masking.fill(image, mask), dtype=int)
    assert np.abs(found - [10, 200, 10]).max() <= 3
    assert np.array_equal(found[:8], np.asarray(image, dtype=int)[:8])


@given(sigma=st.floats(0, 12), axis=st.sampled_from([0, 1]))
@PROPERTY
def test_blurring_a_mask(sigma: float, axis: int) -> None:
    from standalone.host.jobs.masks import gaussian_blur

    mask = Image.new("L", (40, 40))
    mask.paste(255, (15, 15, 25, 25))
    values = np.asarray(gaussian_blur(mask, sigma, axis), dtype=float)
    assert values.shape == (40, 40)
    assert abs(values.sum() - 255 * 100) < 255 * 6, "what one place loses another gets"
    even = np.asarray(gaussian_blur(Image.new("L", (40, 40), 77), sigma, axis))
    assert (even == 77).all()
    symmetric = values if axis == 1 else values.T
    assert np.array_equal(symmetric, symmetric[:, ::-1])


def test_masks_of_any_kind() -> None:
    from standalone.host.jobs.masks import create_binary_mask

    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    clear.putpixel((1, 1), (0, 0, 0, 200))
    assert np.asarray(create_binary_mask(clear))[1, 1] == 255
    assert np.asarray(create_binary_mask(clear, round=False))[1, 1] == 200
    opaque = Image.new("RGBA", (4, 4), (255, 255, 255, 255))
    assert np.asarray(create_binary_mask(opaque)).min() == 255


def test_grids() -> None:
    from modules import images, script_callbacks, shared

    parts = [Image.new("RGB", (8, 6), (i, 0, 0)) for i in range(5)]
    assert images.image_grid(parts).size == (3 * 8, 2 * 6)
    assert images.image_grid(parts, rows=1).size == (40, 6)
    shared.opts.n_rows = 5
    assert images.image_grid(parts).size == (8, 30)

    def wide(params: Any) -> None:
        params.cols, params.rows = 5, 1

    script_callbacks.on_image_grid(wide)
    assert images.image_grid(parts).size == (40, 6)


def test_transparency_takes_the_background() -> None:
    from modules import images

    assert images.flatten(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "#102030").getpixel((0, 0)) == (16, 32, 48)


def _doors(data: bytes, folder: Path) -> dict[str, Image.Image]:
    """What each way into the host makes of one image file, as an img2img job sees it."""
    from types import SimpleNamespace

    from lib_methods.dreambooth.photos.image import open_photo, read_photo
    from lib_methods.pictures.store import ImageStore
    from lib_methods.webui.image_box import read_upload
    from modules import images, infotext_utils
    from standalone.api.codec import check_encoded, decode_opened
    from standalone.page.paste import describe
    from standalone.page.sends import send_image
    from standalone.verbs.generate import read_picture

    path = folder / "image.dat"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    store = ImageStore(folder / "store")
    found = {
        "API": decode_opened(check_encoded({"image": text})["image"], "image"),
        "command line": decode_opened(check_encoded({"image": read_picture(path)})["image"], "image"),
        "page": read_upload(SimpleNamespace(path=str(path), url=None)),
        "page of gradio 3": read_upload(f"data:image/png;base64,{text}"),
        "PNG Info": describe(str(path))[2],
        "Send to": send_image("img2img", [], {})([str(path)], 0, "")[0],
        "WebUI's reader": images.read(path),
        "gallery text": infotext_utils.image_from_url_text(text),
        "feedback": store.load(store.add(data)),
        "training photo": read_photo(open_photo(path)),
        "script's image": open_image(data),
    }
    assert None not in found.values()
    return {door: images.flatten(image, "#ffffff") for door, image in found.items() if image is not None}


@pytest.mark.parametrize("kind", [*GREYS, *HOLES])
def test_every_door_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    for door, image in _doors((GREYS | HOLES)[kind], tmp_path).items():
        if kind in GREYS:
            assert np.abs(np.asarray(image, dtype=int)[..., 0] - RAMP).max() <= 1, door
        else:
            assert image.getpixel((0, 0)) == (255, 255, 255), door
            assert image.getpixel((1, 0)) != (255, 255, 255), door


@pytest.mark.parametrize("kind", ["16-bit PNG", "float TIFF to 1", "grey and alpha", "palette", "RGB"])
def test_every_door_reads_the_same_mask(kind: str, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from lib_methods.dreambooth.photos.image import Photo, read_mask
    from lib_methods.pictures.fit import of_the_tab
    from lib_methods.pictures.store import ImageStore
    from lib_methods.webui.image_box import read_upload
    from standalone.api.codec import decode_opened, open_encoded
    from standalone.host.jobs.masks import create_binary_mask

    data = (GREYS | HOLES)[kind]
    path = tmp_path / "mask.png"
    path.write_bytes(data)
    uploaded = read_upload(SimpleNamespace(path=str(path), url=None))
    assert uploaded is not None
    store = ImageStore(tmp_path / "store")
    decoded = decode_opened(open_encoded({"image": base64.b64encode(data).decode()})["image"], "image")
    found = {
        "API": create_binary_mask(decoded, round=False),
        "page": create_binary_mask(uploaded, round=False),
        "script": create_binary_mask(open_image(data), round=False),
        "InstructPix2Pix": of_the_tab(decoded, False, 0),
        "store": store.load(store.add(data, as_mask=True)).convert("L"),
        "training": read_mask(Photo(path, None, path, 8, 8)),
    }
    expected = RAMP if kind in GREYS else np.array([[0, 255]])
    for door, mask in found.items():
        assert mask is not None
        assert np.abs(np.asarray(mask, dtype=int) - expected).max() <= 1, door


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (96, 32)])
@pytest.mark.parametrize("only_masked", [True, False])
def test_a_mask_of_any_size_covers_the_whole_image(sd1: Any, size: tuple[int, int], only_masked: bool) -> None:
    """The left half is masked, so the right half stays as it was, and nothing is black."""
    mask = half_mask(size)
    source = Image.new("RGB", (64, 64), (200, 40, 40))
    fields: dict[str, Any] = {
        "inpaint_full_res": only_masked,
        "mask_blur": 0,
        "inpainting_fill": 1,
        "denoising_strength": 0.1,
    }
    others = [source, source.resize((40, 48))] if only_masked else [source]
    result = sd1.generate("img2img", init_images=others, batch_size=len(others), mask=mask, **fields)
    for image in result.images:
        assert image.size == (64, 64)
        values = np.asarray(image, dtype=int)
        assert np.abs(values[:, 34:] - [200, 40, 40]).max() <= 2
        assert values.max(axis=2).min() > 20, "no black patch"


LONG = "ж" * 40_000


@pytest.mark.parametrize(
    ("extension", "size", "text", "saved_as", "beside", "told"),
    [
        ("png", (8, 8), LONG, ".png", False, ""),
        ("jpg", (8, 8), "a cat", ".jpg", False, ""),
        ("jpg", (8, 8), LONG, ".jpg", True, "too long for JPEG"),
        ("webp", (8, 8), LONG, ".webp", False, ""),
        ("bmp", (8, 8), "a cat", ".bmp", True, "hold no infotext"),
        ("jpg", (66_000, 1), "a cat", ".png", False, "cannot be saved as JPEG"),
        ("webp", (1, 16_500), "a cat", ".png", False, "cannot be saved as WEBP"),
        ("foo", (8, 8), "a cat", ".png", False, 'no image format "foo"'),
        ("mpg", (8, 8), "a cat", ".png", False, 'no image format "mpg"'),
        ("jpg", (8, 8), "a \ud800 cat", ".jpg", False, ""),
        ("png", (8, 8), "a \ud800 cat", ".png", False, ""),
    ],
)
def test_no_image_is_lost_to_its_file_format(
    sd1: Any, tmp_path: Path, extension: str, size: tuple[int, int], text: str, saved_as: str, beside: bool, told: str
) -> None:
    from modules import images

    with closing(sd1.make()) as p:
        saved, text_file = images.save_image(
            Image.new("RGB", size, (9, 9, 9)), tmp_path, "", 5, extension=extension, info=text, p=p
        )
        assert Path(saved).suffix == saved_as
        with Image.open(saved) as image:
            assert image.size == size
            found = Path(text_file).read_text("utf-8").strip() if text_file else images.read_info_from_image(image)[0]
        assert found == text.replace("\ud800", "?")
        assert bool(text_file) == beside
        assert told in " ".join(p.comments)
        assert bool(p.comments) == bool(told)
    assert {path.suffix for path in tmp_path.iterdir()} == {saved_as, *([".txt"] if beside else [])}


@pytest.mark.parametrize("mode", ["F", "CMYK", "LAB", "I;16", "RGBa", "HSV", "La"])
def test_an_image_of_any_mode_can_be_saved_and_sent(sd1: Any, tmp_path: Path, mode: str) -> None:
    from modules import images
    from standalone.api.codec import encode_image

    image = Image.new(mode, (4, 4))
    image.info["parameters"] = "a \ud800 cat"
    assert encode_image(image)
    for extension in ("png", "jpg", "webp"):
        assert Path(images.save_image(image, tmp_path, "", extension=extension, info="a cat")[0]).stat().st_size


def test_a_job_ends_well_whatever_its_file_format_cannot_hold(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import shared

    shared.opts.samples_format = shared.opts.grid_format = "jpg"
    result = sd1.generate(
        prompt="a cat, " + "(х:1.0) " * 6000, batch_size=2, steps=1, do_not_save_samples=False, do_not_save_grid=False
    )
    assert len(result.images) == 3
    assert "too long for JPEG" in result.comments
    monkeypatch.setattr("standalone.host.jobs.run.MAX_GRID_PIXELS", 64 * 64)
    result = sd1.generate(batch_size=2, steps=1, do_not_save_grid=False)
    assert len(result.images) == 2
    assert "The grid was left out" in result.comments


def test_the_boxes_of_the_page_measure_first_and_then_read_as_every_door(
    sd1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr
    from gradio.components.image_editor import EditorData
    from gradio.data_classes import FileData, ImageData

    from modules import images, shared
    from standalone.host.checkpoints import defaults_of
    from standalone.page import generation

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # where uploads are
    with gr.Blocks():
        fields, _, _ = generation._sources(defaults_of(shared.sd_model))
    deep, bomb = tmp_path / "deep.png", tmp_path / "bomb.png"
    deep.write_bytes(GREYS["16-bit PNG"])
    bomb.write_bytes(claims(9000, 9000))

    def read(name: str, path: Path) -> Any:
        if name != "editor":
            return fields[name].preprocess(ImageData(path=str(path), orig_name=path.name))
        background = FileData(path=str(path), orig_name=path.name)
        return fields[name].preprocess(EditorData(background=background, layers=[], composite=None))["background"]

    for name in ("image", "base_image", "mask_image", "editor"):
        grey = images.flatten(read(name, deep), "#ffffff")
        assert np.abs(np.asarray(grey, dtype=int)[..., 0] - RAMP).max() <= 1, name
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *args: pytest.fail("decoded"))
    for name in ("image", "base_image", "mask_image", "editor"):
        with pytest.raises(gr.Error, match="too large"):
            read(name, bomb)
