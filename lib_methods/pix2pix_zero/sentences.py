"""Several hundred sentences about a word: from built-in templates, the user's own text, or a local language model.

An edit direction is the mean over many sentences, so that what the sentences say besides the word cancels out. The
same templates serve source and target, in the same order. A language model needs transformers; nothing is
loaded from the network, and no code that comes with a model is run.
"""

from __future__ import annotations

import codecs
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lib_methods.checks import check_choice, check_number, seen
from lib_methods.pix2pix_zero.words import (
    SentencesError,
    article_of,
    clean_word,
    mentions,
    with_article,
    without_article,
)

OBJECT, STYLE, ADJECTIVE = "object", "style", "adjective"
KINDS = (OBJECT, STYLE, ADJECTIVE)

MAX_FILE_BYTES = 2**20
MAX_SENTENCES = 5000
MAX_SENTENCE = 1000
PLACEHOLDER = "{word}"
AT_A_TIME = 8
_NEW_TOKENS = 40
_FEWEST = 10
_EXAMPLES = (
    "a photo of {} in front of a white wall",
    "{} beside a road, early in the morning",
    "someone painted {} on an old piece of wood",
)

_PICTURES = (
    "a photo of {}|a photograph of {}|a picture of {}|a close-up of {}|a wide shot of {}|a snapshot of {}|"
    "a bright photo of {}|a dark photo of {}|a black and white photo of {}|a drawing of {}|an oil painting of {}|"
    "an illustration of {}|a film still with {}|a postcard with {}|nothing but {}|{}"
).split("|")
_PLACES = (
    "| in a garden| beside a quiet road| in front of a brick wall| on a wooden table| near the sea|"
    " in the middle of a field| in a small room| by the window| in the morning light| at night| on a cloudy day|"
    " under a tree| in the city| against a plain background|, seen from the side"
).split("|")
_TALES = (
    "we came across {}|she was looking at {}|he could not stop thinking about {}|the children pointed at {}|"
    "nobody had noticed {}|they sent us a picture of {}|everyone at the table talked about {}|"
    "there was room for {}|my neighbour has always wanted {}|the story begins with {}"
).split("|")
_TIMES = (
    "| this morning| on the way home| last summer| a minute ago| after the rain| for a long while| once more|"
    " that afternoon| in the end"
).split("|")
_SUBJECTS = (
    "a house|a cat|a dog|a horse|a woman|a man|a child|a street|a mountain|a river|a forest|a tree|a flower|"
    "a bowl of fruit|a bird|a ship|a car|a bridge|a castle|a city at night|a village in winter|"
    "a room with a window|a crowd of people|the sea|the sky in the evening"
).split("|")
_STYLES = (
    "{subject} in the style of {word}|{subject}, {word} style|{word} style picture of {subject}|"
    "a picture of {subject} that looks like {word}|{subject} as {word}|{word}, showing {subject}|"
    "an artwork of {subject}, done as {word}|{subject}, everything in the manner of {word}|{word} of {subject}|"
    "typical {word} with {subject}|what {subject} looks like in {word}|"
    "{subject} rendered as {word}, full of detail"
).split("|")
_NOUNS = (
    "house|cat|dog|horse|woman|man|child|street|mountain|river|forest|tree|flower|table|bird|ship|car|bridge|"
    "castle|city|village|room|garden|sky|landscape"
).split("|")
_TRAITS = (
    "a photo of {one}|a picture of {one} at noon|a close-up of {one}|a painting of {one}|{one} in the distance|"
    "{one} in the middle of the picture|the {noun} is {word}|a {noun} that is {word}|"
    "this {noun} looks very {word}|we passed {one} on our way|nothing is as {word} as this {noun}|"
    "{word}: a {noun} and its surroundings"
).split("|")


def built_in_sentences(word: str, kind: str = OBJECT) -> list[str]:
    """Several hundred different sentences about the word, always the same.

    word: what the image shows or should become, with or without an article: "cat", "an old man", "the moon".
    kind: "object" for things and beings, "style" for styles ("watercolour", "pixel art"), "adjective" for
    properties ("snowy", "golden").

    Raises `SentencesError` for a word that cannot be used, `SettingsError` for another kind.
    """
    word = clean_word(word)
    check_choice("The kind of word", kind, KINDS)
    if kind == OBJECT:
        thing = with_article(word)
        told = itertools.chain(itertools.product(_PICTURES, _PLACES), itertools.product(_TALES, _TIMES))
        # Not str.format: the user's word may hold braces.
        return [start.replace("{}", thing) + end for start, end in told]
    word = without_article(word)
    if kind == STYLE:
        return [
            frame.replace("{subject}", subject).replace(PLACEHOLDER, word)
            for frame, subject in itertools.product(_STYLES, _SUBJECTS)
        ]
    return [
        frame.replace("{one}", f"{article_of(word)} {PLACEHOLDER} {{noun}}")
        .replace("{noun}", noun)
        .replace(PLACEHOLDER, word)
        for frame, noun in itertools.product(_TRAITS, _NOUNS)
    ]


def parse_sentences(text: str, word: str) -> list[str]:
    """The sentences of a text, one per line, in their order and without repeats.

    Empty lines and lines that begin with # are left out. `{word}` in a line stands for the word with its article, so
    that one text serves source and target.

    Raises:
        SentencesError: no line is left, a line or the text is too long, or the word is in none of the sentences.
    """
    word = clean_word(word)
    found: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        sentence = " ".join(line.split())
        if not sentence or sentence.startswith("#"):
            continue
        if len(sentence) > MAX_SENTENCE:
            raise SentencesError(f"Line {number} is too long for a sentence: at most {MAX_SENTENCE} characters.")
        found[sentence.replace(PLACEHOLDER, with_article(word))] = None
        if len(found) > MAX_SENTENCES:
            raise SentencesError(f"There are too many sentences: at most {MAX_SENTENCES}.")
    if not found:
        raise SentencesError("There is no sentence in the text; write one per line.")
    if not any(mentions(sentence, word) for sentence in found):
        raise SentencesError(f'No sentence of the text mentions "{without_article(word)}".')
    return list(found)


def read_text(path: str | os.PathLike[str]) -> str:
    """What is in a text file in UTF-8. Raises `SentencesError` for a file that is missing, larger than 1 MiB or
    not a text."""
    file = Path(path)
    try:
        if not file.is_file():  # nor a folder, a device or a pipe, which would never end
            raise FileNotFoundError
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError):  # a ValueError: a path with a zero in it
        raise SentencesError("The text file cannot be found or read.") from None
    if len(content) > MAX_FILE_BYTES:
        raise SentencesError("The text file is too large: at most 1 MiB.")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SentencesError("The text file is in UTF-16; save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SentencesError("The file is not UTF-8 text.") from None
    if any(character < " " and character not in "\t\n\r\f" for character in text):
        raise SentencesError("This is not a text file: it holds binary data.")
    return text


def sentences_from_model(
    folder: str | os.PathLike[str],
    word: str,
    count: int = 200,
    seed: int = 0,
) -> list[str]:
    """Let a causal language model write up to `count` different sentences that mention the word.

    folder: a model as transformers saves it, with tokenizer and weights as .safetensors. count: 1 to 5000; as many as
    the model finds in a reasonable number of attempts come back, but at least ten (or `count`).
    The same seed gives the same sentences on the same machine; the process's random generator is left as it was.

    Raises:
        SentencesError: transformers is missing, the folder holds no such model, or it writes too few sentences.
    """
    word = clean_word(word)
    count = int(check_number("The number of sentences", count, 1, MAX_SENTENCES))
    tokenizer, model = _load(folder)
    thing = with_article(word)
    lines = "\n".join(f"- {example.replace('{}', thing)}" for example in _EXAMPLES)
    prompt = f"Captions of pictures, one per line. Every picture shows {thing}.\n{lines}\n-"
    found: dict[str, None] = {}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.random.default_generator.manual_seed(seed)
        for _ in range(3 + 4 * count // AT_A_TIME):
            if len(found) >= count:
                break
            for text in _write(tokenizer, model, prompt):
                found.update(dict.fromkeys(_captions(text, word)))
    if len(found) < min(count, _FEWEST):
        raise SentencesError(
            f'The text model wrote only {len(found)} sentences about "{without_article(word)}". '
            "Use a larger model, the built-in sentences or a text file."
        )
    return list(found)[:count]


def _load(folder: str | os.PathLike[str]) -> tuple[Any, Any]:
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
        return tokenizer, model.eval()
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
