"""scripts/image_cfg.py: requests, infotext, page, axes, and what is said when something is wrong."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.image_cfg.settings import CONTROLS, ImageCfgSettings
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.api_guard import guard_script
from lib_methods.webui.widgets import preview, received
from tests.fabric.small_model import picture
from tests.image_cfg.jobs import PICTURE, edit
from tests.shared import jobs
from tests.shared.jobs import pixels, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

UNKNOWN = "0" * 64
parse_request, settings_from_fields, control_values = CONTROLS.request, CONTROLS.settings_from, CONTROLS.values


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


def test_positional_and_named_arguments_are_the_same(store: ImageStore) -> None:
    named = {"image": PICTURE, "image_scale": 2.0, "fit": "pad"}
    chosen = parse_request([named], store)
    assert chosen is not None
    positions: list[Any] = [True, PICTURE, 2.0, None, "pad"]
    assert parse_request(positions, store) == chosen
    assert parse_request([True, *control_values(chosen).values()], store) == chosen
    assert list(control_values(chosen)) == list(CONTROLS.names[1:])
    assert parse_request([{**named, "enabled": False}], store) is None
    assert parse_request([False, PICTURE], store) is None
    assert parse_request([named], store, overrides={"image_scale": 3.0}) == settings_from_fields(
        {"image": " ".join(chosen.images), "image_scale": 3.0, "fit": "pad"}
    )


BAD: list[tuple[Any, str]] = [
    ([{"image_scal": 1.5}], 'did you mean "image_scale"'),
    ([{"image": "../../secret.png"}], "paths are not accepted"),
    ([{"image": ["/etc/passwd", PICTURE]}], "Image 1 of 2"),
    ([{"image": UNKNOWN}], "not on this machine"),
    ([{"image": 7}], '"image" must be an image'),
    ([{"image": [PICTURE] * 65}], "at most 64"),
    ([{"image_scale": "much"}], "Image scale must be a number"),
    ([{"text_scale": 31}], "between 0 and 30"),
    ([{"enabled": "yes"}], '"enabled" is either on or off'),
    ([{"start": 1, "end": 0}], "Swap them"),
    ({"image": PICTURE}, '"args" must be a list'),
    ([True] + [None] * 18, "18 controls"),
    ([{"mask": "../../secret.png"}], "The mask: The image cannot be read"),
    ([{"mask": UNKNOWN}], "The mask 00000000… is not on this machine"),
    ([{"mask": [PICTURE]}], '"mask" must be one image'),
    ([{"mask_image_scale": 11}], "Image scale where white must be between 0 and 10"),
    ([{"tab_mask": "yes"}], "The tab's mask is either on or off"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_requests_are_named(store: ImageStore, arguments: Any, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        parse_request(arguments, store)


def test_the_api_refuses_bad_requests_before_the_job(store: ImageStore) -> None:
    app = FastAPI()

    @app.post("/sdapi/v1/txt2img")
    def txt2img() -> str:
        return "drawn"

    assert guard_script(app, "InstructPix2Pix", lambda arguments: parse_request(arguments, store)) == 1
    client = TestClient(app)
    for arguments, sentence in BAD:
        answer = client.post("/sdapi/v1/txt2img", json={"alwayson_scripts": {"InstructPix2Pix": {"args": arguments}}})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("InstructPix2Pix: ")
        assert sentence.replace("\\", "") in answer.json()["detail"]
    good = {"alwayson_scripts": {"instructpix2pix": {"args": [{"image": PICTURE}]}}}
    assert client.post("/sdapi/v1/txt2img", json=good).json() == "drawn"


def test_the_page_keeps_a_picture_and_shows_it(store: ImageStore) -> None:
    box, name, _, enabled = received(picture(3), "", store, False, False)
    assert (box, enabled) == (None, True)
    assert store.exists(name)
    assert 'src="data:image/jpeg;base64,' in preview(name, store, "image")
    assert received(None, name, store, False, True)[:2] == [None, name], "the box was emptied, the image stays"
    assert received(None, name, store, False, False)[3] is False
    assert "not on this machine" in preview(UNKNOWN, store, "image")
    assert preview("<script>", store, "image") == ""


def line(script: ModuleType, enabled: bool, is_img2img: bool = False, holds: str = "", **values: Any) -> str:
    """The line that the page shows; holds: whether img2img's own box holds an image."""
    method = script.ImageCfgScript()
    method.is_img2img = is_img2img
    return method.line(enabled, *{**CONTROLS.defaults, **values}.values(), holds)


def test_the_line_says_what_will_happen(host: Running, script: ModuleType) -> None:
    name = script.STORE.add(picture(3))
    assert "1 image, fitted by crop, image scale 1.5, text scale the CFG scale" in line(script, True, image=name)
    assert "generated from the words alone" in line(script, True)
    assert 'role="alert"' in line(script, True, image=name, image_scale=99)
    assert "Switched off" in line(script, False, image=name)
    assert "No image yet: add one to the tab" in line(script, True, True, "no")
    for seen in ("yes", ""):  # empty: the browser cannot tell
        assert "The tab&#x27;s own image" in line(script, True, True, seen)


def test_the_line_says_what_the_checkpoint_means(
    host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "This is not an InstructPix2Pix checkpoint."
    monkeypatch.setattr(script.ImageCfgScript, "unsuited", staticmethod(lambda model: sentence))
    assert "not an InstructPix2Pix checkpoint" in line(script, True)
    assert 'role="alert"' in line(script, True)
    assert "not an InstructPix2Pix checkpoint" not in line(script, False)


def test_every_method_says_which_checkpoints_will_not_do() -> None:
    from torch import nn

    from lib_methods.denoiser import NO_EDITING, NO_FLOW, NO_PICTURE, LoadedModel
    from lib_methods.fabric.apply import unsuited as fabric
    from lib_methods.image_cfg.apply import unsuited as image_cfg
    from lib_methods.pix2pix_zero.apply import unsuited as pix2pix_zero

    plain = nn.Sequential(nn.Conv2d(4, 4, 1))
    assert "no self-attention" in fabric(LoadedModel(plain))
    assert "not an InstructPix2Pix checkpoint" in image_cfg(LoadedModel(plain))
    assert "no cross-attention" in pix2pix_zero(LoadedModel(plain))
    assert image_cfg(LoadedModel(plain, sees_picture=True)) == ""
    assert "This is an InstructPix2Pix checkpoint" in pix2pix_zero(LoadedModel(plain, sees_picture=True))
    assert pix2pix_zero(LoadedModel(plain, is_flow=True)) == NO_FLOW
    fork = LoadedModel(plain, True, has_picture=False, has_editing=False)
    assert (image_cfg(fork), pix2pix_zero(fork)) == (NO_PICTURE, NO_EDITING)


def test_the_page_keeps_a_mask(host: Running, script: ModuleType) -> None:
    box, name, _ = received(picture(3), "", script.STORE, True)
    assert box is None
    assert script.STORE.exists(name)
    assert "image scale 1.5, 1 where the mask is white" in line(script, True, mask=name)
    assert 'alt="mask"' in preview(name, script.STORE, "mask")
    assert "1 where the tab&#x27;s mask is white" in line(script, True, True, tab_mask=True)


def test_the_infotext_alone_gives_the_image_again(host: Running, script: ModuleType) -> None:
    from modules.infotext_utils import parse_generation_parameters

    job = host.generate(script_args=edit(image_scale=2.0, image_schedule="cosine", fit="stretch"))
    fields = parse_generation_parameters(job.info)
    pasted = [key(fields) for key in CONTROLS.paste_keys()]
    again = host.generate(script_args={"instructpix2pix": pasted})
    assert np.array_equal(pixels(job), pixels(again))
    assert job.info == again.info


@pytest.mark.parametrize("api", [False, True])
def test_a_job_with_a_bad_request_goes_on_without_and_says_so(host: Running, api: bool) -> None:
    job = jobs.run(host, edit(image_scale=99), api=api)
    assert "between 0 and 10" in job.comments
    assert "InstructPix2Pix error: " in job.info
    assert np.array_equal(pixels(job), pixels(host.generate()))


def test_the_axes_set_the_scales(host: Running, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = jobs.plot_axes(script, monkeypatch)
    labels = ["Image scale", "Text scale", "Image scale where white"]
    assert [axis.label for axis in axes] == [f"[InstructPix2Pix] {label}" for label in labels]
    for axis, top in zip(axes, (10.0, 30.0, 10.0)):
        axis.confirm(None, [0.0, top])
        with pytest.raises(ValueError, match="between 0 and"):
            axis.confirm(None, [1.0, top + 1])
    cell = SimpleNamespace()
    for axis, value in zip(axes, (2.5, 4.0, 0.5)):
        axis.apply(cell, value, None)
    half = Image.new("L", (64, 64))
    half.paste(255, (32, 0, 64, 64))
    mask = {"mask": encoded(half)}
    job = jobs.run(host, edit(**mask), attributes=vars(cell))
    wanted = jobs.run(host, edit(image_scale=2.5, text_scale=4.0, mask_image_scale=0.5, **mask))
    assert job.info == wanted.info
    assert same(job, wanted)
    assert not same(job, jobs.run(host, edit(image_scale=2.5, text_scale=4.0, **mask)))


@pytest.mark.parametrize("is_img2img", [False, True])
def test_the_controls_are_the_request_in_order_with_its_defaults(
    host: Running, script: ModuleType, is_img2img: bool
) -> None:
    for named in jobs.first_values(script.ImageCfgScript(), is_img2img, CONTROLS.names):
        assert named == {"enabled": False, **control_values(ImageCfgSettings())}
