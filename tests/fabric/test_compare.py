"""Compare: every batch twice from the same seeds, without FABRIC and with it."""

from __future__ import annotations

from contextlib import closing
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.shared import jobs
from tests.shared.pictures import noisy
from tests.standalone.conftest import Running

HIRES: dict[str, Any] = {"enable_hr": True, "hr_scale": 2.0, "denoising_strength": 0.5, "hr_prompt": "a star"}


@pytest.fixture
def feedback(script: ModuleType) -> dict[str, Any]:
    return {"likes": [script.STORE.add(noisy(1, 64, 64))], "strength": 1.0, "end": 1.0}


def run(host: Running, arguments: dict[str, Any] | None, **more: Any) -> Any:
    scripts = None if arguments is None else {"fabric": [arguments]}
    return jobs.run(host, scripts, do_not_save_grid=True, **more)


def parsed(entry: Any) -> Any:
    """An infotext's fields, in whatever order; other entries as they are."""
    from modules.infotext_utils import parse_generation_parameters

    return parse_generation_parameters(entry) if isinstance(entry, str) else entry


def made(processed: Any) -> list[np.ndarray]:
    return [np.asarray(image) for image in processed.images]


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"n_iter": 2},
        {"n_iter": 2, "batch_size": 2, "prompt": ["a", "b", "c", "d"], "seed": [4, 3, 2, 1]},
        {"n_iter": 2, **HIRES},
    ],
    ids=["one", "two", "prompts", "hires"],
)
def test_each_batch_is_that_of_the_job_without_and_of_the_job_with(
    host: Running, feedback: dict[str, Any], job: dict[str, Any]
) -> None:
    size = job.get("batch_size", 1)
    compared = run(host, {**feedback, "compare": True}, **job)
    batches = [slice(start, start + size) for start in range(0, len(compared.images), size)]
    for number, other in enumerate((run(host, None, **job), run(host, feedback, **job))):
        for name in ("infotexts", "all_seeds", "all_prompts"):
            chosen = [entry for part in batches[number::2] for entry in getattr(compared, name)[part]]
            assert list(map(parsed, chosen)) == list(map(parsed, getattr(other, name))), name
        images = [image for part in batches[number::2] for image in made(compared)[part]]
        assert len(images) == len(other.images) == size * job.get("n_iter", 1)
        assert all(np.array_equal(a, b) for a, b in zip(images, made(other)))
    assert not np.array_equal(made(compared)[0], made(compared)[size])


def test_without_feedback_there_is_nothing_to_compare(host: Running) -> None:
    compared = run(host, {"compare": True}, n_iter=2)
    assert len(compared.images) == 2
    assert compared.infotexts == run(host, None, n_iter=2).infotexts


def test_a_cell_of_a_plot_is_one_image(host: Running, feedback: dict[str, Any]) -> None:
    scripts = {"fabric": [{**feedback, "compare": True}]}
    compared = jobs.run(host, scripts, attributes={"fabric_axes": {"strength": 0.5}})
    assert len(compared.images) == 1


def test_a_job_object_that_is_used_again_has_its_own_number_of_batches(host: Running, feedback: dict[str, Any]) -> None:
    from modules.processing import process_images

    script_args = {"fabric": [{**feedback, "compare": True}]}
    with closing(host.make(script_args=script_args, n_iter=2, do_not_save_grid=True)) as p:
        first, again = (host.host.queue.run(process_images, p) for _ in range(2))
    assert [len(job.images) for job in (first, again)] == [4, 4]
    assert first.infotexts == again.infotexts


def test_the_grid_names_fabric(host: Running, feedback: dict[str, Any]) -> None:
    compared = jobs.run(host, {"fabric": [{**feedback, "compare": True}]}, do_not_save_grid=False)
    assert compared.index_of_first_image == 1
    assert ["FABRIC likes" in text for text in compared.infotexts] == [True, False, True]
