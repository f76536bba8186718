"""scripts/image_cfg.py: requests, infotext, page, axes, and what is said when something is wrong."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.image_cfg import infotext
from lib_methods.image_cfg.page import PageHandlers
from lib_methods.image_cfg.request import CONTROLS, control_values, parse_request, settings_from_fields
from lib_methods.image_cfg.settings import ImageCfgSettings
from lib_methods.pictures.store import ImageStore
from lib_methods.webui.api_guard import guard_script
from tests.fabric.small_model import picture
from tests.shared import jobs
from tests.shared.jobs import pixels, same
from tests.shared.pictures import encoded
from tests.standalone.conftest import Running

from .jobs import PICTURE, edit

UNKNOWN = "0" * 64
NAMES = st.lists(st.sampled_from(["0" * 64, "a" * 64, "0123456789abcdef" * 4]), max_size=3).map(tuple)
SETTINGS = st.builds(
    ImageCfgSettings,
    images=NAMES,
    image_scale=st.floats(0, 10),
    text_scale=st.floats(0, 30),
    fit=st.sampled_from(["crop", "pad", "stretch"]),
    start=st.floats(0, 0.5),
    end=st.floats(0.5, 1),
    image_schedule=st.sampled_from(["constant", "linear", "cosine"]),
    image_end_scale=st.floats(0, 10),
    hires_source=st.sampled_from(["input picture", "first pass"]),
    hires_text_scale=st.floats(0, 30),
    latents=st.sampled_from(["auto", "scaled", "unscaled"]),
    mask=st.sampled_from(["", "a" * 64]),
    mask_image_scale=st.floats(0, 10),
    tab_mask=st.booleans(),
)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@given(chosen=SETTINGS)
@settings(deadline=None, max_examples=50)
def test_an_infotext_brings_every_setting_back(chosen: ImageCfgSettings) -> None:
    values = infotext.from_infotext(infotext.to_infotext(chosen))
    assert values.pop("enabled") is True
    assert settings_from_fields(values) == chosen


@given(junk=st.dictionaries(st.sampled_from(list(infotext.KEYS.values())), st.text(max_size=80), min_size=1))
@settings(deadline=None, max_examples=50)
def test_a_damaged_infotext_falls_back_to_what_can_be_used(junk: dict[str, str]) -> None:
    values = infotext.from_infotext(junk)
    assert values.pop("enabled") is True
    for name, value in values.items():
        settings_from_fields({"end": 1.0, name: value} if name == "start" else {name: value})


def test_an_infotext_without_the_method_switches_it_off_and_leaves_the_rest() -> None:
    values = infotext.from_infotext({"Steps": "20", "Image CFG scale": "1.5"})
    assert values == {"enabled": False, **dict.fromkeys(infotext.KEYS)}


def test_positional_and_named_arguments_are_the_same(store: ImageStore) -> None:
    named = {"image": PICTURE, "image_scale": 2.0, "fit": "pad"}
    chosen = parse_request([named], store)
    assert chosen is not None
    positions: list[Any] = [True, PICTURE, 2.0, None, "pad"]
    assert parse_request(positions, store) == chosen
    assert parse_request([True, *control_values(chosen).values()], store) == chosen
    assert list(control_values(chosen)) == list(CONTROLS[1:])
    assert parse_request([{**named, "enabled": False}], store) is None
    assert parse_request([False, PICTURE], store) is None
    assert parse_request([named], store, overrides={"image_scale": 3.0}) == settings_from_fields(
        {"image": " ".join(chosen.images), "image_scale": 3.0, "fit": "pad"}
    )


BAD: list[tuple[Any, str]] = [
    ([{"image_scal": 1.5}], 'did you mean "image_scale"'),
    ([{"image": "../../secret.png"}], "paths are not accepted"),
    ([{"image": ["/etc/passwd", PICTURE]}], "Picture 1 of 2"),
    ([{"image": UNKNOWN}], "not on this machine"),
    ([{"image": 7}], '"image" must be a picture'),
    ([{"image": [PICTURE] * 65}], "at most 64"),
    ([{"image_scale": "much"}], "Image scale must be a number"),
    ([{"text_scale": 31}], "between 0 and 30"),
    ([{"enabled": "yes"}], '"enabled" is either on or off'),
    ([{"start": 1, "end": 0}], "Swap them"),
    ({"image": PICTURE}, '"args" must be a list'),
    ([True] + [None] * 18, "18 controls"),
    ([{"mask": "../../secret.png"}], "The mask: The image cannot be read"),
    ([{"mask": UNKNOWN}], "The mask 00000000… is not on this machine"),
    ([{"mask": [PICTURE]}], '"mask" must be one picture'),
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


def test_the_page_keeps_a_picture_and_says_what_will_happen(store: ImageStore) -> None:
    page = PageHandlers(store, is_img2img=False)
    box, name, enabled, status = page.receive(picture(3), "", False)
    assert (box, enabled) == (None, True)
    assert store.exists(name)
    assert "1 image, fitted by crop, image scale 1.5, text scale the CFG scale" in status
    assert 'src="data:image/jpeg;base64,' in page.preview(name)
    assert page.receive(None, name, True)[:3] == [None, name, True], "the box was emptied, the picture stays"
    assert "not on this machine" in page.preview(UNKNOWN)
    assert page.preview("<script>") == ""
    assert "generated from the words alone" in page.status(True)
    assert "The tab&#x27;s own image" in PageHandlers(store, is_img2img=True).status(True)
    assert 'role="alert"' in page.status(True, name, 99)
    assert "Switched off" in page.status(False, name)


def test_the_line_says_what_the_checkpoint_and_the_empty_tab_mean(store: ImageStore) -> None:
    page = PageHandlers(store, True, lambda: "This checkpoint sees no image.")
    assert "sees no image" in page.status(True)
    assert 'role="alert"' in page.status(True)
    assert "sees no image" not in page.status(False)
    page = PageHandlers(store, is_img2img=True)
    assert "No image yet: put one into the tab" in page.describe("no", True)
    for seen in ("yes", ""):  # empty: the browser cannot tell
        assert "own image" in page.describe(seen, True)


def test_every_method_says_which_checkpoints_will_not_do() -> None:
    from torch import nn

    from lib_methods.denoiser import NO_EDITING, NO_PICTURE, LoadedModel
    from lib_methods.fabric.apply import unsuited as fabric
    from lib_methods.image_cfg.apply import unsuited as image_cfg
    from lib_methods.pix2pix_zero.apply import unsuited as pix2pix_zero

    plain = nn.Sequential(nn.Conv2d(4, 4, 1))
    assert "no self-attention" in fabric(LoadedModel(plain))
    assert "sees no image" in image_cfg(LoadedModel(plain))
    assert "no cross-attention" in pix2pix_zero(LoadedModel(plain))
    assert image_cfg(LoadedModel(plain, sees_picture=True)) == ""
    assert "told by instructions" in pix2pix_zero(LoadedModel(plain, sees_picture=True))
    fork = LoadedModel(plain, True, has_picture=False, has_editing=False)
    assert (image_cfg(fork), pix2pix_zero(fork)) == (NO_PICTURE, NO_EDITING)


def test_the_page_keeps_a_mask(store: ImageStore) -> None:
    page = PageHandlers(store, is_img2img=True)
    values = list(control_values(ImageCfgSettings()).values())
    box, name, status = page.receive_mask(picture(3), True, *values)
    assert box is None
    assert store.exists(name)
    assert "image scale 1.5, 1 where the mask is white" in status
    values[CONTROLS.index("mask") - 1] = name
    assert page.receive_mask(None, True, *values) == [None, name, status]
    assert 'alt="mask"' in page.preview(name, "mask")
    values[-1] = True
    assert "1 where the tab&#x27;s mask is white" in page.status(True, *values)


def test_the_infotext_alone_gives_the_image_again(host: Running, script: ModuleType) -> None:
    from modules.infotext_utils import parse_generation_parameters

    job = host.generate(script_args=edit(image_scale=2.0, image_schedule="cosine", fit="stretch"))
    fields = parse_generation_parameters(job.info)
    pasted = [key(fields) for key in infotext.paste_keys()]
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
    assert [axis.confirm for axis in axes] == [(0.0, 10.0), (0.0, 30.0), (0.0, 10.0)]
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
    for named in jobs.first_values(script.ImageCfgScript(), is_img2img, CONTROLS):
        assert named == {"enabled": False, **control_values(ImageCfgSettings())}
