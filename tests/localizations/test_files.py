"""`localizations/` has every fixed text of the pack's own controls in every language, and nothing else."""

from __future__ import annotations

import json
import re

import pytest

from tests.localizations.texts import ROOT, all_texts

FILES = sorted((ROOT / "localizations").glob("*.json"))
NAMES = {
    *("APG", "Alpha", "CFG-Zero*", "Guidance", "LoRA", "MaHiRo", "PAG", "SEG", "Skimmed CFG", "Tau"),
    *("AD", "MEAN", "STD", "ZERO"),
}
"""Of methods, as the infotext has them."""
TECHNICAL = {"ddim", "direct", "ddpm"}
EXAMPLES = {
    *("a cat on a sofa", "a photo of {subject} on the beach", "an oil painting of {subject}", "cat", "dog"),
    *("cat to dog", "cat to dog: 1, day to night: -0.5", "dog, coffee mug, person ..."),
}
"""What one types: models read English."""
UNSEEN = {"Sampler", "Ticked"}
SYMBOLS = {"✕"}
KEPT = NAMES | TECHNICAL | EXAMPLES | UNSEEN | SYMBOLS

FABRIC, WIDGETS, ZERO = "lib_methods/fabric/page.py", "lib_methods/webui/widgets.py", "lib_methods/pix2pix_zero/page.py"
TRAY, CASCADE, SHOW = "javascript/fabric_tray.js", "lib_methods/cascade/tab/page.py", "lib_methods/hosts/settings.py"
NONE_YET = "No feedback yet: like or dislike an image, and the next ones lean towards it or away from it."
MADE = {
    **{f"{emoji} {title}": (FABRIC, f'"{emoji}", "{title}"') for emoji, title in (("👍", "Likes"), ("👎", "Dislikes"))},
    **{f"{word} like these": (FABRIC, f'"{word} like these"') for word in ("more", "less")},
    **{f"Add images to {title}": (FABRIC, "Add images to {title}") for title in ("Likes", "Dislikes")},
    **{
        f"{title}: drop or paste images here": (FABRIC, "{title}: drop or paste images here")
        for title in ("Likes", "Dislikes")
    },
    **{
        f"Press {emoji} on an image you made, or drop images here.": (
            FABRIC,
            "Press {emoji} on an image you made, or drop images here.",
        )
        for emoji in "👍👎"
    },
    "How much this image counts compared to the others, 0 to 5": (
        FABRIC,
        "How much this image counts compared to the others, 0 to {top}",
    ),
    **{name: (FABRIC, f'"{name}"') for name in ("Load", "Save")},
    NONE_YET: ("lib_methods/fabric/settings.py", NONE_YET),
    **{f"Remove this {word}": (TRAY, f'"{word}"') for word in ("like", "dislike")},
    **{f"Remove {kind}": (WIDGETS, "Remove {kind}") for kind in ("image", "mask")},
    **{f"Sentences about the {word}": (ZERO, "Sentences about the {word}") for word in ("source", "target")},
    **{f"DeepFloyd IF's folders in models/cascade{more}": (CASCADE, f'"{more}"') for more in ("", ", or their paths")},
    **{
        f"Show {title} in txt2img and img2img": (SHOW, "Show {title} in txt2img and img2img")
        for title in ("FABRIC", "Guidance", "InstructPix2Pix", "NAG", "pix2pix-zero")
    },
}
"""Texts of a few parts, all of whose values are known: where each is put together, and by what it is recognised."""


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def entries(request: pytest.FixtureRequest) -> dict[str, str]:
    def once(pairs: list[tuple[str, str]]) -> dict[str, str]:
        assert len(dict(pairs)) == len(pairs), "a text has two translations"
        return dict(pairs)

    made: dict[str, str] = json.loads(request.param.read_text(encoding="utf-8"), object_pairs_hook=once)
    return made


def test_japanese_and_german_are_there() -> None:
    assert {file.stem for file in FILES} >= {"de_DE", "ja_JP"}


def test_every_text_has_an_entry(entries: dict[str, str]) -> None:
    assert sorted((all_texts() | set(MADE)) - KEPT - set(entries)) == []


def test_no_entry_is_for_a_text_that_is_gone(entries: dict[str, str]) -> None:
    assert sorted(set(entries) - all_texts() - set(MADE)) == []


def test_the_exceptions_are_still_texts_of_the_page() -> None:
    assert sorted(KEPT - all_texts()) == []
    for text, (file, part) in MADE.items():
        assert part in (ROOT / file).read_text(encoding="utf-8"), f"{text}: no longer in {file}"


def test_placeholders_and_the_last_mark_are_kept(entries: dict[str, str]) -> None:
    marks = str.maketrans("。？！…", ".?!…")
    for text, translation in entries.items():
        assert translation.strip() == translation != "", text
        assert "\u2014" not in translation, f"{translation}: an em dash"
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", translation)), text
        last, ours = text[-1], translation.translate(marks)[-1]
        assert (last if last in ".?!…" else "") == (ours if ours in ".?!…" else ""), f"{text}: ends in another mark"
