"""Edits as jobs of the standalone host, on models so small that a job takes a second."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from lib_methods.denoiser import Sampling, editing_of
from tests.fabric.small_model import picture
from tests.hosts.seam import acting
from tests.pix2pix_zero.bare import leftovers, loud
from tests.standalone.conftest import Running

SOURCE, TARGET, CAPTION = "circle", "blue square", "a red circle"
IMG2IMG: dict[str, Any] = {
    "kind": "img2img",
    "init_images": [picture(7)],
    "denoising_strength": 0.8,
    "prompt": CAPTION,
    "negative_prompt": "",
    "steps": 5,
}
TXT2IMG: dict[str, Any] = {"kind": "txt2img", "prompt": CAPTION, "steps": 4}
HIRES: dict[str, Any] = {
    **TXT2IMG,
    "enable_hr": True,
    "hr_scale": 1.5,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.6,
    "hr_second_pass_steps": 3,
}


def edit(**fields: Any) -> dict[str, list[Any]]:
    """Arguments of an edit without regularisation and sheets, which take time."""
    usual = {"source": SOURCE, "target": TARGET, "regularisation": "off", "show": False, "structure": 1.0}
    return {"pix2pix-zero": [{**usual, **fields}]}


def interrupted(host: Running, monkeypatch: pytest.MonkeyPatch, job: dict[str, Any], **fields: Any) -> Any:
    """A job of an edit that the user interrupts in the third of its inversion's runs of the model."""
    from lib_methods.hosts.a1111.editing import A1111Editing
    from modules import shared

    predict, calls = A1111Editing.predict, []

    def impatient(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            shared.state.interrupt()
        return predict(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(A1111Editing, "predict", impatient)
        made = host.generate(script_args=edit(**fields), **job)
    assert len(calls) == 3
    return made


def speak_up() -> None:
    """Make the loaded model's attention uneven and its latents as large as those of a trained one."""
    from modules import shared

    loud(shared.sd_model.model.diffusion_model)
    shared.sd_model.scale_factor = 4.0


def left() -> list[str]:
    """What is still on the loaded model after a job."""
    from modules import shared

    unet = shared.sd_model.model.diffusion_model
    return leftovers(unet) + [name for name, parameter in unet.named_parameters() if parameter.grad is not None]


def drawn(host: Running, job: dict[str, Any], **more: Any) -> Tensor:
    """The latents that a job ends with; more: of the edit, None for a job without one."""
    return host.latents(script_args=None if more.get("edit", True) is None else edit(**more), **job)


def own_latent(host: Running, job: dict[str, Any]) -> Tensor:
    """What the job starts from."""
    seen: list[Tensor] = []

    def look(sampling: Sampling) -> None:
        own = editing_of(sampling).own_latent()
        assert own is not None
        seen.append(own)

    with acting(host, look, False):
        host.latents(**job)
    return seen[0]


def away(one: Tensor, other: Tensor) -> float:
    """Mean difference, as a share of the mean size."""
    return float((one - other).abs().mean() / other.abs().mean())
