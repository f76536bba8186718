"""An edit in the host is the original's two passes (arXiv 2302.03027, algorithm 1), written out with plain hooks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lib_methods.denoiser import Sampling, editing_of
from lib_methods.pix2pix_zero.sentences import built_in_sentences
from tests.hosts.seam import acting, spread
from tests.pix2pix_zero.jobs import CAPTION, IMG2IMG, SOURCE, TARGET, TXT2IMG, edit, left
from tests.standalone.conftest import Running


class Original:
    """The algorithm in latents of variance one, on the host's UNet in double precision."""

    def __init__(self, sigmas: Tensor, scale: float, amount: float, whole_times: bool) -> None:
        from modules import shared

        model = shared.sd_model
        self.unet = copy.deepcopy(model.model.diffusion_model).double()
        self.scale, self.amount = scale, amount
        self.alphas = (1 / (1 + sigmas.double() ** 2)).tolist()
        table = ((1 - model.alphas_cumprod) / model.alphas_cumprod).sqrt().double().log().numpy()
        times = np.interp(sigmas[:-1].double().log().numpy(), table, np.arange(len(table)))
        self.times = (times.round() if whole_times else times).tolist()
        self.maps: list[Tensor] = []

    def noise(self, x: Tensor, step: int, context: Tensor) -> Tensor:
        time = torch.tensor([self.times[step]], dtype=x.dtype)
        result: Tensor = self.unet(x, time, encoder_hidden_states=context).sample
        return result

    def ddim(self, x: Tensor, noise: Tensor, here: float, there: float) -> Tensor:
        clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
        return there**0.5 * clean + (1 - there) ** 0.5 * noise

    def invert(self, x: Tensor, caption: Tensor) -> Tensor:
        for step in reversed(range(len(self.times))):
            x = self.ddim(x, self.noise(x, step, caption), self.alphas[step + 1], self.alphas[step])
        return x

    def watch(self, module: Any, args: Any, kwargs: Any) -> None:
        q, k = module.to_q(args[0]), module.to_k(kwargs["encoder_hidden_states"])
        q, k = (part.unflatten(-1, (module.heads, -1)).transpose(1, 2) for part in (q, k))
        self.maps.append((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).flatten(0, 1))

    def seen(self, x: Tensor, step: int, context: Tensor) -> tuple[list[Tensor], Tensor]:
        """The cross-attention maps, each (heads, pixels, tokens), and the predicted noise."""
        self.maps = []
        layers = [module for name, module in self.unet.named_modules() if name.endswith("attn2")]
        hooks = [layer.register_forward_pre_hook(self.watch, with_kwargs=True) for layer in layers]
        noise = self.noise(x, step, context)
        for hook in hooks:
            hook.remove()
        return self.maps, noise

    def draw(self, x: Tensor, caption: Tensor, negative: Tensor, delta: Tensor) -> Tensor:
        """The first pass reconstructs and records, the second edits."""
        start, recorded = x, []
        with torch.no_grad():
            for step in range(len(self.times)):
                maps, noise = self.seen(x, step, caption)
                recorded.append(maps)
                base = self.noise(x, step, negative)
                noise = base + self.scale * (noise - base)
                x = self.ddim(x, noise, self.alphas[step], self.alphas[step + 1])
        x = start
        for step in range(len(self.times)):
            leaf = x.detach().requires_grad_()
            maps, _ = self.seen(leaf, step, caption + delta)
            loss = sum(((a - b) ** 2).sum((1, 2)).mean(0) for a, b in zip(maps, recorded[step]))
            (gradient,) = torch.autograd.grad(loss, leaf)  # type: ignore[arg-type]
            x = x - self.amount * gradient
            with torch.no_grad():
                base = self.noise(x, step, negative)
                noise = base + self.scale * (self.noise(x, step, caption + delta) - base)
                x = self.ddim(x, noise, self.alphas[step], self.alphas[step + 1])
        return x


def mean(sampling: Sampling, word: str) -> Tensor:
    sentences = built_in_sentences(word)
    return torch.stack([editing_of(sampling).embed([text]).context[0] for text in sentences]).double().mean(0)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
def test_an_edit_is_the_originals(host: Running, sampler: str, kind: str) -> None:
    job = {**(IMG2IMG if kind == "img2img" else TXT2IMG), "sampler_name": sampler, "cfg_scale": 5.0}
    negative = job.get("negative_prompt", "grey")
    known: dict[str, Any] = {}

    def look(sampling: Sampling) -> None:
        known["sigmas"], own = editing_of(sampling).sigmas, editing_of(sampling).own_latent()
        known["x"] = (editing_of(sampling).start_latent() if own is None else own).double()
        known["end"] = float(editing_of(sampling).at_end(torch.ones(1)))
        if "delta" not in known:
            for name, text in (("caption", CAPTION), ("negative", negative or CAPTION)):
                known[name] = editing_of(sampling).embed([text]).context.double()
            known["delta"] = mean(sampling, TARGET) - mean(sampling, SOURCE)

    with acting(host, look, False):
        found = host.latents(script_args=edit(structure=2.0, caption_as_negative=True), **job)
    loose = host.latents(script_args=edit(structure=0.0, caption_as_negative=True), **job)
    assert left() == []

    plain = Original(known["sigmas"], 5.0, 2.0, sampler == "DDIM")
    x = known["x"] * plain.alphas[0] ** 0.5
    if kind == "img2img":
        with torch.no_grad():
            x = plain.invert(known["x"] * plain.alphas[-1] ** 0.5 * known["end"], known["caption"])
    wanted = plain.draw(x, known["caption"], known["negative"], known["delta"])
    wanted = wanted / (plain.alphas[-1] ** 0.5 * known["end"])
    assert spread(found.double(), wanted) < 1e-4
    assert spread(loose.double(), wanted) > 1e-3  # so the step counts
