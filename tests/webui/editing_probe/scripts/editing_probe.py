"""An extension script that edits through the pack's seam inside the real WebUI and writes down what it saw.

Its one argument says what to do: "look", "memory", "move", "gradient" or "fail". The answers go, one JSON object a
line, to the file named by the environment variable LIFECYCLE_PROBE_LOG.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from lib_methods.denoiser import Unsupported, editing_of
from lib_methods.hosts import sampling_of
from lib_methods.pix2pix_zero import guidance
from modules import script_callbacks, scripts

levels: list[float] = []


def write(**answer):
    """Appends one answer to the log."""
    with Path(os.environ["LIFECYCLE_PROBE_LOG"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(answer) + "\n")


def spread(one, other):
    """The largest difference, as a share of the largest number."""
    return float((one - other).abs().max() / other.abs().max())


def random(shape, seed):
    """Noise that is always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def euler(denoise, x, sigmas, moves):
    """Also DDIM."""
    for sigma, after, move in zip(sigmas, sigmas[1:], moves):
        x = x + move
        x = x + (after - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def unipc_1(denoise, x, sigmas, moves):
    """UniPC of order 1, bh1."""
    x = x + moves[0]
    denoised = denoise(x, sigmas[0])
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:])):
        foreseen = (after / sigma) * x + (1 - after / sigma) * denoised
        if i == len(sigmas) - 2:
            return foreseen
        answer = denoise(foreseen + moves[i + 1], after)
        x = foreseen + 0.5 * math.log(sigma / after) * (answer - denoised) + moves[i + 1]
        denoised = answer


class Mover:
    """Adds its own move at every step."""

    def __init__(self, sampling, moves):
        self.sampling, self.moves = sampling, moves

    def before(self, call, latents):
        position = editing_of(self.sampling).position(call)
        return latents + self.moves[position.step] if position.starts_step else latents


class EditingProbe(scripts.Script):
    """Always on; does nothing unless told."""

    def title(self):
        return "Editing probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox(value="", label="act", visible=False)]

    def process_before_every_sampling(self, p, act, x=None, noise=None, **kwargs):
        p.editing_probe_end = None
        levels.clear()
        if act:
            getattr(self, act)(p, sampling_of(p, x, noise))

    def look(self, p, sampling):
        """Its start, levels and noise; starts from its own start."""
        try:
            editing_of(sampling).start_from(editing_of(sampling).start_latent())
            told: Any = editing_of(sampling).sigmas.tolist()
        except Unsupported as sentence:
            told = str(sentence)
        write(
            sigmas=told,
            stochastic=editing_of(sampling).is_stochastic,
            own=editing_of(sampling).own_latent() is not None,
        )

    def memory(self, p, sampling):
        """The bytes that are kept free beside Forge's UNet in this pass."""
        told = sampling.patcher.extra_preserved_memory_during_sampling
        write(**{"second" if getattr(p, "is_hr_pass", False) else "first": told})

    def move(self, p, sampling):
        """Starts elsewhere and moves at every step; the same by a plain loop."""
        cond, uncond = editing_of(sampling).embed([p.prompts[0]]), editing_of(sampling).embed([p.negative_prompts[0]])

        def guided(x, sigma):
            base = editing_of(sampling).predict(x, sigma, uncond)
            return base + p.cfg_scale * (editing_of(sampling).predict(x, sigma, cond) - base)

        start, sigmas = editing_of(sampling).start_latent(), editing_of(sampling).sigmas.tolist()
        start = start + sigmas[0] * 0.3 * random(start.shape, 1)
        moves = [0.2 * sigma * random(start.shape, i) for i, sigma in enumerate(sigmas[:-1])]
        end = (unipc_1 if p.sampler_name == "UniPC" else euler)(guided, start, sigmas, moves)
        p.editing_probe_end = end / (1 if p.sampler_name == "Euler" else editing_of(sampling).at_end(torch.ones(1)))
        editing_of(sampling).start_from(start)
        editing_of(sampling).add_editor(Mover(sampling, moves))

    def gradient(self, p, sampling):
        """Of one prediction, against finite differences."""
        unet, cond, sigma = (
            sampling.unet,
            editing_of(sampling).embed([p.prompts[0]]),
            float(editing_of(sampling).sigmas[1]),
        )
        x = editing_of(sampling).start_latent() * sigma / float(editing_of(sampling).sigmas[0])
        with torch.inference_mode(False):  # what the forks make in inference mode no graph may keep
            weights, along = random(x.shape, 5), random(x.shape, 6)
        # as the configurations that come with models have it; the small ones of tests leave it out, and Forge cannot
        blocks = [block for block in unet.modules() if isinstance(getattr(block, "checkpoint", None), bool)]
        blocks = [] if hasattr(p.sd_model, "forge_objects") else blocks
        flags = [block.checkpoint for block in blocks]
        for block in blocks:
            block.checkpoint = True
        asking = [parameter.requires_grad for parameter in unet.parameters()]
        with editing_of(sampling).differentiable():
            leaf = x.clone().requires_grad_(True)
            (found,) = torch.autograd.grad(
                (editing_of(sampling).predict(leaf, sigma, cond, gradients=True) * weights).sum(), leaf
            )
        h = 0.01 * sigma
        ahead, behind = (editing_of(sampling).predict(x + side * h * along, sigma, cond).double() for side in (1, -1))
        write(
            gradient=float((found * along).sum()),
            numeric=float(((ahead - behind) * weights).sum() / (2 * h)),
            checkpointing=sum(block.checkpoint for block in blocks),
            as_before=asking == [parameter.requires_grad for parameter in unet.parameters()],
            collected=sum(parameter.grad is not None for parameter in unet.parameters()),
        )
        for block, flag in zip(blocks, flags):
            block.checkpoint = flag

    def fail(self, p, sampling):
        """The second gradient of an edit fails."""
        gradient, calls = guidance.gradient, []

        def failing(*args, **kwargs):
            calls.append(args)
            if len(calls) < 2:
                return gradient(*args, **kwargs)
            guidance.gradient = gradient
            write(failed=True)
            raise ValueError("asked to fail")

        guidance.gradient = failing

    def post_sample(self, p, sampled, act):
        if act == "look":
            write(levels=levels[:])
        if getattr(p, "editing_probe_end", None) is not None:
            write(off=spread(sampled.samples, p.editing_probe_end))


def note(params):
    """The level of a denoiser call as the host passes it, and as a sigma where it is a timestep."""
    level = float(params.sigma[0])
    alphas = getattr(params.denoiser, "alphas", None)
    if alphas is not None:
        low = min(int(level), len(alphas) - 2)
        logs = alphas.double().log()
        level = math.sqrt(math.expm1(-float(logs[low] + (level - low) * (logs[low + 1] - logs[low]))))
    levels.append(level)


script_callbacks.on_cfg_denoiser(note)
