"""Sentences: the built-in ones are many and speak of the word; texts, files and local models are checked."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_methods.checks import SettingsError
from lib_methods.pix2pix_zero.sentences import (
    KINDS,
    MAX_FILE_BYTES,
    MAX_SENTENCES,
    built_in_sentences,
    parse_sentences,
    read_text,
    sentences_from_model,
)
from lib_methods.pix2pix_zero.words import SentencesError, clean_word, mentions, with_article

PHRASES = {
    "cat": "a cat",
    "old man": "an old man",
    "Elephant": "an Elephant",
    "hour": "an hour",
    "unicorn": "a unicorn",
    "uninvited guest": "an uninvited guest",
    "European castle": "a European castle",
    "umbrella": "an umbrella",
    "used car": "a used car",
    "one-eyed cat": "a one-eyed cat",
    "SUV": "an SUV",
    "UFO": "a UFO",
    "8-bit cat": "an 8-bit cat",
    "3d model": "a 3d model",
    "église": "an église",
    "cats": "cats",
    "two cats": "two cats",
    "3 cats": "3 cats",
    "people": "people",
    "snow": "snow",
    "fresh bread": "fresh bread",
    "bowl of apples": "a bowl of apples",
    "apples in a bowl": "apples in a bowl",
    "bus": "a bus",
    "glass": "a glass",
    "lens": "a lens",
    "iris": "an iris",
    "the moon": "the moon",
    "A cat": "A cat",
    "my house": "my house",
    "Barack Obama": "Barack Obama",
    "猫": "猫",
    "кот": "кот",
}


@pytest.mark.parametrize(("phrase", "expected"), PHRASES.items())
def test_a_word_gets_the_article_that_english_gives_it(phrase, expected):
    assert with_article(phrase) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("word", ["cat", "old", "pixel art", "{word} {noun} {} {subject}", "the moon", "猫", "x" * 100])
def test_there_are_several_hundred_different_sentences_and_all_speak_of_the_word(kind, word):
    sentences = built_in_sentences(word, kind)
    assert 250 <= len(sentences) == len(set(sentences)) <= 500
    assert all(mentions(sentence, word) for sentence in sentences)
    assert all(len(sentence.replace(word, "").split()) <= 14 for sentence in sentences)  # one chunk of 77 tokens


@pytest.mark.parametrize("kind", KINDS)
def test_source_and_target_get_the_same_sentences_with_only_the_word_changed(kind):
    pairs = zip(built_in_sentences("cat", kind), built_in_sentences("dog", kind))
    swapped = [before.replace("cat", "dog") == after.replace("cat", "dog") for before, after in pairs]
    assert all(swapped)


def test_no_sentence_has_a_wrong_article_or_a_gap():
    for kind in KINDS:
        for sentence in built_in_sentences("old", kind):
            assert "a old" not in sentence.replace("a old man", "") or kind == "style"
            assert "  " not in sentence and "{" not in sentence and sentence == sentence.strip()


@pytest.mark.parametrize("word", ["", "   ", None, 3, "x" * 101, "a\x00b", "a\u2028b" + "\x07"])
def test_words_that_cannot_be_used_are_refused_with_a_sentence(word):
    with pytest.raises(SentencesError, match=r"\.$"):
        built_in_sentences(word)


def test_another_kind_is_refused():
    with pytest.raises(SettingsError, match="one of"):
        built_in_sentences("cat", "verb")


@given(st.text(max_size=120))
def test_any_text_for_a_word_is_used_or_refused_with_a_sentence(word):
    try:
        clean = clean_word(word)
    except SentencesError:
        return
    assert clean == clean_word(clean) and with_article(clean).endswith(clean)


def test_a_word_is_found_whole_in_any_case_and_as_a_plural():
    assert mentions("Two CATS on a wall", "a cat") and mentions("the cat's ear", "cat")
    assert not mentions("a catalogue", "cat") and not mentions("a dog", "cat")
    assert mentions("一只猫坐着", "猫")
    assert mentions("an old   man.", "old man")


def test_a_text_gives_its_lines_without_comments_blanks_and_repeats():
    text = "# my list\n\na cat\r\n  a   cat \n{word} in the sun\nnothing at all\n"
    assert parse_sentences(text, "cat") == ["a cat", "a cat in the sun", "nothing at all"]
    assert parse_sentences("{word} in the sun", "an owl") == ["an owl in the sun"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no sentence"),
        (b"\n# only this\n \n", "no sentence"),
        (b"a dog\na horse\n", "mentions"),
        (b"a cat\x00\x01\x02", "binary"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "UTF-8"),
        ("a cat".encode("utf-16"), "UTF-16"),
        (b"a cat\n" + b"y" * 1001, "Line 2"),
        (b"a cat " * (MAX_FILE_BYTES // 6 + 1), "too large"),
        (b"".join(b"a cat %d\n" % number for number in range(MAX_SENTENCES + 1)), "too many"),
    ],
)
def test_files_that_are_no_list_of_sentences_are_refused_with_a_sentence(tmp_path, content, told):
    file = tmp_path / "sentences.txt"
    file.write_bytes(content)
    with pytest.raises(SentencesError, match=told) as caught:
        parse_sentences(read_text(file), "cat")
    assert str(tmp_path) not in str(caught.value)


def test_a_file_is_read_with_windows_line_ends_and_mark(tmp_path):
    file = tmp_path / "sentences.txt"
    file.write_bytes("\ufeffa cat\r\na café with a cat\r\n".encode())
    assert parse_sentences(read_text(file), "cat") == ["a cat", "a café with a cat"]


def test_what_is_no_file_is_refused_at_once(tmp_path):
    places: list[Any] = [tmp_path, tmp_path / "none.txt", "a\x00b", "x" * 5000]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
        places.append(tmp_path / "pipe")
    for place in places:
        with pytest.raises(SentencesError, match="cannot be found"):
            read_text(place)


@given(st.text(max_size=400))
def test_any_text_is_used_or_refused_with_a_sentence(text):
    try:
        found = parse_sentences(text, "cat")
    except SentencesError:
        return
    assert found and all(sentence.strip() for sentence in found)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal model that has learnt a few captions by heart."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models") / "writer"
    lines = [f" a {colour} cat in the {place}\n-" for colour in ("red", "grey", "big") for place in ("sun", "rain")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate([*alphabet, "<end>"])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=257, n_positions=512, n_embd=32, n_layer=1, n_head=2, eos_token_id=256, bos_token_id=256
        )
        model = transformers.GPT2LMHeadModel(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(150):
            torch.manual_seed(step)
            order = torch.randperm(len(lines)).tolist()
            ids = tokenizer(["-" + "".join(lines[place] for place in order)], return_tensors="pt")["input_ids"]
            start = int(torch.randint(0, 200, ()))
            places = torch.arange(start, start + ids.shape[1])[None]
            loss = model(input_ids=ids, position_ids=places, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_model_writes_sentences_that_mention_the_word(writer):
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found = sentences_from_model(writer, "cat", 12, seed=1)
    assert torch.equal(torch.rand(2), expected)  # the host's own generator continues as if nothing had happened
    assert len(found) >= 10 and len(set(found)) == len(found) <= 12
    assert all(mentions(sentence, "cat") and not sentence.startswith("-") for sentence in found)
    assert sentences_from_model(writer, "cat", 12, seed=1) == found


def test_a_model_that_does_not_speak_of_the_word_is_said_to(writer):
    with pytest.raises(SentencesError, match='only [0-9] sentences about "zebra"'):
        sentences_from_model(writer, "a zebra", 10)


def test_a_model_without_transformers_is_refused_with_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SentencesError, match="transformers"):
        sentences_from_model(tmp_path, "cat")


def test_folders_that_hold_no_model_are_refused_and_nothing_in_them_is_run(tmp_path, monkeypatch):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}})
    )
    (evil / "evil.py").write_text("raise SystemExit('this code must not run')")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}))
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("[" * 10000)
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, evil, pickled, broken, tmp_path / "none", "gpt2", "a\x00b"):
        with pytest.raises(SentencesError, match="cannot be loaded") as caught:
            sentences_from_model(place, "cat")
        assert str(tmp_path) not in str(caught.value)
    assert not any(name.split(".")[-1] == "evil" for name in sys.modules)


@pytest.mark.parametrize("count", [0, 5001, True, "3"])
def test_a_wrong_number_of_sentences_is_refused(tmp_path, count):
    with pytest.raises(SettingsError, match="number of sentences"):
        sentences_from_model(tmp_path, "cat", count)
