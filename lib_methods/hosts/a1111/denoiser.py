"""Wraps the host's `CFGDenoiser`: runs editors, counts rows, enters hooks, calls guides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import LATENT_CHANNELS, Guidance, Role, Row, RowChoice, RowPlanner
from lib_methods.denoiser.levels import Levels
from lib_methods.guidance import combine
from lib_methods.hosts.a1111.rows import HOST_ARGUMENTS, A1111Call, RowTakeover, scale_factor
from lib_methods.hosts.job import JobSampling
from lib_methods.hosts.passes import Pass, put_back


class Seam:
    """What is put in front of one denoiser's methods for one pass; they are the denoiser's own again when it ends."""

    def __init__(self, current: Pass, denoiser: Any, unet: Callable[[], nn.Module]) -> None:
        self.current, self.denoiser, self.unet = current, denoiser, unet
        self.edit: Callable[[A1111Call, Tensor], None] | None = None
        self.call: A1111Call | None = None
        self.taken: RowTakeover | None = None
        self._combines = False
        self.original = self._stand_for("forward", self.forward)

    def _stand_for(self, name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
        """Put `ours` in the place of a method of the denoiser until the pass ends; returns what stood there."""
        stood, before = getattr(self.denoiser, name), vars(self.denoiser).get(name)
        setattr(self.denoiser, name, ours)
        self.current.at_end(put_back, self.denoiser, name, ours, before)
        return stood

    def forward(self, x: Tensor, sigma: Tensor, uncond: Any, cond: Any, *args: Any, **kwargs: Any) -> Any:
        if self.current.is_over:
            return self.original(x, sigma, uncond, cond, *args, **kwargs)
        if (edit := self.edit) is not None:
            call = A1111Call(self.denoiser, sigma, self._rows(cond, len(x)))
            self.current.guarded(lambda: edit(call, x))
        return self.current.guarded(lambda: self._run(x, sigma, uncond, cond, args, kwargs))

    def _run(
        self, x: Tensor, sigma: Tensor, uncond: Any, cond: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        call, unet = A1111Call(self.denoiser, sigma, self._rows(cond, len(x))), self.unet()
        taken, planner, has_guides = None, self.current.planner, bool(self.current.guides)
        if planner is not None or has_guides:
            given = {**dict(zip(HOST_ARGUMENTS, args)), **kwargs}
            # in txt2img the host takes a model that sees an image for one for inpainting
            if planner is not None and given["image_cond"].shape[1] != LATENT_CHANNELS:
                self.current.needed.add(type(planner))
            choice = self.current.choose(call, float(given["cond_scale"]) * scale_factor(self.denoiser))
            if planner is not None or choice != RowChoice():
                taken = RowTakeover(planner, self.denoiser, self.unet, cond, has_guides)
                args, kwargs = (), taken.begin(call, choice, given, x)
        self.call, self.taken = call, taken
        entering = unet.register_forward_pre_hook(lambda _, inputs: call.enter_unet(inputs[0]) if inputs else None)
        leaving = unet.register_forward_hook(lambda *_: call.leave_unet())
        try:
            with ExitStack() as stack:
                stack.enter_context(self.current.around(call))
                if taken is not None:
                    stack.enter_context(taken.installed())
                return self.original(x, sigma, uncond, cond, *args, **kwargs)
        finally:
            self.call = self.taken = None
            entering.remove()
            leaving.remove()

    def _rows(self, cond: Any, batch: int) -> tuple[Row, ...]:
        repeats = [len(parts) for parts in cond.batch]
        rows = [Row(Role.COND, image) for image, count in enumerate(repeats) for _ in range(count)]
        uncond = [Row(Role.UNCOND, image) for image in range(batch)]
        denoiser = self.denoiser
        edits = (
            getattr(denoiser.p.sd_model, "cond_stage_key", None) == "edit" if getattr(denoiser, "p", None) else False
        )
        if edits and getattr(denoiser, "image_cfg_scale", None) not in (None, 1.0):
            return (*rows, *uncond, *(replace(row, without_picture=True) for row in uncond))
        return (*rows, *uncond)

    def set_planner(self, planner: RowPlanner) -> None:
        """Has the planner choose the rows of every call."""
        self.stand_between()
        before, self.current.planner = self.current.planner, planner
        self.current.taken_back_by(lambda: setattr(self.current, "planner", before))

    def stand_between(self) -> None:
        """Have guides and a planner asked between the host's combination of the rows and its blending of a mask."""
        if not self._combines:  # on the object, once; whatever stood there still does its part
            self._combine = self._stand_for("combine_denoised", self.combine)
            self._combine_edit = self._stand_for("combine_denoised_for_edit_model", self.combine_edit)
            self._combines = True

    def combine(self, x_out: Tensor, conds_list: Any, uncond: Any, cond_scale: float) -> Tensor:
        """In place of the host's `combine_denoised`: rows as `_rows` has them, `conds_list` their indices and weights
        under AND."""
        dtype, image = x_out.dtype, None
        if self.taken is not None:
            x_out, cond_scale, image = self.taken.moved(x_out, cond_scale)
        guided = self._combine(x_out, conds_list, uncond, cond_scale)
        if not self.current.guides:
            return guided.to(dtype)
        base = x_out[-len(conds_list) :]
        parts = [sum((x_out[row] - base[i]) * weight for row, weight in conds) for i, conds in enumerate(conds_list)]
        direction = torch.stack(parts)
        firsts = [conds[0][0] for conds in conds_list]
        cond = (base if image is None else image) + direction
        return self._guided(firsts, cond, base, direction, cond_scale, guided).to(dtype)

    def combine_edit(self, x_out: Tensor, cond_scale: float) -> Tensor:
        """In place of the host's `combine_denoised_for_edit_model`, which has three rows for an image."""
        guided = self._combine_edit(x_out, cond_scale)
        cond, image, uncond = x_out.chunk(3)
        base = combine(uncond, image - uncond, self.denoiser.image_cfg_scale)
        return self._guided(range(len(cond)), cond, base, cond - image, cond_scale, guided)

    def _guided(
        self, firsts: Iterable[int], cond: Tensor, base: Tensor, direction: Tensor, scale: float, guided: Tensor
    ) -> Tensor:
        """Ask the guides. Timestep samplers combine predictions of the noise: there `x0 = (x - s eps) / a`, an image's
        `x` being what the UNet saw in its first row."""
        if self.call is None or not self.current.guides:
            return guided
        alphas = getattr(self.denoiser, "alphas", None)
        away = None if self.taken is None else self.taken.perturbation
        if alphas is None:
            return self.current.ask(self.call, Guidance(cond, base, direction, float(scale), guided, away))
        alpha = alphas[int(self.call.level.item())].to(guided)
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        rows = torch.cat(self.call.inputs)[list(firsts), : guided.shape[1]].to(guided)
        clean_cond, clean_base, before = ((rows - noise * eps) / signal for eps in (cond, base, guided))
        leading = direction * (-noise / signal)
        away = None if away is None else away.to(guided) * (-noise / signal)
        after = self.current.ask(self.call, Guidance(clean_cond, clean_base, leading, float(scale), before, away))
        return guided if after is before else guided + (before - after) * (signal / noise)

    @property
    def in_alpha_space(self) -> bool:
        return getattr(self.denoiser, "alphas", None) is not None

    def sigma(self, call: A1111Call, levels: Levels) -> float:
        level = float(call.level.item())
        return levels.sigma(level) if self.in_alpha_space else level

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, runs of the UNet are not counted as rows of the call."""
        call = self.call
        if call is not None:
            call.paused = True
        try:
            yield
        finally:
            if call is not None:
                call.paused = False


def inner_arguments(
    job: JobSampling, text: Any, count: int, like: Tensor, image: Tensor | None = None
) -> dict[str, Any]:
    """What the host's inner model gets besides latents and level: `text`, a tensor or SDXL's dict of them, and `image`,
    see `Conditioning`, for all rows or one for each."""
    key = getattr(job.p.sd_model.model, "conditioning_key", None)
    if key == "crossattn-adm":
        channels = 2 * job.p.sd_model.noise_augmentor.time_embed.dim
        return {"c_crossattn": [_repeat(text, count)], "c_adm": like.new_zeros(count, channels)}
    concat = {"c_concat": [job.beside(count, like, image)]}
    if isinstance(text, dict):
        return {**{name: _repeat(value, count) for name, value in text.items()}, **concat}
    return {"c_crossattn": [_repeat(text, count)], **concat}


def _repeat(conditioning: Tensor, count: int) -> Tensor:
    return conditioning.expand(count, *conditioning.shape[1:])
