"""Every method in half precision on a pretended accelerator, which computes on the CPU and refuses to mix devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dreambooth import runs
from tests.fabric.small_model import picture
from tests.fabric.test_in_the_host import BOTH, HALF_MASK, JOBS, fabric
from tests.image_cfg.jobs import edit as instruct
from tests.pix2pix_zero import jobs as zero
from tests.shared.jobs import REPO, pixels
from tests.shared.pretend_device import on_this_thread, pretend_device
from tests.standalone import loras
from tests.standalone.conftest import _snapshot, checkpoints

HIRES = JOBS["Hires.fix with another sampler"]
IMG2IMG = {"init_images": [picture(7)], "denoising_strength": 0.7}
METHODS: dict[str, tuple[str, dict[str, list[Any]], str]] = {
    "FABRIC": ("sd1", fabric(BOTH), "FABRIC likes"),
    "FABRIC, StyleAligned": ("sd1", fabric({**BOTH, "adain": True, "consistent_batch": True}), "FABRIC likes"),
    "NAG": ("sd1", {"nag": [{"negative_prompt": "red"}]}, "NAG scale"),
    "guidance": ("sd1", {"guidance": [{"skimming_scale": 1.5}]}, "Guidance"),
    "pix2pix-zero": ("sd1", zero.edit(regularisation="paper"), "pix2pix-zero source"),
    "pix2pix-zero, soft blend": ("sd1", zero.edit(guidance="soft blend"), "pix2pix-zero source"),
    "InstructPix2Pix": ("instruct", instruct(), "InstructPix2Pix "),
}

LORA = {
    **loras.layer("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", (32, 32), 1),
    **loras.layer("lora_te_text_model_encoder_layers_0_mlp_fc1", (64, 32), 2),
}

__all__ = ["checkpoints"]


class Accelerated:
    """A host on the pretended device, its queue included."""

    def __init__(self, host: Any, output: Path) -> None:
        from tests.standalone.conftest import Running

        self.host = host
        self.running = Running(host, output)
        self._plain: dict[str, Any] = {}

    def generate(self, kind: str = "txt2img", **fields: Any) -> Any:
        from modules.processing import process_images

        def job(p: Any) -> Any:
            with on_this_thread():
                return process_images(p)

        with closing(self.running.make(kind, **{"width": 32, "height": 32, **fields})) as p:
            return self.host.queue.run(job, p)

    def plain(self, kind: str, **fields: Any) -> Any:
        """The job without a method, generated once."""
        name = f"{kind} {fields}"
        if name not in self._plain:
            self._plain[name] = self.generate(kind, **fields)
        return self._plain[name]


@pytest.fixture(scope="module")
def accelerated(
    request: pytest.FixtureRequest, checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Accelerated]]:
    """Starts a host in the parameter's precision with a tiny model of a kind, one at a time."""
    from standalone import host as standalone_host

    data = tmp_path_factory.mktemp("data")
    loras.write(data / "models" / "Lora" / "tiny.safetensors", LORA)
    current: dict[str, Accelerated] = {}
    with ExitStack() as stack:
        device = stack.enter_context(pretend_device())

        def start(kind: str) -> Accelerated:
            if kind not in current:
                for old in current.values():
                    old.host.close()
                current.clear()
                path = checkpoints("sd1", in_channels=8 if kind == "instruct" else 4, levels=1)
                host = standalone_host.start(
                    checkpoint=path, data_dir=data, device=device, dtype=request.param, extension_dirs=[REPO]
                )
                _snapshot()
                current[kind] = Accelerated(host, data / "made")
            return current[kind]

        yield start
        for old in current.values():
            old.host.close()


def check(host: Accelerated, kind: str, script_args: dict[str, list[Any]], key: str, **job: Any) -> None:
    plain = host.plain(kind, **job)
    guided = host.generate(kind, script_args=script_args, **job)
    assert key in guided.infotexts[0]
    assert " error" not in guided.infotexts[0]
    assert not any(np.array_equal(one, other) for one, other in zip(pixels(plain), pixels(guided)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("accelerated", "job"),
    [(torch.float16, "Hires.fix"), (torch.bfloat16, "inpainting")],
    indirect=["accelerated"],
    scope="module",  # or each test would start a host
)
def test_every_method_stays_on_its_device(accelerated: Callable[[str], Accelerated], method: str, job: str) -> None:
    model, script_args, key = METHODS[method]
    if job == "inpainting":
        check(accelerated(model), "img2img", script_args, key, **IMG2IMG, mask=HALF_MASK)
    elif model == "instruct":  # without the method such a model gets no image in txt2img
        check(accelerated(model), "img2img", script_args, key, **IMG2IMG)
    else:
        check(accelerated(model), "txt2img", script_args, key, **HIRES, batch_size=2)


@pytest.mark.parametrize(
    ("accelerated", "sampler"),
    [(torch.float16, "Heun"), (torch.float16, "DPM++ 2M SDE"), (torch.bfloat16, "UniPC"), (torch.bfloat16, "LCM")],
    indirect=["accelerated"],
    scope="module",
)
def test_every_sampler_and_a_lora_stay_on_their_device(accelerated: Callable[[str], Accelerated], sampler: str) -> None:
    job: dict[str, Any] = {"sampler_name": sampler, "steps": 4, "cfg_scale": 9.0}
    check(accelerated("sd1"), "txt2img", fabric(BOTH), "FABRIC likes", **job, prompt="a red circle <lora:tiny:1>")


@pytest.mark.parametrize("accelerated", [torch.float16, torch.bfloat16], indirect=True)
def test_a_lora_has_its_effect_there(accelerated: Callable[[str], Accelerated]) -> None:
    plain, changed = (accelerated("sd1").generate(prompt=f"a red circle{tag}") for tag in ("", "<lora:tiny:1>"))
    assert not np.array_equal(pixels(plain), pixels(changed))


@pytest.mark.parametrize(("kind", "precision", "optimizer"), [("LoRA", "fp16", "adamw"), ("full", "bf16", "adafactor")])
def test_a_training_run_stays_on_its_device(kind: str, precision: str, optimizer: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "kind": kind,
        "precision": precision,
        "optimizer": optimizer,
        "train_text": kind == "LoRA",
    }
    settings = runs.settings_for(tmp_path, steps=2, **values)
    with pretend_device() as device:
        result = runs.train(settings, device=device)
    assert all(file.is_file() for file in result.files)
    assert len(runs.events(settings, "step")) == 2
