"""Prompts become the tokens and embeddings that IF was trained with, whatever library reads the tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib_methods.cascade.folder import Part, read_stage
from lib_methods.cascade.parts import Parts
from lib_methods.cascade.text import Encoder, embeddings, load_tokenizer, tokens, unigram_tokenizer
from lib_methods.errors import UserError
from tests.cascade.models import WORDS

CPU = torch.device("cpu")
Folders = tuple[Path, Path, Path]


@pytest.fixture
def t5(folders: Folders) -> Part:
    part = read_stage(folders[0]).text
    assert part is not None
    return part


@pytest.mark.parametrize(
    "prompt", ["", "a photo of a cat", "  two   spaces ", "unknown words, 3!", "red " * 90, " ".join(WORDS)]
)
def test_an_older_library_reads_the_same_tokens(t5: Part, prompt: str) -> None:
    usual, built = load_tokenizer(t5), unigram_tokenizer(t5.folder / "tokenizer" / "tokenizer.json")
    for one, other in zip(tokens(usual, prompt)[:2], tokens(built, prompt)[:2]):
        assert torch.equal(one, other)


def test_an_embedding_is_kept_by_prompt_encoder_and_precision(t5: Part, tmp_path: Path) -> None:
    one = Encoder(t5, CPU, "fp32")
    assert one.file(tmp_path, "A cat ") == one.file(tmp_path, "a cat")  # small letters, as IF was trained
    assert one.file(tmp_path, "a dog") != one.file(tmp_path, "a cat")
    assert Encoder(t5, CPU, "bf16").file(tmp_path, "a cat") != one.file(tmp_path, "a cat")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_comes_from_disk_is_what_was_encoded(t5: Part, tmp_path: Path, precision: str) -> None:
    encoder, parts = Encoder(t5, CPU, precision), Parts()
    made = embeddings(encoder, ["a cat", ""], tmp_path, parts)
    assert parts.most == 1 and made["a cat"].shape == (1, 77, 16)
    parts.most = 0
    again = embeddings(encoder, ["a cat", ""], tmp_path, parts)
    assert parts.most == 0
    assert all(torch.equal(made[prompt], again[prompt]) for prompt in made)
    # a file that was cut off is made again
    file = encoder.file(tmp_path, "a cat")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(embeddings(encoder, ["a cat"], tmp_path, parts)["a cat"], made["a cat"])


def test_half_precision_is_near_the_whole(t5: Part, tmp_path: Path) -> None:
    whole, half = (
        embeddings(Encoder(t5, CPU, kind), ["a cat"], tmp_path, Parts())["a cat"] for kind in ("fp32", "bf16")
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.1, rtol=0.1)


def test_8_bits_need_a_gpu(t5: Part, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 bit needs"):
        embeddings(Encoder(t5, CPU, "8 bit"), ["a cat"], tmp_path, Parts())


def test_an_embedding_that_cannot_be_kept_is_said_and_stops_nothing(t5: Part, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    said: list[str] = []
    found = embeddings(Encoder(t5, CPU, "fp32"), ["a cat"], tmp_path / "file" / "texts", Parts(), said.append)
    assert found["a cat"].shape == (1, 77, 16)
    assert len(said) == 1 and "could not be kept on disk" in said[0]
