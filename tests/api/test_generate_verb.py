"""`run.py generate`: the same jobs from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from standalone.setup import options as command_line
from tests.api.conftest import Server
from tests.shared.pictures import pixels


def parsed(out: Path, *arguments: str) -> argparse.Namespace:
    return command_line.parse(
        [
            "generate",
            "a red circle",
            "--size",
            "64",
            "--steps",
            "2",
            "--seed",
            "4",
            "--sampler",
            "Euler",
            "--cfg-scale",
            "3",
            "--out",
            str(out),
            *arguments,
        ]
    )


def test_half_an_emoji_in_a_prompt_is_replaced():
    """A terminal of another encoding gives such text."""
    from standalone.api.models import TextToImageRequest

    assert TextToImageRequest(prompt="a \udcff", negative_prompt="\U0001f600").prompt == "a ?"


def test_it_writes_what_the_api_answers(server: Server, tmp_path: Path):
    from standalone.verbs.generate import make

    files, problems = make(parsed(tmp_path, "--batch-size", "2"), server.host)
    assert problems == []
    assert [path.name for path in files] == ["00000-4.png", "00001-5.png"]
    same = server.txt2img(seed=4, batch_size=2, override_settings={"return_grid": False})["images"]
    for path, image in zip(files, same):
        with Image.open(path) as made:
            assert np.array_equal(np.asarray(made.convert("RGB")), pixels(image))
            assert made.info["parameters"].startswith("a red circle\nSteps: 2")


def test_it_never_writes_over_a_file(server: Server, tmp_path: Path):
    from standalone.verbs.generate import make

    first, second = (make(parsed(tmp_path), server.host)[0][0] for _ in range(2))
    assert first != second
    assert first.read_bytes() == second.read_bytes()


def test_img2img_mask_and_hires(server: Server, tmp_path: Path):
    from standalone.verbs.generate import make

    picture, mask = tmp_path / "in.png", tmp_path / "mask.png"
    Image.new("RGB", (64, 64), (10, 200, 10)).save(picture)
    Image.new("L", (64, 64), 255).save(mask)
    assert make(parsed(tmp_path / "a", "--init-image", str(picture), "--denoising-strength", "0.4"), server.host)
    assert make(parsed(tmp_path / "b", "--init-image", str(picture), "--mask", str(mask)), server.host)
    large = make(parsed(tmp_path / "c", "--hires", "--hires-scale", "1.5"), server.host)[0][0]
    with Image.open(large) as made:
        assert made.size == (96, 96)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sampler", "Nope"), "no sampler named 'Nope'"),
        (("--init-image", "nowhere.png"), "there is no file nowhere.png"),
        (("--like", "nowhere.png"), "there is no file nowhere.png"),
    ],
)
def test_what_is_wrong_is_said(server: Server, tmp_path: Path, arguments: tuple[str, ...], told: str):
    from standalone.api.errors import sentence_for
    from standalone.verbs.generate import make

    with pytest.raises(Exception) as raised:
        make(parsed(tmp_path, *arguments), server.host)
    assert told in sentence_for(raised.value)[0]


def test_fabrics_options_become_named_fields(tmp_path: Path):
    from standalone.verbs.generate import fabric_args

    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    given = parsed(
        tmp_path, "--like", str(tmp_path / "a.png"), "--dislike", str(tmp_path / "b.png"), "--fabric-strength", "0.6"
    )
    named = fabric_args(given)["Steer FABRIC"]["args"][0]
    assert (len(named["likes"]), len(named["dislikes"]), named["strength"]) == (1, 1, 0.6)
    assert "start" not in named
    assert fabric_args(parsed(tmp_path)) == {}


def test_a_method_that_could_not_run_is_told(server: Server):
    """The images are written, and the exit status says that a method could not run."""
    from types import SimpleNamespace

    from standalone.verbs.generate import failed_methods

    text = 'a cat\nSteps: 2, Sampler: Euler, FABRIC error: "The pictures are gone, add them again.", Version: x'
    told = failed_methods(SimpleNamespace(infotexts=[text, text, "a cat\nSteps: 2, Sampler: Euler"]))
    assert told == ["FABRIC: The pictures are gone, add them again."]
