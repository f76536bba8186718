"""Edits with SD2 (v-prediction), SDXL with its pooled text, LoRAs, and models that see an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lib_methods.denoiser import Sampling, editing_of
from lib_methods.pix2pix_zero import apply
from lib_methods.pix2pix_zero.directions import Direction
from lib_methods.pix2pix_zero.settings import CONTROLS
from tests.fabric.small_model import picture
from tests.hosts.seam import acting, spread
from tests.pix2pix_zero.bare import leftovers
from tests.pix2pix_zero.jobs import IMG2IMG, TXT2IMG, drawn, edit, left, own_latent, speak_up
from tests.shared.jobs import REPO, same
from tests.standalone import loras
from tests.standalone.conftest import Running


@pytest.mark.parametrize(("family", "options"), [("sd2", {}), ("sdxl", {}), ("sd1", {"in_channels": 9, "levels": 1})])
def test_every_family(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], family: str, options: dict[str, Any]
) -> None:
    host = start_host(checkpoints(family, **options), extension_dirs=[REPO])
    speak_up()
    apply.CACHE.clear()
    seen: list[Tensor] = []

    def look(sampling: Sampling) -> None:
        own = editing_of(sampling).own_latent()
        if own is not None:
            seen.append(own)

    for sampler in ("Euler", "DDIM"):
        job = {**IMG2IMG, "sampler_name": sampler}
        with acting(host, look, False):
            still = host.latents(script_args=edit(strength=0, inversion="direct"), **job)
        assert spread(still, seen[-1]) < 5e-4
        moved = host.latents(script_args=edit(inversion="direct"), **job)
        assert spread(moved, still) > 1e-2
    made = host.generate(script_args=edit(structure=0.1, show=True), batch_size=2, **TXT2IMG)
    assert CONTROLS.error_key not in made.infotexts[0]
    assert left() == []


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
def test_an_inpainting_model_is_inverted_with_the_image_that_the_host_shows_it(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], sampler: str
) -> None:
    host = start_host(checkpoints("sd1", in_channels=9, levels=1), extension_dirs=[REPO])
    speak_up()
    job = {**IMG2IMG, "init_images": [picture(7), picture(8)], "batch_size": 2, "sampler_name": sampler}
    apply.CACHE.clear()
    for weight in (0.0, 0.0, 0.5):  # the second time with the inversion that was kept
        job["override_settings"] = {"inpainting_mask_weight": weight}
        assert spread(drawn(host, job, strength=0, inversion="direct"), own_latent(host, job)) < 5e-4
    assert len(apply.CACHE) == 2
    assert left() == []


def test_sdxls_drawn_reference_has_its_empty_negative_prompt(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path]
) -> None:
    """All zeros, as the host has it: strength as good as 0 gives what would have been generated."""
    host = start_host(checkpoints("sdxl"), extension_dirs=[REPO])
    attached: list[apply.Edit] = []
    attach = apply.attach

    def keep(*args: Any, **kwargs: Any) -> Any:
        attached.append(attach(*args, **kwargs))  # type: ignore[arg-type]
        return attached[-1]

    job = {**TXT2IMG, "negative_prompt": ""}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apply, "attach", keep)
        host.latents(script_args=edit(show=True), **job)
    assert spread(attached[0].reference.final(), host.latents(**job)) < 1e-3


def test_the_pooled_text_moves_in_the_prompts_rows_alone(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_methods.pix2pix_zero import session
    from modules import shared

    host = start_host(checkpoints("sdxl"), extension_dirs=[REPO])
    unet = shared.sd_model.model.diffusion_model
    moved: list[Tensor] = []
    make = session.make_direction

    def known(*args: Any, **kwargs: Any) -> Direction:
        found = make(*args, **kwargs)
        assert found.vector is not None
        moved.append(found.vector)
        return found

    def texts(**more: Any) -> list[Tensor]:
        """What reaches the UNet's inside in the rows [cond, uncond] of every step."""
        seen: list[Tensor] = []
        inner = unet.add_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        try:
            host.latents(script_args=edit(guidance="off", **more), **TXT2IMG)
        finally:
            inner.remove()
        return seen

    session._kept.clear()
    monkeypatch.setattr(session, "make_direction", known)
    still, shifted = texts(strength=0), texts(strength=2)
    assert len(still) == len(shifted) == 4
    pooled = still[0].shape[1] - 6 * 256
    for before, after in zip(still, shifted):
        assert torch.allclose(after[0, :pooled] - before[0, :pooled], 2 * moved[0][:pooled], atol=1e-5)
        assert torch.equal(after[1], before[1])
        assert torch.equal(after[:, pooled:], before[:, pooled:])
    assert left() == []


def test_a_model_that_is_told_by_instructions_is_refused(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path]
) -> None:
    host = start_host(checkpoints("sd1", in_channels=8, levels=1), extension_dirs=[REPO])
    plain, made = host.generate(**IMG2IMG), host.generate(script_args=edit(), **IMG2IMG)
    assert "InstructPix2Pix" in made.comments
    assert same(plain, made)


def test_a_refiner_goes_on_without_the_edit(
    start_host: Callable[..., Running], checkpoints: Callable[..., Path]
) -> None:
    """Its layers and its text encoder are others: it continues with the prompt alone."""
    from modules import sd_models, shared

    path = checkpoints("sd1", levels=1)
    checkpoints("sd1", levels=1, seed=1)
    host = start_host(path, extension_dirs=[REPO])
    sd_models.list_models()
    first = shared.sd_model.model.diffusion_model
    job = {**TXT2IMG, "refiner_checkpoint": "sd1-levels1-seed1", "refiner_switch_at": 0.5}
    made = host.generate(script_args=edit(), **job)
    assert CONTROLS.error_key not in made.infotexts[0]
    assert not same(made, host.generate(**job))
    assert left() == leftovers(first) == []


def test_a_lora_counts(start_host: Callable[..., Running], checkpoints: Callable[..., Path]) -> None:
    host = start_host(checkpoints("sd1", levels=1), extension_dirs=[REPO])
    apply.CACHE.clear()
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    loras.write(host.host.data_dir / "models" / "Lora" / "net.safetensors", loras.layer(name, (32, 32), 5, size=2.0))
    made = {
        tag: host.generate(script_args=edit(), **{**IMG2IMG, "prompt": f"a red circle{tag}"})
        for tag in ("", "<lora:net:1>", "<lora:net:-1>")
    }
    texts = list(made.values())
    assert all(CONTROLS.error_key not in one.infotexts[0] for one in texts)
    assert not any(same(one, other) for one, other in zip(texts, texts[1:]))
    assert len(apply.CACHE) == 3
