"""Editing for AUTOMATIC1111's WebUI and the standalone host: where a sampler starts, its levels, its own latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from lib_methods.attention import without_overrides
from lib_methods.denoiser import Conditioning, DenoiserCall, Editor, OwnNoise, Position, Unsupported
from lib_methods.hosts import a1111_noise
from lib_methods.hosts.a1111 import A1111Sampling
from lib_methods.hosts.a1111_call import A1111Call
from lib_methods.hosts.a1111_edits import Edits, NewStart
from lib_methods.hosts.a1111_start import Start, is_plms, rehearse
from lib_methods.hosts.a1111_text import TextEncoder
from lib_methods.hosts.gradients import differentiable
from lib_methods.hosts.levels import Levels


class A1111EditSampling(A1111Sampling):
    """A pass of the sampler whose latents may be edited. Implements `lib_methods.denoiser.EditSampling`, too."""

    def __init__(self, p: Any, latent: Tensor | None, noise: Tensor | None) -> None:
        super().__init__(p, latent)
        self._noise = noise
        self._known_start: Start | None = None
        self._in_alpha_space = False

    @property
    def _from_noise(self) -> bool:
        return not self.is_hires and getattr(self.p, "init_latent", None) is None

    @property
    def _edits(self) -> Edits:
        seam = self._seam
        if seam.edits is None:
            levels = Levels(self.p.sd_model.alphas_cumprod)
            seam.edits = Edits(self._pass, self._denoiser, self.p.sampler, levels)
        return seam.edits

    def _start(self) -> Start:
        if self._known_start is None:
            if self._latent is None or (self._noise is None and not self._from_noise):
                raise Unsupported("This WebUI does not show a script what it starts from.")
            noise = None if self._from_noise else self._noise
            self._known_start = rehearse(self.p, self._latent, noise, self._edits.levels)
            # kept, as the second pass of Hires.fix has a sampler of its own
            self._in_alpha_space = getattr(self._denoiser, "alphas", None) is not None
        return self._known_start

    @property
    def sigmas(self) -> Tensor:
        start = self._start()
        if start.obstacle:
            raise Unsupported(start.obstacle)
        return start.sigmas.clone()

    @property
    def is_stochastic(self) -> bool:
        return self._start().is_stochastic

    @property
    def needs_noise(self) -> bool:
        return self._start().needs_noise

    def without_noise(self) -> None:
        start = self._start()
        if start.needs_noise:
            raise Unsupported("This sampler cannot run without noise of its own.")
        if start.is_stochastic:
            a1111_noise.give(self.p.sampler, a1111_noise.QUIET)
            self._give_back_later()
            self._known_start = replace(start, is_stochastic=False, own_noise=None)

    @property
    def own_noise(self) -> OwnNoise | None:
        return self._start().own_noise

    def draw_noise(self) -> Tensor:
        noise: Tensor = self.p.rng.next()
        return noise

    def give_noise(self, noise: Callable[[], Tensor]) -> None:
        if self.own_noise is None:
            raise Unsupported("This sampler does not take its noise from elsewhere.")
        dtype = None if self._latent is None else self._latent.dtype
        a1111_noise.give_noise(self.p.sampler, lambda: noise().to(self.device, dtype))
        self._give_back_later()

    def _give_back_later(self) -> None:
        """The sampler's own noise again when the pass ends, also one that was left before it took ours."""
        self._pass.at_end(a1111_noise.give, self.p.sampler, {})
        self._pass.taken_back_by(lambda: a1111_noise.give(self.p.sampler, {}))

    def own_latent(self) -> Tensor | None:
        return None if self._from_noise or self._latent is None else self._latent.detach().float().clone()

    def start_latent(self) -> Tensor:
        given = self._edits.start
        if given is not None:
            return given.latents.clone()
        return self._start().latents.clone()

    def start_from(self, latents: Tensor) -> None:
        start, edits = self._start(), self._edits
        if latents.shape != start.latents.shape:
            raise ValueError(
                f"Latents to start from have the shape {tuple(start.latents.shape)}, not {tuple(latents.shape)}."
            )
        sigma = float(self.sigmas[0])
        latents = latents.detach().to(start.latents).clone()
        own = torch.equal(latents, start.latents)  # bit for bit the host's picture, also where scales are converted
        self._pass.taken_back_by(lambda: setattr(edits, "start", None))
        edits.start = None if own else NewStart(latents, start.latents, sigma)

    def at_end(self, latents: Tensor) -> Tensor:
        end = float(self.sigmas[-1])
        return latents * (1 + end**2) ** 0.5 if self._in_alpha_space else latents

    def embed(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        width, height = (side * self.pixels_per_latent for side in reversed(self.latent_size))
        return TextEncoder(self.p.sd_model, (width, height)).embed(texts, negative)

    def tokenize(self, text: str) -> list[int]:
        model = self.p.sd_model.cond_stage_model
        if not hasattr(model, "tokenize"):  # SDXL has several encoders, of which the first reads what all of them read
            model = next((part for part in getattr(model, "embedders", ()) if hasattr(part, "tokenize")), None)
        if model is None:
            raise Unsupported("This model's text encoder does not show its tokens.")
        return [int(token) for token in model.tokenize([_without_emphasis(text)])[0]]

    def decode(self, latents: Tensor) -> Tensor:
        from modules import devices

        model = self.p.sd_model
        scaled = latents / self.at_end(latents.new_ones(1))
        with torch.no_grad():
            drawn = [model.decode_first_stage(z[None].to(devices.device, devices.dtype_vae)).float() for z in scaled]
        return torch.cat(drawn).clamp(-1, 1)

    def predict(self, x: Tensor, sigma: float, cond: Conditioning, gradients: bool = False) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(self.differentiable() if gradients else torch.no_grad())
            stack.enter_context(self._seam.paused())
            stack.enter_context(without_overrides(self.unet))
            return self._denoised(x, float(sigma), cond)

    def _denoised(self, x: Tensor, sigma: float, cond: Conditioning) -> Tensor:
        given: Any = cond.context.to(x.device)
        if cond.vector is not None:
            given = {"crossattn": given, "vector": cond.vector.to(x.device)}
        denoiser, count = self._denoiser, len(x)
        arguments = self._arguments(given, count, x)
        if getattr(denoiser, "alphas", None) is None:
            return denoiser.inner_model(x, x.new_full((count,), sigma), cond=arguments)
        timestep, scale = self._edits.levels.timestep(sigma), (1 + sigma**2) ** -0.5
        noise = denoiser.inner_model(x * scale, x.new_full((count,), timestep), cond=arguments)
        return x - sigma * noise

    def differentiable(self) -> AbstractContextManager[None]:
        return differentiable(self.unet)

    def position(self, call: DenoiserCall) -> Position:
        own, sampler = cast(A1111Call, call), self.p.sampler
        sigma = self._edits.sigma(own)
        if sampler.config.options.get("second_order", False):
            return Position(own.index // 2, sigma, own.index % 2 == 0)
        if is_plms(getattr(sampler.func, "__name__", "")):
            return Position(max(0, own.index - 1), sigma, own.index != 1)
        return Position(own.index, sigma, True)

    def add_editor(self, editor: Editor) -> None:
        self._pass.register(self._edits.editors, editor)


def _without_emphasis(text: str) -> str:
    """A prompt without the brackets and weights of the host's syntax."""
    from modules import prompt_parser

    return "".join(str(part) for part, _ in prompt_parser.parse_prompt_attention(text))
