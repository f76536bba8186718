"""An 8-channel checkpoint in Forge without the method, which the host cannot run by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lib_methods import hosts
from lib_methods.errors import UserError
from lib_methods.image_cfg.apply import ImageCfg
from tests.image_cfg.test_forge import Forge, example, plan


def test_a_job_without_the_method_ends_with_a_sentence_where_the_host_would_crash() -> None:
    forge, (_, _, picture) = Forge(), example()
    forge.p.sampler.launch_sampling = lambda *_: "sampled"
    hosts.end_without_picture(forge.p)
    with pytest.raises(UserError, match="Turn on InstructPix2Pix"):
        forge.p.sampler.launch_sampling(4, None)
    forge.p.sampler.launch_sampling = lambda *_: "sampled"
    plan(forge, picture)
    hosts.end_without_picture(forge.p)
    assert forge.p.sampler.launch_sampling(4, None) == "sampled"
    plain = Forge()
    plain.unet.config = {"in_channels": 4}
    before = dict(vars(plain.p.sampler))
    hosts.end_without_picture(plain.p)
    assert vars(plain.p.sampler) == before


@pytest.mark.parametrize(
    ("error", "told"),
    [(torch.OutOfMemoryError("no"), "Out of memory"), (UserError("The image is gone."), "The image is gone.")],
)
def test_a_method_that_fails_half_way_ends_a_job_that_the_host_cannot_finish(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge, (x, texts, picture) = Forge(), example()
    plan(forge, picture)
    forge.step(x, texts)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ImageCfg, "base", fail)
    monkeypatch.setattr(ImageCfg, "plan", fail)
    with pytest.raises(UserError, match=told):
        forge.step(x, texts)
