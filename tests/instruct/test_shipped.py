"""The InstructPix2Pix checkpoint that ships edits pictures as it is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import evaluate_image_cfg as program
from benchmarks.studio import INSTRUCT_CHECKPOINT, Studio, studio

LARGEST = 25 * 2**20  # bytes


@pytest.fixture(scope="module")
def maker() -> Iterator[Studio]:
    with studio(INSTRUCT_CHECKPOINT) as found:
        yield found


def test_it_is_small_and_has_its_configuration_beside_it() -> None:
    assert INSTRUCT_CHECKPOINT.stat().st_size <= LARGEST
    assert INSTRUCT_CHECKPOINT.with_suffix(".yaml").is_file()


def test_it_follows_instructions_and_keeps_the_rest(maker: Studio) -> None:
    """The figures behind README and card come from 200 edits; 16 are enough to see that the file is the right one."""
    model = maker.host.model
    assert model.model.diffusion_model.config.in_channels == 8 and model.cond_stage_key == "edit"
    asked = program.edits(16)
    figures = program.measure(asked, program.make(maker, asked, text=3.0, image=1.5))
    assert figures["instruction_accuracy"] >= 0.7
    assert figures["preservation"] >= 0.75
    assert figures["direction"] >= 0.6
