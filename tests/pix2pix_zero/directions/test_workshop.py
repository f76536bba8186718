"""The library of directions as a page or a request uses it: what is made, and what is refused with a sentence."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods.checks import SettingsError
from lib_methods.pix2pix_zero.directions import Direction, Origin
from lib_methods.pix2pix_zero.library import DirectionLibrary, save_direction
from lib_methods.pix2pix_zero.workshop import PATH, Workshop, add_routes
from lib_methods.webui.door import Door, parse_accounts

WORDS = {"source": "cat", "target": "dog"}


class Encoder:
    """Every sentence gets its own numbers."""

    clip_skip, checkpoint = 2, "tiny"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Any) -> Tensor:
        self.seen += texts
        return torch.stack([torch.full((77, 8), float(sum(map(ord, text)) % 97)) for text in texts])


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def workshop(tmp_path: Path, encoder: Encoder) -> Workshop:
    return Workshop(DirectionLibrary(tmp_path / "directions"), lambda work: work(encoder), tmp_path / "text")


@pytest.fixture
def client(workshop: Workshop) -> Any:
    return client_of(workshop)


def client_of(workshop: Workshop, logins: str | None = None) -> Any:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    app = FastAPI()
    add_routes(app, workshop, Door(parse_accounts(logins)))
    return TestClient(app)


def pt(tensor: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tensor, file)
    return file.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_a_direction_is_built_listed_combined_and_deleted(client: Any, workshop: Workshop) -> None:
    made = client.post(PATH, json={"name": "cat to dog", **WORDS})
    assert made.status_code == 200
    record = made.json()
    assert (record["source"], record["target"], record["clip_skip"], record["model"]) == ("cat", "dog", 2, "tiny")
    assert record["source_count"] > 200
    assert client.get(PATH).json() == [record]
    back = client.post(PATH, json={"name": "back", "directions": "cat to dog: -0.5"}).json()
    assert (back["source"], back["target"]) == ("dog", "cat")
    there, back = (workshop.library.get(name).context for name in ("cat to dog", "back"))
    assert torch.allclose(back, -0.5 * there)
    assert client.post(PATH, json={"name": "both", "directions": "cat to dog: 1, back: 2"}).status_code == 200
    assert workshop.library.get("both").context.abs().max() < 1e-4
    assert client.delete(PATH, params={"name": "back"}).json() == {"name": "back"}
    assert client.delete(PATH, params={"name": "back"}).status_code == 404
    assert workshop.names() == ["both", "cat to dog"]


def test_styles_have_sentences_and_a_failing_build_leaves_what_was_there(client: Any, workshop: Workshop) -> None:
    words = {"source": "cubism", "target": "pixel art", "words_are": "style"}
    assert client.post(PATH, json={"name": "d", **words}).json()["source_count"] > 250
    assert client.post(PATH, json={"name": "d", "source": "cat", "target": "cat"}).status_code == 422
    assert [entry["source"] for entry in workshop.records()] == ["cubism"]


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"source_sentences": "a cat sleeps\n\n# no\na cat sits", "target_sentences": ["a dog\nruns"]}, 3),
        ({"source_sentences": "{word} here\nthere {word} is"}, 4),
        ({"target_sentences": ["{word} here"]}, 2),
    ],
)
def test_the_users_own_sentences(client: Any, encoder: Encoder, fields: dict[str, Any], seen: int) -> None:
    assert client.post(PATH, json={"name": "mine", **WORDS, **fields}).status_code == 200
    assert len(encoder.seen) == seen
    assert all("{word}" not in sentence for sentence in encoder.seen)
    assert {"a dog runs", "a dog here"} & set(encoder.seen)


REFUSED: list[tuple[Any, str]] = [
    ({**WORDS}, "Give the direction a name"),
    ({"name": 3, **WORDS}, "Give the direction a name"),
    ({"name": "a" * 81, **WORDS}, "too long"),
    ({"name": "a, b", **WORDS}, "must not contain"),
    ({"name": "a\u202eb", **WORDS}, "invisible characters"),
    ({"name": "x", "source": "cat"}, "Enter what the image shows"),
    ({"name": "x", "source": "cat", "target": "Cat"}, "are the same"),
    ({"name": "x", "source": ["cat"], "target": "dog"}, "must be text"),
    ({"name": "x", **WORDS, "words_are": "verb"}, "What the words are"),
    ({"name": "x", **WORDS, "source_sentences": "a cat"}, "about both words"),
    ({"name": "x", **WORDS, "source_sentences": "a horse", "target_sentences": "a dog"}, 'mentions "cat"'),
    ({"name": "x", **WORDS, "source_sentences": "# \n", "target_sentences": "a dog"}, "no sentence"),
    ({"name": "x", **WORDS, "source_sentences": 5}, "text, one per line"),
    ({"name": "x", **WORDS, "source_sentences": "a cat\n" * 200_000}, "too long"),
    ({"name": "x", **WORDS, "text_model": "../secrets"}, "no such text model"),
    ({"name": "x", **WORDS, "text_model": "/etc"}, "no such text model"),
    ({"name": "x", "directions": "nothing: 1"}, "no direction"),
    ({"name": "x", "directions": ""}, "Name the directions"),
    ({"name": "x", "directions": 7}, "Name the directions"),
    ({"name": "x", "directions": "a: 1 | b: 2"}, "without bars"),
    ({"name": "x", "directions": "a: 900"}, "must be between"),
    ({"name": "x", "directions": "a: 1", **WORDS}, "Make a direction from"),
    ({"name": "x", "file": "!"}, "not valid base64"),
    ({"name": "x", "file": 1}, "as base64"),
    ({"name": "x", "file": encoded(b"rubbish")}, "damaged, or something else"),
    ({"name": "x", "source_file": encoded(b"rubbish")}, "two .pt files"),
    ({"name": "x", "source_file": encoded(b"rubbish"), "target_file": encoded(b"rubbish")}, "not an embedding"),
    ({"nam": "x"}, 'did you mean "name"'),
    ([], ""),
]


@pytest.mark.parametrize(("body", "sentence"), REFUSED)
def test_what_cannot_be_used_is_refused_with_a_sentence(
    client: Any, workshop: Workshop, tmp_path: Path, body: Any, sentence: str
) -> None:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 422
    assert sentence in json.dumps(answer.json(), ensure_ascii=False).replace('\\"', '"')
    assert str(tmp_path) not in answer.text
    assert workshop.names() == []


def test_the_originals_files_are_converted_and_named_after_their_words(client: Any, workshop: Workshop) -> None:
    before, after = torch.randn(2, 1, 77, 768)
    files = {"source_file": encoded(pt(before)), "target_file": encoded(pt(after))}
    assert client.post(PATH, json={"name": "ours", **files, **WORDS}).json()["target"] == "dog"
    assert torch.equal(workshop.library.get("ours").context, (after - before)[0])
    assert client.post(PATH, json={"name": "../../x", **files}).status_code == 200  # a name is never a path
    assert workshop.names() == ["../../x", "ours"]
    assert {file.suffix for file in workshop.library.folder.iterdir()} == {".safetensors"}
    assert client.post(PATH, json={"name": "x", **files, "file": files["source_file"]}).status_code == 422
    assert client.post(PATH, json={"name": "x", **files, "source": "../x\0", "target": "dog"}).status_code == 422


class Evil:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.write_text, (self.path, "ran"))


def test_files_with_code_in_them_are_refused_and_run_nothing(client: Any, workshop: Workshop, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(mark)))
        archive.writestr("archive/version", "3")
    good = encoded(pt(torch.randn(1, 77, 8)))
    for bad in (pickle.dumps(Evil(mark)), pt({"cond": Evil(mark)}), zipped.getvalue(), pt(torch.randn(3))):
        for files in (
            {"source_file": good, "target_file": encoded(bad)},
            {"source_file": encoded(bad), "target_file": good},
        ):
            assert client.post(PATH, json={"name": "x", **files}).status_code == 422
        assert client.post(PATH, json={"name": "x", "file": encoded(bad)}).status_code == 422
    assert not mark.exists()
    assert workshop.names() == []


def test_a_direction_travels_as_a_file(workshop: Workshop, tmp_path: Path) -> None:
    made = Direction(torch.randn(77, 8), Origin("cat", "dog"))
    file = tmp_path / "my: direction.safetensors"
    save_direction(made, file, "cat: dog")
    assert workshop.bring_in("", [file]) == "cat  dog"
    assert workshop.bring_in("other", [file]) == "other"
    assert torch.equal(workshop.library.get("other").context, made.context)
    for files in ([], [file, file], [tmp_path / "a.pt"], [tmp_path / "gone.safetensors"], [tmp_path / "notes.txt"]):
        with pytest.raises(SettingsError):
            workshop.bring_in("x", files)
    huge = tmp_path / "huge.safetensors"
    with huge.open("wb") as opened:
        opened.truncate(64 * 2**20)
    with pytest.raises(SettingsError, match="too large"):
        workshop.bring_in("x", [huge])


def test_routes_ask_for_the_logins_of_the_hosts_api(workshop: Workshop) -> None:
    client = client_of(workshop, "anna:secret,bert:more:colons")
    assert client.get(PATH).status_code == 401
    for name, word, status in (
        ("anna", "secret", 200),
        ("anna", "more", 401),
        ("bert", "more:colons", 200),
        ("", "", 401),
    ):
        assert client.get(PATH, auth=(name, word)).status_code == status
    assert client.post(PATH, json={"name": "x", **WORDS}).status_code == 401
    assert client.delete(PATH, params={"name": "x"}).status_code == 401


def test_another_website_cannot_write_a_direction_through_a_form(client: Any, workshop: Workshop) -> None:
    body = json.dumps({"name": "x", **WORDS})
    assert client.post(PATH, content=body, headers={"content-type": "text/plain"}).status_code == 422
    assert workshop.names() == []
