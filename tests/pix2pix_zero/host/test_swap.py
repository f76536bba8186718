"""A word of the caption in place of another: the sentence, what is said where it cannot be, and jobs with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.pix2pix_zero.settings import CONTROLS, Pix2PixZeroSettings
from lib_methods.pix2pix_zero.words import plural_of, swapped
from standalone.instruct.edits import scenes
from standalone.shapes.world import caption
from tests.hosts.seam import spread
from tests.pix2pix_zero.jobs import IMG2IMG, TXT2IMG, away, drawn, edit, speak_up
from tests.shared import jobs
from tests.shared.jobs import REPO, same
from tests.standalone.conftest import Running


@pytest.mark.parametrize(
    ("text", "source", "target", "wanted"),
    [
        ("a cat on a sofa", "cat", "dog", "a dog on a sofa"),
        ("a cat on a sofa", "a cat", "an owl", "an owl on a sofa"),
        ("An owl", "owl", "cat", "A cat"),
        ("a cat among cats, the cat's bowl", "cat", "fox", "a fox among foxes, the fox's bowl"),
        ("A CAT", "cat", "Dog", "A Dog"),
        ("(cat:1.2), cinematic", "cat", "dog", "(dog:1.2), cinematic"),
        ("a red ball", "red", "orange", "an orange ball"),
        ("a red ball", "red", "gold", "a gold ball"),
        ("a garden in spring", "garden", "snow", "snow in spring"),
        ("a cat asleep", "cat", "two dogs", "two dogs asleep"),
        ("an old  man's hat", "old man", "young woman", "a young woman's hat"),
        ("three men", "man", "woman", "three women"),
        ("a small city and cities", "city", "box", "a small box and boxes"),
        ("a category of cats", "cat", "dog", "a category of dogs"),
        ("猫在沙发上", "猫", "狗", "狗在沙发上"),
        ("un cafe\u0301", "café", "thé", "un thé"),
        ("a cat", "cat", r"\1 dog", r"\1 dog"),
    ],
)
def test_the_word_is_swapped_and_the_sentence_stays_english(text: str, source: str, target: str, wanted: str) -> None:
    assert swapped(text, source, target) == wanted


def test_captions_of_the_procedural_world_become_those_of_the_edited_scene() -> None:
    for number in range(300):
        task, before, after = scenes(number)
        assert swapped(caption(before), getattr(before, task), getattr(after, task)) == caption(after)


@pytest.mark.parametrize(
    ("text", "source", "target", "sentence"),
    [
        ("a catalogue of birds", "cat", "dog", '"cat" is not in the caption "a catalogue of birds"'),
        ("birds " * 40, "cat", "dog", "…"),
        ("cats", "cat", "cats", "nothing to change"),
        ("a cat", " ", "dog", "Enter what"),
        ("a cat", "cat", "x" * 101, "at most 100"),
    ],
)
def test_what_cannot_be_swapped_is_said(text: str, source: str, target: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        swapped(text, source, target)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cross", "crosses"),
        ("square", "squares"),
        ("pony", "ponies"),
        ("boy", "boys"),
        ("human", "humans"),
        ("fireman", "firemen"),
        ("sheep", "sheep"),
        ("dogs", "dogs"),
        ("old ox", "old oxen"),
        ("猫", "猫"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural_of(one) == many


@given(st.text(max_size=60), st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_swapped_or_refused_with_a_sentence(text: str, source: str, target: str) -> None:
    try:
        found = swapped(text, source, target)
    except SettingsError:
        return
    assert found != text


def settings(**fields: Any) -> Pix2PixZeroSettings:
    return Pix2PixZeroSettings(**{"source": "cat", "target": "dog", "direction_from": "caption", **fields})


def test_a_caption_without_the_word_is_refused_as_soon_as_it_is_known() -> None:
    with pytest.raises(SettingsError, match='"cat" is not in the caption'):
        settings(caption="a horse")
    with pytest.raises(SettingsError, match="Direction from must be one of: sentences, caption"):
        settings(direction_from="prompt")
    settings()  # the prompt is not known yet
    settings(caption="a horse", direction_from="sentences")
    settings(caption="a horse", directions="cat to dog")  # which needs no word
    assert "cat to dog (swapped in the caption)" in settings(caption="a cat").describe(True)


def test_sources_and_targets_take_turns_together() -> None:
    asked = settings(source="cat | horse", target="dog | zebra", direction_from="sentences")
    assert asked.pairs == (("cat", "dog"), ("horse", "zebra"))
    assert [asked.word(image) for image in range(3)] == ["cat", "horse", "cat"]
    assert settings(source="cat | horse").pairs == (("cat", "dog"), ("horse", "dog"))
    assert settings(target="dog|fox").pairs == (("cat", "dog"), ("cat", "fox"))
    assert asked.describe(True).startswith("cat | horse to dog | zebra in")
    with pytest.raises(SettingsError, match="2 sources and 3 targets"):
        settings(source="cat | horse", target="dog | zebra | fox")
    with pytest.raises(SettingsError, match="are the same"):
        settings(source="cat | horse", target="dog | Horse")
    with pytest.raises(SettingsError, match='"horse" is not in the caption'):
        settings(source="cat | horse", caption="a cat")


def test_the_infotext_brings_the_choice_back() -> None:
    given = CONTROLS.to_infotext(settings(caption="a cat"))
    assert given["pix2pix-zero direction from"] == "caption"
    assert CONTROLS.from_infotext(given)["direction_from"] == "caption"
    assert CONTROLS.from_infotext({**given, "pix2pix-zero direction from": "?"})["direction_from"] == "sentences"
    assert "pix2pix-zero direction from" not in CONTROLS.to_infotext(settings(direction_from="sentences"))


SWAP = {"source": "red", "target": "blue", "direction_from": "caption"}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def host(
    request: pytest.FixtureRequest, start_host: Callable[..., Running], checkpoints: Callable[..., Path]
) -> Running:
    host = start_host(checkpoints(request.param), extension_dirs=[REPO])
    speak_up()
    return host


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("prompt", ["a red circle", "a (red:1.3) circle", "a red circle " * 30])
def test_at_strength_1_the_prompt_is_the_caption_with_the_words_swapped(host: Running, prompt: str) -> None:
    job = {**TXT2IMG, "cfg_scale": 1.0, "prompt": prompt}
    plain = drawn(host, job, edit=None)
    asked = drawn(host, {**job, "prompt": prompt.replace("red", "blue")}, edit=None)
    made = drawn(host, job, guidance="off", **SWAP)
    assert spread(made, asked) < 1e-3 * away(plain, asked)
    assert spread(drawn(host, job, guidance="off", strength=0, **SWAP), plain) < 2e-4


@pytest.mark.usefixtures("clean")
def test_every_image_has_the_direction_of_its_own_caption(host: Running) -> None:
    """Sources and targets take turns; nothing is kept from another caption."""
    job = {**TXT2IMG, "cfg_scale": 1.0}
    fields = {**SWAP, "source": "red | circle", "target": "blue | star", "guidance": "off"}
    pair = host.latents(script_args=edit(**fields), batch_size=2, **job)
    for index, prompt in enumerate(("a blue circle", "a red star")):
        alone = {**job, "prompt": prompt, "seed": 1 + index}
        assert spread(pair[index], drawn(host, alone, edit=None)[0]) < 1e-3
    other = drawn(host, {**job, "prompt": "a red star"}, guidance="off", **SWAP)
    assert spread(other, drawn(host, {**job, "prompt": "a blue star"}, edit=None)) < 1e-3


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("by_word", [False, True])
def test_where_each_images_own_word_attends(host: Running, by_word: bool) -> None:
    fields = {"source": "red | circle", "target": "blue | star", "mask_mode": "by word" if by_word else "everywhere"}
    made = host.generate(script_args=edit(show=True, **fields), batch_size=2, **IMG2IMG)
    assert CONTROLS.error_key not in made.infotexts[0]
    assert all(sheet.size == (4 * 100 - 8, 64 + 22) for sheet in made.images[-2:])
    refused = host.generate(script_args=edit(**{**fields, "source": "red | horse"}), batch_size=2, **IMG2IMG)
    assert ('"horse" is not in the caption' in refused.comments) == by_word


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("job", [TXT2IMG, IMG2IMG], ids=["txt2img", "img2img"])
def test_a_prompt_without_the_word_is_said_and_the_job_is_as_without_it(host: Running, job: dict[str, Any]) -> None:
    made = host.generate(script_args=edit(**{**SWAP, "source": "horse"}), **job)
    assert '"horse" is not in the caption "a red circle"' in made.comments
    assert same(made, host.generate(**job))
    assert list(jobs.fields_of(made, "pix2pix-zero")) == [CONTROLS.error_key]
