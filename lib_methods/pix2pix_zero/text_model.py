"""Sentences about a word from a language model on the user's disk. Needs transformers, loads nothing from the network
and runs no code that comes with a model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lib_methods.checks import check_number
from lib_methods.pix2pix_zero.sentences import MAX_SENTENCES
from lib_methods.pix2pix_zero.words import SentencesError, clean_word, mentions, with_article, without_article
from lib_methods.webui.names import seen

AT_A_TIME = 8
_NEW_TOKENS = 40
_FEWEST = 10
_EXAMPLES = (
    "a photo of {} in front of a white wall",
    "{} beside a road, early in the morning",
    "someone painted {} on an old piece of wood",
)


def sentences_from_model(
    folder: str | os.PathLike[str],
    word: str,
    count: int = 200,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], bool] | None = None,
) -> list[str]:
    """Let a causal language model write up to `count` different sentences that mention the word.

    folder: a model as transformers saves it, with tokenizer and weights as .safetensors. count: 1 to 5000; as many as
    the model finds in a reasonable number of attempts come back, but at least ten (or `count`).
    progress: (sentences found, wanted) -> whether to go on. The same seed gives the same sentences on the same machine;
    the process's random generators are left as they were.

    Raises:
        SentencesError: transformers is missing, the folder holds no such model, or it writes too few sentences.
    """
    word = clean_word(word)
    count = int(check_number("The number of sentences", count, 1, MAX_SENTENCES))
    tokenizer, model = _load(folder, torch.device(device))
    thing = with_article(word)
    lines = "\n".join(f"- {example.replace('{}', thing)}" for example in _EXAMPLES)
    prompt = f"Captions of pictures, one per line. Every picture shows {thing}.\n{lines}\n-"
    found: dict[str, None] = {}
    with _seeded(seed, torch.device(device)), torch.inference_mode():
        for _ in range(3 + 4 * count // AT_A_TIME):
            if len(found) >= count or (progress is not None and not progress(len(found), count)):
                break
            for text in _write(tokenizer, model, prompt):
                found.update(dict.fromkeys(_captions(text, word)))
    if len(found) < min(count, _FEWEST):
        raise SentencesError(
            f'The text model wrote only {len(found)} sentences about "{without_article(word)}". '
            "Use a larger model, the built-in sentences or a text file."
        )
    return list(found)[:count]


def _load(folder: str | os.PathLike[str], device: torch.device) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise SentencesError(
            "Sentences from a text model need the package transformers, which is not installed. "
            "Use the built-in sentences or a text file."
        ) from None
    try:
        # Anything but a folder would be taken for a name on the model hub.
        path = str(Path(folder).resolve(strict=True) / "")
        if not (Path(path) / "config.json").is_file():
            raise FileNotFoundError
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(path, **safe)
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **safe)
        return tokenizer, model.to(device).eval()
    except Exception as error:  # a damaged model fails in any way there is
        raise SentencesError(
            "The text model cannot be loaded. Its folder must hold a causal language model as transformers saves it, "
            "with its tokenizer and weights as .safetensors; models that need their own code are not run."
        ) from error


def _write(tokenizer: Any, model: Any, prompt: str) -> list[str]:
    """What the model adds to the prompt, several times."""
    inputs = tokenizer([prompt], return_tensors="pt").to(model.device)
    length = inputs["input_ids"].shape[1]
    end = tokenizer.eos_token_id
    written = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=True,
        top_p=0.95,
        temperature=1.0,
        max_new_tokens=_NEW_TOKENS,
        num_return_sequences=AT_A_TIME,
        pad_token_id=0 if end is None else end,
    )
    return [str(text) for text in tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)]


def _captions(text: str, word: str) -> Iterator[str]:
    """The lines that mention the word, without bullets, numbers and quotes; the last one is cut off in its middle,
    unless it is the only one."""
    lines = text.split("\n")
    for line in lines[:-1] or lines:
        caption = " ".join(re.sub(r"^\s*(?:[-*•]|\d+[.)])?\s*", "", line).strip(" \t\"'“”").split())
        if 3 <= len(caption) <= 300 and seen(caption) == caption and mentions(caption, word):
            yield caption


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sample from the seed; afterwards the generators go on as if nothing had been."""
    cuda = device.type == "cuda"
    devices = [torch.cuda.current_device() if device.index is None else device.index] if cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(devices[0]):
                torch.cuda.manual_seed(seed)
        yield
