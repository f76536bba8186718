"""Image conditioning together with methods that look at rows (FABRIC) or at the guidance (thresholding)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lib_methods.denoiser import Guidance
from lib_methods.image_cfg import apply
from tests.image_cfg.jobs import OTHER, edit, spread
from tests.shared.jobs import pixels
from tests.standalone.conftest import Running

FABRIC: dict[str, dict[str, Any]] = {
    "none": {},
    "like": {"likes": [OTHER], "end": 1.0},
    "dislike": {"dislikes": [OTHER], "end": 1.0},
}
AND = "a circle AND a red square :0.5"


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("scales", [(3.0, 1.5), (3.0, 1.0), (3.0, 3.0), (1.0, 1.0)])
def test_feedback_images_know_their_rows(host: Running, sampler: str, scales: tuple[float, float]) -> None:
    """Likes act on the conditional rows and dislikes on the others, also where the sum leaves rows out."""
    made = {}
    for name, feedback in FABRIC.items():
        arguments = {**edit(text_scale=scales[0], image_scale=scales[1]), "fabric": [feedback]}
        job = host.generate(script_args=arguments, sampler_name=sampler)
        assert "error" not in job.info
        made[name] = pixels(job).astype(int)
    assert np.abs(made["none"] - made["like"]).max() > 1
    # with both scales 1 only the conditional prediction counts, and dislikes have nothing to act on
    assert (np.abs(made["none"] - made["dislike"]).max() > 1) == (scales != (1.0, 1.0))


class Recorder:
    """A guide that changes nothing and keeps what it is shown."""

    order = 50

    def __init__(self) -> None:
        self.seen: list[Guidance] = []

    def guide(self, call: Any, guidance: Guidance) -> torch.Tensor:
        self.seen.append(guidance)
        return guidance.guided


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("prompt", ["a circle", AND])
def test_a_guide_sees_base_direction_and_cond(
    host: Running, monkeypatch: pytest.MonkeyPatch, sampler: str, prompt: str
) -> None:
    """At the first step, where every job has the same latents: the base is the result at text scale 0, and the
    conditional prediction the one at both scales 1."""
    attach = apply.attach

    def first(text: float, image: float, prompt: str = prompt) -> Guidance:
        recorder = Recorder()

        def with_recorder(sampling: Any, *args: Any) -> None:
            attach(sampling, *args)
            sampling.add_guide(recorder)

        with monkeypatch.context() as patch:
            patch.setattr(apply, "attach", with_recorder)
            script_args = edit(image_scale=image)
            host.generate(script_args=script_args, cfg_scale=text, sampler_name=sampler, prompt=prompt)
        return recorder.seen[0]

    seen = first(5.0, 1.6)
    assert seen.scale == 5.0
    assert spread(seen.at(5.0), seen.guided) < 1e-4
    assert spread(seen.base, first(0.0, 1.6).guided) < 1e-4
    assert spread(seen.cond, first(1.0, 1.0).guided) < 1e-4
    for text, image in ((5.0, 1.0), (3.0, 3.0), (1.0, 1.0)):  # a guide gets all that it may ask for at the short cuts
        short = first(text, image)
        assert spread(short.at(text), short.guided) < 1e-4
        assert spread(short.cond, seen.cond) < 1e-4
        assert spread(short.direction, seen.direction) < 1e-4


def test_both_change_the_picture_together(host: Running) -> None:
    """Guidance sees the three-way guidance; which script runs first does not matter to either."""
    guided = {"guidance": [{"skimming_scale": 1.5}]}
    job: dict[str, Any] = {"cfg_scale": 20.0}
    plain, together = (host.generate(script_args={**edit(image_scale=2.0), **more}, **job) for more in ({}, guided))
    assert "error" not in together.info
    assert "InstructPix2Pix image scale: 2" in together.info
    assert not np.array_equal(pixels(plain), pixels(together))
