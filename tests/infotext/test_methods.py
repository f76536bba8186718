"""The methods' part of the infotext: only what differs from the defaults, and all of it comes back in every host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lib_methods.checks import SettingsError
from lib_methods.fabric.feedback import FeedbackImage
from lib_methods.fabric.settings import CONTROLS as fabric
from lib_methods.fabric.settings import FabricSettings
from lib_methods.guiders.settings import CONTROLS as GUIDANCE
from lib_methods.guiders.settings import MIMIC, GuidanceSettings
from lib_methods.image_cfg.settings import CONTROLS as image_cfg
from lib_methods.image_cfg.settings import ImageCfgSettings
from lib_methods.pictures.store import ImageStore
from lib_methods.pix2pix_zero.settings import CONTROLS as pix2pix_zero
from lib_methods.pix2pix_zero.settings import GUIDANCES, INVERSIONS, LAYERS, REGULARISATIONS, Pix2PixZeroSettings
from standalone.infotext import text
from tests.shared.any_settings import any_settings

PICTURES = ["0123456789abcdef" * 4, "f" * 64]
USUAL = {"Steps": 20, "Sampler": "Euler", "Seed": 1}
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["4x4", "64x64", '"cat"', '"', 'a "b', "a, b", "a: b", "\\", "a\nb", "a\rb", "🧀", "[a|b]"]),
    st.sampled_from(["pix2pix-zero source", "pix2pix-zero target", "Steps: 1, a: b", '"\\"']),
).map(str.strip)
SHARE = st.floats(0, 1)


def ours(fields: Mapping[str, str]) -> dict[str, Any]:
    """Through this host's infotext."""
    return text.read(text.write("a", "", {**USUAL, **fields})).fields


def webui(fields: Mapping[str, str]) -> dict[str, Any]:
    """Through that of the WebUI, by its rules for one value (v1.10.1): quotes for , : and line breaks, sizes split."""
    read: dict[str, Any] = {}
    for key, value in fields.items():
        if key == value:
            continue
        written = json.dumps(value, ensure_ascii=False) if any(char in value for char in ",:\n") else value
        shown = json.loads(written) if len(written) > 1 and written[0] == written[-1] == '"' else written
        sides = shown.split("x")
        if len(sides) == 2 and all(side.isdigit() for side in sides):
            read |= {f"{key}-1": sides[0], f"{key}-2": sides[1]}
        else:
            read[key] = shown
    return read


HOSTS = pytest.mark.parametrize("host", [ours, webui])


@HOSTS
@given(
    source=WORDS,
    target=WORDS,
    caption=WORDS,
    strength=st.floats(0, 5),
    share=SHARE,
    choices=st.tuples(*map(st.sampled_from, (GUIDANCES, LAYERS, INVERSIONS, REGULARISATIONS))),
    switch=st.booleans(),
    mask=st.sampled_from(["", *PICTURES]),
)
def test_pix2pix_zero_comes_back(host: Any, source: str, target: str, caption: str, strength: float, share: float,
                                 choices: Any, switch: bool, mask: str) -> None:  # fmt: skip
    names = ("guidance", "layers", "inversion", "regularisation")
    fields: dict[str, Any] = {"source": source, "target": target, "caption": caption, "strength": strength}
    fields |= {"start": share, "mask": mask, "show": switch, "mask_word": target[:10], **dict(zip(names, choices))}
    try:
        wanted = Pix2PixZeroSettings(**fields)
    except SettingsError:
        return
    found = pix2pix_zero.from_infotext(host(pix2pix_zero.to_infotext(wanted)))
    assert found == {"enabled": True, **pix2pix_zero.values(wanted)}


@HOSTS
@given(
    wanted=any_settings(
        image_cfg,
        images=st.lists(st.sampled_from(PICTURES), unique=True).map(tuple),
        mask=st.sampled_from(["", *PICTURES]),
        end=st.just(1.0),
    )
)
def test_instruct_pix2pix_comes_back(host: Any, wanted: ImageCfgSettings) -> None:
    found = image_cfg.from_infotext(host(image_cfg.to_infotext(wanted)))
    assert found == {"enabled": True, **image_cfg.values(wanted)}


LIKES = st.lists(st.builds(FeedbackImage, st.sampled_from(PICTURES), st.floats(0, 4)), min_size=1).map(tuple)


@HOSTS
@given(wanted=any_settings(fabric, likes=LIKES, end=st.just(1.0), strength=st.floats(0.1, 2), compare=st.just(False)))
def test_fabric_comes_back(host: Any, wanted: FabricSettings) -> None:
    found = fabric.from_infotext(host(fabric.to_infotext(wanted)))
    assert found.pop("enabled") is True
    assert fabric.settings_from(found) == wanted


@HOSTS
@given(wanted=any_settings(GUIDANCE))
def test_guidance_comes_back(host: Any, wanted: GuidanceSettings) -> None:
    written = GUIDANCE.to_infotext(wanted)
    found = GUIDANCE.from_infotext(host(written))
    assert found.pop("enabled") is True
    assert GUIDANCE.to_infotext(GUIDANCE.settings_from(found)) == written
    assert wanted.method != MIMIC or found["mimic_scale"] == wanted.mimic_scale


def test_defaults_are_not_written() -> None:
    like = (FeedbackImage(PICTURES[0]),)
    assert list(fabric.to_infotext(FabricSettings(likes=like))) == ["FABRIC likes", "FABRIC reference levels"]
    words = pix2pix_zero.to_infotext(Pix2PixZeroSettings(source="cat", target="dog"))
    usual = {"pix2pix-zero source": "cat", "pix2pix-zero target": "dog", "pix2pix-zero words are": "auto"}
    assert words == usual, "what the words are is always said: without it they were objects"
    assert list(image_cfg.to_infotext(ImageCfgSettings(images=(PICTURES[0],)))) == ["InstructPix2Pix image"]
    assert image_cfg.to_infotext(ImageCfgSettings()) == {"InstructPix2Pix image scale": "1.5"}  # or it would be off


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@given(colours=st.lists(st.integers(0, 255), min_size=1, max_size=4, unique=True))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hashes_are_short_and_come_back_whole(store: ImageStore, colours: list[int]) -> None:
    names = [store.add(Image.new("RGB", (4, 4), (colour, 0, 0))) for colour in colours]
    wanted = FabricSettings(likes=tuple(FeedbackImage(name, 0.5) for name in names))
    written = fabric.to_infotext(wanted, store)
    assert written["FABRIC likes"] == " ".join(f"{name[:16]}:0.5" for name in names)
    assert fabric.from_infotext(ours(written), store)["likes"] == " ".join(f"{name}:0.5" for name in names)
    edits = ImageCfgSettings(images=tuple(names), mask=names[0])
    assert image_cfg.from_infotext(image_cfg.to_infotext(edits, store), store)["image"] == " ".join(names)
    assert image_cfg.from_infotext(image_cfg.to_infotext(edits, store), store)["mask"] == names[0]


def test_old_hashes_and_those_of_other_machines_stay_as_they_are(store: ImageStore) -> None:
    line = f"{PICTURES[0]} {PICTURES[1][:16]}:0.5"
    assert fabric.from_infotext({"FABRIC likes": line}, store)["likes"] == line
