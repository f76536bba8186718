"""Maps and guidance through a host's own prediction: an early stop disturbs nothing, a step brings maps back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib_methods.attention import checkpointed
from lib_methods.denoiser import DenoiserCall, Sampling, editing_of
from lib_methods.pix2pix_zero.guidance import gradient, map_losses, step
from lib_methods.pix2pix_zero.maps import MapRecorder, Maps
from tests.hosts.seam import job, latents
from tests.pix2pix_zero.bare import leftovers
from tests.standalone.conftest import Running

FAMILIES = [("sd1", "DDIM"), ("sdxl", "Euler")]


class Holding:
    """An editor that holds the maps where another prompt has them; it only looks where the amount is 0."""

    def __init__(self, sampling: Sampling, prompt: str, reference: str, amount: float) -> None:
        self.sampling, self.amount = sampling, amount
        self.conds = [editing_of(sampling).embed([text]) for text in (reference, prompt)]
        self.recorder = MapRecorder(sampling.unet, sampling.latent_size)
        self.losses: list[tuple[float, float]] = []

    def maps(self, x: Tensor, sigma: float, which: int, gradients: bool = False) -> Maps:
        return self.recorder.run_to_last(
            lambda: editing_of(self.sampling).predict(x, sigma, self.conds[which], gradients)
        )

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        sigma = editing_of(self.sampling).position(call).sigma
        with editing_of(self.sampling).differentiable(), self.recorder.installed(), checkpointed(self.sampling.unet):
            with torch.no_grad():
                reference = self.maps(latents, sigma, 0)
            found = gradient(latents, sigma, lambda x, s: self.maps(x, s, 1, True), reference)
            moved = step(latents, sigma, found.value, self.amount)
            with torch.no_grad():
                after = map_losses(self.maps(moved, sigma, 1), reference)
        assert found.dropped == () and leftovers(self.sampling.unet) == []
        self.losses.append((float(found.losses.sum()), float(after.sum())))
        return moved


@pytest.mark.parametrize(("family", "sampler"), FAMILIES)
def test_looking_disturbs_nothing_and_a_step_brings_maps_back(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], family: str, sampler: str
) -> None:
    host = start_host(checkpoints(family), extension_dirs=[])
    asked = job("txt2img", sampler, steps=3, prompt="a red circle")
    plain = latents(host, asked)
    editors: list[Holding] = []

    def script(reference: str, amount: float) -> Callable[[Sampling], None]:
        def act(sampling: Sampling) -> None:
            editors.append(Holding(sampling, "a red circle", reference, amount))
            editing_of(sampling).add_editor(editors[-1])

        return act

    assert torch.equal(latents(host, asked, script("a blue square", 0.0)), plain)
    assert torch.equal(latents(host, asked, script("a red circle", 1.0)), plain)  # nothing to hold
    assert not torch.equal(latents(host, asked, script("a blue square", 1.0)), plain)
    looked, same, held = (editor.losses for editor in editors)
    assert len(looked) == 3 and all(before == after > 0 for before, after in looked)
    assert all(before == after == 0 for before, after in same)
    assert all(after < before for before, after in held)
