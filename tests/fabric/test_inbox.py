"""The browser's messages change the lists; anything else changes nothing and gets a message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib_methods.fabric.feedback import MAX_IMAGES
from lib_methods.fabric.inbox import answer_message
from lib_methods.pictures.store import ImageStore
from tests.shared.pictures import data_url, noisy, stored

LINE = re.compile(r"([0-9a-f]{16,64}(:\S+)?( |$))*")


class Page:
    """One browser page: it carries the lists, and sends messages."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self.likes = self.dislikes = ""
        self.answer: dict[str, Any] = {}

    def send(self, **action: Any) -> None:
        message = json.dumps({"nonce": "n", "actions": [action]})
        outcome = answer_message(message, self.likes, self.dislikes, self.store)
        self.likes, self.dislikes, self.answer = outcome.likes, outcome.dislikes, json.loads(outcome.answer)
        assert self.answer["nonce"] == "n"


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(ImageStore(tmp_path))


def test_a_like_is_kept_named_and_reported(page: Page) -> None:
    page.send(do="add", list="likes", image=data_url(noisy()))
    assert page.answer == {"nonce": "n", "ids": [page.likes], "note": "", "added": True}
    assert stored(page.store) == (page.likes,)


def test_liking_twice_counts_once_and_keeps_the_weight(page: Page) -> None:
    page.send(do="add", list="likes", image=data_url(noisy()))
    page.send(do="weight", list="likes", id=page.likes, weight=0.5)
    before = page.likes
    page.send(do="add", list="likes", image=data_url(noisy()))
    assert page.likes == before
    assert before.endswith(":0.5")


def test_a_picture_is_on_one_list_only_and_the_last_click_counts(page: Page) -> None:
    page.send(do="add", list="likes", image=data_url(noisy()))
    name = page.likes
    page.send(do="add", list="dislikes", image=name)
    assert (page.likes, page.dislikes) == ("", name)


def test_remove_and_clear(page: Page) -> None:
    for seed in range(3):
        page.send(do="add", list="likes", image=data_url(noisy(seed)))
    first, second, third = page.likes.split()
    page.send(do="remove", list="likes", id=second)
    assert page.likes == f"{first} {third}"
    page.send(do="clear", list="likes")
    assert not page.answer["added"]
    assert page.likes == ""


def test_two_pages_know_nothing_of_each_other(tmp_path: Path) -> None:
    one, two = Page(ImageStore(tmp_path)), Page(ImageStore(tmp_path))
    one.send(do="add", list="likes", image=data_url(noisy()))
    two.send(do="clear", list="dislikes")
    assert one.likes
    assert two.likes == ""


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ({"do": "add", "list": "likes", "image": "data:image/png;base64," + "A" * 64}, "not one of PNG"),
        ({"do": "add", "list": "likes", "image": "/etc/passwd"}, "paths are not accepted"),
        ({"do": "add", "list": "likes", "image": None}, "did not arrive"),
        ({"do": "add", "list": "../likes", "image": "x"}, "invalid message"),
        ({"do": "remove", "list": "likes", "id": "../../x"}, "by its hash"),
        ({"do": "weight", "list": "likes", "id": "a" * 64, "weight": None}, "weight"),
        ({"do": "restore", "list": "likes", "images": None}, "invalid message"),
        ({"do": "restore", "list": "likes", "images": ["a" * 64]}, "invalid message"),
        ({"do": "restore", "list": "likes", "images": "../../etc/passwd"}, "by its hash"),
        ({"do": "restore", "list": "likes", "images": data_url(noisy(1))}, "by its hash"),
        ({"do": "restore", "list": "likes", "images": "a" * 64 + ":9"}, "weight"),
        ({"do": "restore", "list": "likes", "images": " ".join(f"{n:064x}" for n in range(99))}, "at most"),
        ({"do": "replace", "list": "likes", "images": "../../etc/passwd"}, "by its hash"),
        ({"do": "fly", "list": "likes", "id": "a" * 64}, "invalid message"),
    ],
)
def test_a_failed_action_changes_nothing_and_says_why(page: Page, action: dict[str, Any], sentence: str) -> None:
    page.send(do="add", list="likes", image=data_url(noisy()))
    before = page.likes
    page.send(**action)
    assert not page.answer["added"]
    assert page.likes == before
    assert page.answer["ids"] == [None]
    assert sentence in page.answer["note"]


def test_a_kept_list_comes_back_without_switching_fabric_on(page: Page) -> None:
    one, two = (page.store.add(noisy(seed)) for seed in (1, 2))
    page.send(do="restore", list="dislikes", images=f"{one}:0.5 {two}")
    assert not page.answer["added"]
    assert (page.likes, page.dislikes) == ("", f"{one}:0.5 {two}")
    assert page.answer["note"] == ""


def test_a_list_is_replaced_as_it_is(page: Page) -> None:
    one, gone = page.store.add(noisy()), "a" * 64
    page.send(do="add", list="dislikes", image=data_url(noisy(2)))
    for line in (f"{one}:0.5 {gone}", "", one):
        page.send(do="replace", list="dislikes", images=line)
        assert (page.dislikes, page.answer["note"], page.answer["added"]) == (line, "", False)


def test_a_kept_picture_that_is_gone_is_left_out_and_told(page: Page) -> None:
    here, gone = page.store.add(noisy()), "a" * 64
    page.send(do="restore", list="likes", images=f"{gone} {here}")
    assert page.likes == here
    assert page.answer["note"] == "The liked image aaaaaaaa… is not on this machine and was left out."
    assert len(stored(page.store)) == 1


def test_what_was_liked_since_stays_beside_the_kept_list(page: Page) -> None:
    page.send(do="add", list="likes", image=data_url(noisy(1)))
    new, old = page.likes, page.store.add(noisy(2))
    page.send(do="restore", list="likes", images=f"{old} {new}")
    assert page.likes == f"{old} {new}"
    page.send(do="restore", list="dislikes", images=new)  # never on both lists
    assert (page.likes, page.dislikes) == (old, new)


def test_an_unreadable_weight_is_refused(page: Page) -> None:
    page.send(do="add", list="likes", image=data_url(noisy()))
    name = page.likes
    for weight in (-1, 5, float("nan"), True):
        page.send(do="weight", list="likes", id=name, weight=weight)
        assert "weight" in page.answer["note"]
        assert page.likes == name


def test_a_full_list_says_so(page: Page) -> None:
    page.likes = " ".join(f"{number:064x}" for number in range(MAX_IMAGES))
    page.send(do="add", list="likes", image=data_url(noisy()))
    assert "full" in page.answer["note"]
    assert len(page.likes.split()) == MAX_IMAGES


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=70)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["nonce", "actions", "do", "list", "id", "image", "images", "weight"]), inner, max_size=4
        ),
    ),
    max_leaves=8,
)


@given(message=st.one_of(st.text(max_size=200), json_values.map(json.dumps)), likes=st.text(max_size=100))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_message_is_answered(page: Page, message: str, likes: str) -> None:
    outcome = answer_message(message, likes, "", page.store)
    assert set(json.loads(outcome.answer)) == {"nonce", "ids", "note", "added"}
    assert LINE.fullmatch(outcome.likes)
    assert LINE.fullmatch(outcome.dislikes)
