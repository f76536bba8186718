"""Nothing of a job that ended badly, at whatever stage, reaches the next one: its images are those of a fresh host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch

from standalone.host.jobs.queue import JobEnded
from tests.fabric.small_model import picture
from tests.shared.jobs import REPO, same
from tests.shared.pictures import encoded
from tests.standalone import loras
from tests.standalone.conftest import Running

# everything at once that a job may change for itself
KILLED: dict[str, Any] = {
    "prompt": "a red circle <lora:one:0.8>",
    "override_settings": {"CLIP_stop_at_last_layers": 2, "batch_cond_uncond": False},
    "enable_hr": True,
    "hr_scale": 1.5,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.6,
    "hr_checkpoint_name": "sd1-levels1-seed1",
    "hr_prompt": "a blue square <lora:two:0.5>",
    "hr_second_pass_steps": 2,
    "refiner_checkpoint": "sd1-levels1-seed1",
    "refiner_switch_at": 0.7,
}
METHODS: dict[str, list[Any]] = {
    "fabric": [{"likes": [encoded(picture(1))], "dislikes": [encoded(picture(2))], "end": 1.0}],
    "guidance": [{"skimming_scale": 1.5}],
}
EDIT: dict[str, Any] = {"init_images": [picture(7)], "denoising_strength": 0.7, "n_iter": 2, "prompt": "a red circle"}
EDIT_METHODS = {
    **METHODS,
    "pix2pix-zero": [{"source": "circle", "target": "square", "regularisation": "off", "show": False}],
}

# where a job is killed: what is called there, and at which of its calls
_CONDS = "standalone.host.sampling.prompt_parser:get_multicond_learned_conditioning"
STAGES: dict[str, tuple[str, int]] = {
    "at the first run of the UNet": ("standalone.engine.model:StableDiffusionModel.apply_model", 1),
    "in the feedback's reference pass": ("lib_methods.fabric.reference:References._run", 1),
    "in the middle of the first pass": ("standalone.engine.model:StableDiffusionModel.apply_model", 9),
    "while the prompts are embedded": (_CONDS, 1),
    "while a LoRA is added": ("standalone.engine.lora.apply:_add", 2),
    "while another checkpoint is loaded": ("standalone.engine.checkpoint:load_checkpoint", 1),
    "between the passes": ("standalone.host.jobs.txt2img:enlarge", 1),
    "while the second pass's prompts are embedded": (
        "standalone.host.sampling.prompt_parser:get_multicond_learned_conditioning",
        2,
    ),
    "while a method is attached to the second pass": ("lib_methods.fabric.apply:attach", 2),
    "in the last step of a batch": ("lib_methods.hosts.passes:Pass.ask", 5),
    "while the image is decoded": ("standalone.host.jobs.txt2img:decode_latent_batch", 1),
    "while an image is finished": ("standalone.host.jobs.run:to_image", 1),
}


class Killed(BaseException):
    """Something that no `except Exception` on the way stops."""


@pytest.fixture(scope="module")
def host(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> Running:
    """A host with the pack, two checkpoints and two LoRAs."""
    path = checkpoints("sd1", levels=1)
    checkpoints("sd1", levels=1, seed=1)
    running = start_host(path, extension_dirs=[REPO])
    from modules import sd_models, shared
    from standalone.engine.lora.names import layers_by_name
    from standalone.host import lora

    known = {name: layer for name, layer in layers_by_name(shared.sd_model).items() if layer.weight.ndim > 1}
    for seed, name in enumerate(("one", "two")):
        state = {}
        for layer in list(known)[:3] + list(known)[-3:]:
            state.update(loras.layer(layer, known[layer].weight.shape, seed))
        loras.write(lora.folder().folder / f"{name}.safetensors", state)
    sd_models.list_models()
    return running


@pytest.fixture(scope="module")
def fresh(host: Running) -> Any:
    """What a job gives that nothing went wrong before."""
    return {name: job(host) for name, job in PROBES.items()}


PROBES: dict[str, Callable[[Running], Any]] = {
    "plain": lambda host: host.generate(),
    "all of it": lambda host: host.generate(script_args=METHODS, **KILLED),
    "edit": lambda host: host.generate("img2img", script_args=EDIT_METHODS, **EDIT),
}


@contextmanager
def killing(target: str, count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Within the block, the `count`-th call of `target` raises; the list has an entry for each call."""
    from importlib import import_module

    module, _, path = target.partition(":")
    owner: Any = import_module(module)
    *holders, name = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    original, calls = getattr(owner, name), []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            raise error
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield calls


def state_of_host() -> dict[str, Any]:
    """All that a job may have changed for itself."""
    from modules import shared
    from standalone.engine.lora import loaded_loras

    model = shared.sd_model
    modules = list(model.model.diffusion_model.modules())
    return {
        "settings": dict(shared.opts.data),
        "checkpoint": model.sd_checkpoint_info.name,
        "LoRAs": loaded_loras(model),
        "overrides": [module for module in modules if "forward" in vars(module)],
        "hooks": [module for module in modules if module._forward_hooks or module._forward_pre_hooks],
        "gradients": torch.is_grad_enabled(),
    }


EDIT_STAGES: dict[str, tuple[str, int]] = {
    "in the inversion": ("lib_methods.hosts.a1111.editing:A1111Editing.predict", 2),
    "at a gradient": ("lib_methods.pix2pix_zero.guidance:gradient", 2),
    "in the edit of the second batch": ("lib_methods.pix2pix_zero.edit:Edit.before", 5),
}
ERRORS = [Killed(), RuntimeError("broken")]


@pytest.mark.parametrize(
    ("job", "stage", "error"),
    [
        *(("all of it", stage, error) for stage, error in zip(STAGES.values(), cycle(ERRORS))),
        *(("edit", stage, error) for stage, error in zip(EDIT_STAGES.values(), cycle(ERRORS))),
    ],
    ids=[*STAGES, *EDIT_STAGES],
)
def test_a_job_that_was_killed_leaves_nothing(
    host: Running,
    fresh: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    stage: tuple[str, int],
    error: BaseException,
) -> None:
    from lib_methods.fabric.apply import SHARED_CACHE
    from lib_methods.pix2pix_zero.apply import CACHE

    before = state_of_host()
    SHARED_CACHE.clear()
    CACHE.clear()
    target, count = stage
    with killing(target, count, error, monkeypatch) as calls, suppress(type(error), JobEnded):
        PROBES[job](host)
    assert len(calls) >= count, "the job never came to this stage"
    assert state_of_host() == before
    for name in (job, "plain"):
        assert same(PROBES[name](host), fresh[name]), name
