"""Editing in AUTOMATIC1111's WebUI and the standalone host: where a sampler starts, its levels, its own latents.

The denoiser is handed the sampler's own tensor, and every sampler continues from that tensor. So what is written into
it in place is what the sampler continues with. UniPC alone asks the model about latents that it foresees, and continues
from those that it corrects with the answer; it shows them to its callback, where they are moved by as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from lib_methods.attention import differentiable, without_overrides
from lib_methods.denoiser import Conditioning, DenoiserCall, Editor, OwnNoise, Position, Unsupported
from lib_methods.denoiser.levels import Levels
from lib_methods.hosts.a1111.denoiser import inner_arguments
from lib_methods.hosts.a1111.rows import A1111Call
from lib_methods.hosts.a1111.start import QUIET, SOURCES, Start, give, is_plms, is_unipc, rehearse
from lib_methods.hosts.a1111.text import TextEncoder
from lib_methods.hosts.job import JobSampling
from lib_methods.hosts.passes import Pass, is_stopped, put_back


class EditingSeam(Protocol):
    """What an adapter puts in front of the host's denoiser for one pass, as far as editing needs it.

    denoiser: the host's `CFGDenoiser`. edit: called with every denoiser call and the sampler's own tensor.
    """

    current: Pass
    denoiser: Any
    edit: Callable[[Any, Tensor], None] | None

    @property
    def in_alpha_space(self) -> bool:
        """Whether the sampler keeps the variance at one (DDIM, PLMS, UniPC)."""

    def sigma(self, call: Any, levels: Levels) -> float:
        """The noise of a call."""

    def paused(self) -> AbstractContextManager[None]:
        """Within the block, runs of the UNet are not counted as rows of the call."""


class A1111Editing:
    """Implements `lib_methods.denoiser.Editing`. noise: the `noise` of `process_before_every_sampling`."""

    def __init__(self, job: JobSampling, seam: EditingSeam, noise: Tensor | None) -> None:
        self.job, self.seam, self.p = job, seam, job.p
        self._latent, self._noise = job.latent, noise
        self._known_start: Start | None = None
        self._in_alpha_space = False

    @property
    def _from_noise(self) -> bool:
        return not self.job.is_hires and getattr(self.p, "init_latent", None) is None

    @property
    def _edits(self) -> Edits:
        found = getattr(self.seam.edit, "__self__", None)
        if not isinstance(found, Edits):
            found = Edits(self.seam, self.p.sampler, self.job.levels)
            self.seam.edit = found.before
        return found

    def _start(self) -> Start:
        if self._known_start is None:
            if self._latent is None or (self._noise is None and not self._from_noise):
                raise Unsupported("This WebUI does not show scripts the latents it starts from.")
            noise = None if self._from_noise else self._noise
            self._known_start = rehearse(self.p, self._latent, noise, self._edits.levels)
            # kept, because the second pass of Hires.fix has its own sampler
            self._in_alpha_space = self.seam.in_alpha_space
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
            raise Unsupported("This sampler cannot run without its own noise.")
        if start.is_stochastic:
            give(self.p.sampler, QUIET)
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
        give(self.p.sampler, dict.fromkeys(SOURCES, lambda *_: noise().to(self.job.device, dtype)))
        self._give_back_later()

    def _give_back_later(self) -> None:
        """The sampler's own noise again when the pass ends, also one that was left before it took ours."""
        self.seam.current.at_end(give, self.p.sampler, {})
        self.seam.current.taken_back_by(lambda: give(self.p.sampler, {}))

    def own_latent(self) -> Tensor | None:
        return None if self._from_noise or self._latent is None else self._latent.detach().float().clone()

    def own_image(self) -> Tensor | None:
        given, latent = getattr(self.p, "image_conditioning", None), self.own_latent()
        if latent is None or not isinstance(given, Tensor):
            return None
        if given.shape != (len(latent), self.job.extra_channels(), *latent.shape[2:]):
            return None  # models that see no image are given a placeholder
        with torch.inference_mode(False):  # it may be part of a graph
            return given.detach().to(latent, copy=True)

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
        own = torch.equal(latents, start.latents)  # bit for bit the host's image, also where scales are converted
        self.seam.current.taken_back_by(lambda: setattr(edits, "start", None))
        edits.start = None if own else NewStart(latents, start.latents, sigma)

    def at_end(self, latents: Tensor) -> Tensor:
        end = float(self.sigmas[-1])
        return latents * (1 + end**2) ** 0.5 if self._in_alpha_space else latents

    def embed(self, texts: Sequence[str], negative: bool = False) -> Conditioning:
        return TextEncoder(self.p.sd_model, self.job.pixels).embed(texts, negative)

    def tokenize(self, text: str) -> list[int]:
        model = self.p.sd_model.cond_stage_model
        if not hasattr(model, "tokenize"):  # SDXL has several encoders, of which the first reads what all of them read
            model = next((part for part in getattr(model, "embedders", ()) if hasattr(part, "tokenize")), None)
        if model is None:
            raise Unsupported("This model's text encoder does not expose its tokens.")
        return self.tokens_of(model, text)

    @staticmethod
    def tokens_of(encoder: Any, text: str) -> list[int]:
        """What an encoder of the host makes of a text without its emphasis."""
        return [int(token) for token in encoder.tokenize([_without_emphasis(text)])[0]]

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
            stack.enter_context(self.seam.paused())
            stack.enter_context(without_overrides(self.job.unet))
            return self._denoised(x, float(sigma), cond)

    def _denoised(self, x: Tensor, sigma: float, cond: Conditioning) -> Tensor:
        given: Any = cond.context.to(x.device)
        if cond.vector is not None:
            given = {"crossattn": given, "vector": cond.vector.to(x.device)}
        denoiser, count = self.seam.denoiser, len(x)
        arguments = inner_arguments(self.job, given, count, x, cond.image)
        if getattr(denoiser, "alphas", None) is None:
            return denoiser.inner_model(x, x.new_full((count,), sigma), cond=arguments)
        timestep, scale = self._edits.levels.timestep(sigma), (1 + sigma**2) ** -0.5
        noise = denoiser.inner_model(x * scale, x.new_full((count,), timestep), cond=arguments)
        return x - sigma * noise

    def differentiable(self) -> AbstractContextManager[None]:
        return differentiable(self.job.unet)

    def position(self, call: DenoiserCall) -> Position:
        own, sampler = cast(A1111Call, call), self.p.sampler
        sigma = self.seam.sigma(own, self._edits.levels)
        if sampler.config.options.get("second_order", False):
            return Position(own.index // 2, sigma, own.index % 2 == 0)
        if is_plms(getattr(sampler.func, "__name__", "")):
            return Position(max(0, own.index - 1), sigma, own.index != 1)
        return Position(own.index, sigma, True)

    def add_editor(self, editor: Editor) -> None:
        self.seam.current.register(self._edits.editors, editor)


@dataclass(frozen=True)
class NewStart:
    """Latents to start from, those that the host would start from, both at `sigma`, in sigma space."""

    latents: Tensor
    instead_of: Tensor
    sigma: float


class Edits:
    """What is written into the latents of one pass of a sampler."""

    def __init__(self, seam: EditingSeam, sampler: Any, levels: Levels) -> None:
        self.seam, self.levels, self.failures = seam, levels, seam.current.failures
        self.start: NewStart | None = None
        self.editors: dict[type, Editor] = {}
        self._unsettled: Tensor | None = None
        self._foresees = is_unipc(getattr(sampler.func, "__name__", ""))
        if self._foresees:
            before = vars(sampler).get("callback_state")
            self._report, sampler.callback_state = sampler.callback_state, self._settle
            seam.current.at_end(put_back, sampler, "callback_state", self._settle, before)

    def before(self, call: A1111Call, x: Tensor) -> None:
        """Start from the given latents and ask the editors; x: the sampler's latents, written in place."""
        self._unsettled = None
        editors = [editor for kind, editor in self.editors.items() if kind not in self.failures]
        start, self.start = (None, self.start) if call.index else (self.start, None)
        if (start is None and not editors) or is_stopped():
            return
        sigma = self.seam.sigma(call, self.levels)
        scale = (1 + sigma**2) ** 0.5 if self.seam.in_alpha_space else 1.0
        with torch.no_grad():
            if start is not None:
                if abs(start.sigma - sigma) <= 1e-4 * sigma:
                    x.copy_(start.latents / scale)
                else:  # the sampler has added noise before the first call: that stays
                    x.add_(((start.latents - start.instead_of) / scale).to(x))
            given = found = x.detach().float() * scale
        for editor in editors:
            found = editor.before(call, found)
            if found.shape != x.shape:
                raise ValueError(f"An editor made latents of the shape {tuple(found.shape)} of {tuple(x.shape)}.")
        if found is not given:
            with torch.no_grad():
                old = x.clone() if self._foresees and call.index else None
                if scale == 1:
                    x.copy_(found.detach())
                else:  # what was not moved stays as it was to the last bit
                    x.add_(((found.detach() - given) / scale).to(x))
                self._unsettled = None if old is None else x - old

    def _settle(self, state: dict[str, Any]) -> None:
        """Replaces UniPC's callback: moves its next input by as much as the edit moved its query."""
        moved, self._unsettled = self._unsettled, None
        if moved is not None:
            with torch.no_grad():
                state["x"].add_(moved.to(state["x"]))
        self._report(state)


def _without_emphasis(text: str) -> str:
    """A prompt without the brackets and weights of the host's syntax."""
    from modules import prompt_parser

    return "".join(str(part) for part, _ in prompt_parser.parse_prompt_attention(text))
