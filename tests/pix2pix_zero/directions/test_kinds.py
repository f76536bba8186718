"""What kind of word was given is guessed from the words, never wrongly where one of them is a thing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.pix2pix_zero.kinds import guess_kind
from lib_methods.pix2pix_zero.sentences import KINDS
from lib_methods.pix2pix_zero.settings import CONTROLS, Pix2PixZeroSettings


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["cat", "dog"], "object"),
        (["an orange", "an apple"], "object"),
        (["red", "blue"], "adjective"),
        (["dark blue", "Light-Green"], "adjective"),
        (["smiling", "very sad and angry"], "adjective"),
        (["colourless", "reddish"], "adjective"),
        (["a photo", "an oil painting"], "style"),
        (["photograph", "sketch by Leonardo"], "style"),
        (["impressionism", "pixel art"], "style"),
        (["a painting", "a mirror"], "object"),
        (["a red car", "a blue car"], "object"),
        (["day", "night"], "object"),
        (["fish", "dish"], "object"),
        ([], "object"),
        (["猫", "犬"], "object"),
    ],
)
def test_the_guess(words: list[str], kind: str) -> None:
    assert guess_kind(words) == kind


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_words_give_a_kind(words: list[str]) -> None:
    assert guess_kind(words) in KINDS


def test_infotexts_from_before_mean_objects_and_new_ones_say_what_was_guessed() -> None:
    def read(**more: str) -> str:
        texts = {f"pix2pix-zero {name}": text for name, text in {"source": "red", "target": "blue", **more}.items()}
        return str(CONTROLS.from_infotext(texts)["words_are"])

    assert read() == "object"
    assert read(**{"words are": "style"}) == "style"
    assert read(**{"direction from": "caption"}) == "auto"
    caption = Pix2PixZeroSettings(source="red", target="blue", direction_from="caption", words_are="style")
    assert "pix2pix-zero words are" not in CONTROLS.to_infotext(caption), "it changed nothing"
