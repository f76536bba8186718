"""The rows of a denoiser call: which are in the UNet, and a method's own for a model that sees an image.

`CFGDenoiser.forward` builds the UNet's batch as `[cond rows, several per image under AND | uncond rows | for 8-channel
models uncond rows without image]` and runs it at once or in slices, always in that order. So rows are known by counting
how many have gone through the UNet.

Where a method chooses the rows (`RowTakeover`), the host is left with the two blocks that it knows, so that its slices,
its padding, its skipping of rows, its callbacks and its mask stay what they are. What stands in for its inner model
runs the rows that the method wants and returns as many as the host expects: the host's uncond rows are e(0, 0) where
that is computed, else e(I, 0). Before the host combines them they are moved so that its own sum,
`uncond + scale * (cond - uncond)`, is the method's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import Needs, Role, Row, RowPlan, RowPlanner, Unsupported, sees_picture
from lib_methods.guidance import weigh

HOST_ARGUMENTS = ("cond_scale", "s_min_uncond", "image_cond")


class A1111Call:
    """One call of the host's `CFGDenoiser.forward`."""

    def __init__(self, denoiser: Any, level: Tensor, rows: tuple[Row, ...]) -> None:
        self.rows, self.level = rows, level.detach().flatten()[:1]
        self.step = denoiser_step(denoiser)
        self.index = int(denoiser.step)  # of the call in its sampling, from 0
        self.current_rows: tuple[Row, ...] = ()
        self.coming: tuple[Row, ...] | None = None  # the next rows, where they are not the host's
        self.paused = False
        self.inputs: list[Tensor] = []
        self._done = 0

    def enter_unet(self, latents: Tensor) -> None:
        """The UNet starts on the next rows."""
        if self.paused:
            return
        self.inputs.append(latents)
        if self.coming is not None:
            self.current_rows, self.coming = self.coming, None
            return
        self.current_rows = self.rows[self._done : self._done + len(latents)]
        self._done += len(latents)

    def leave_unet(self) -> None:
        """The UNet is done with its rows."""
        if not self.paused:
            self.current_rows = ()


def denoiser_step(denoiser: Any) -> int:
    """The sampling step; the host counts denoiser calls, of which second-order samplers make two a step."""
    calls, steps = denoiser.total_steps or denoiser.steps or 1, denoiser.steps or 1
    return min(int(denoiser.step * steps / max(1, calls)), steps - 1)


class RowTakeover:
    """One denoiser call whose unconditional rows a method decides about."""

    def __init__(
        self, planner: RowPlanner, denoiser: Any, unet: Callable[[], nn.Module], cond: Any, has_guides: bool
    ) -> None:
        self.planner, self.denoiser, self.unet = planner, denoiser, unet
        self.weights = [[float(part.weight) for part in parts] for parts in cond.batch]
        self.owners = [image for image, parts in enumerate(self.weights) for _ in parts]
        self.needs = Needs(
            sums_to_one=all(abs(sum(weights) - 1) < 1e-6 for weights in self.weights),
            base=has_guides,
            empty=bool(getattr(denoiser, "need_last_noise_uncond", False)),
        )
        self.plan = RowPlan(1.0, 1.0, False, False)
        self.call: A1111Call | None = None
        self._done = 0
        self._acted = False
        self._cond_out: list[Tensor] = []
        self._image_out: list[Tensor] = []

    def begin(self, call: A1111Call, given: dict[str, Any], like: Tensor) -> dict[str, Any]:
        """Make the plan and set the call's rows; returns the host's further arguments with the method's image."""
        multiplier = float(getattr(self.denoiser, "cond_scale_miltiplier", 1.0))
        plan = self.planner.plan(call, float(given["cond_scale"]) * multiplier, self.needs)
        self.plan, self.call = plan, call
        images = range(len(self.weights))
        call.rows = tuple(Row(Role.COND, image) for image in self.owners)
        if plan.without_picture:
            call.rows += tuple(Row(Role.UNCOND, image, without_picture=True) for image in images)
        if plan.with_picture:
            call.rows += tuple(Row(Role.UNCOND, image) for image in images)
        picture = self.planner.picture().to(like)
        expected = (len(like), like.shape[1], *like.shape[2:])
        if tuple(picture.shape) != expected:
            raise Unsupported(f"The image has the shape {tuple(picture.shape)} and the sampler {expected}.")
        return {**given, "image_cond": picture}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, the host's inner model is this one; the host's own way with three rows is switched off."""
        denoiser = self.denoiser
        scale, denoiser.image_cfg_scale = denoiser.image_cfg_scale, None
        update = denoiser.update_inner_model

        def install() -> None:
            denoiser.model_wrap = _InnerModel(denoiser.inner_model, self)

        def updated() -> None:  # the refiner's model, in the middle of a call
            update()
            install()

        install()
        denoiser.update_inner_model = updated
        try:
            yield
        finally:
            denoiser.image_cfg_scale = scale
            del denoiser.update_inner_model
            if isinstance(denoiser.model_wrap, _InnerModel):
                denoiser.model_wrap = denoiser.model_wrap.wrapped

    def run(self, inner: nn.Module, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        """In place of the host's `inner_model(x, sigma, cond=...)` for its next rows."""
        call, count = self.call, len(self.owners)
        beyond = self._done >= count + len(self.weights)
        if call is None or call.paused or beyond or not sees_picture(self.unet(), x.shape[1]):
            return inner(x, sigma, cond=cond)
        if len(cond["c_concat"][0]) > len(x):  # a host that skips the uncond rows still passes their image
            cond = {**cond, "c_concat": [part[: len(x)] for part in cond["c_concat"]]}
        start, self._done = self._done, self._done + len(x)
        conds = max(0, min(self._done, count) - start)
        images = range(start + conds - count, self._done - count) if len(x) > conds else range(0)
        rows = [(i, Row(Role.COND, self.owners[start + i])) for i in range(conds)]
        plan = self.plan
        tail = [(conds + i, Row(Role.UNCOND, image, plan.without_picture)) for i, image in enumerate(images)]
        kept = plan.with_picture or plan.without_picture
        rows += tail if kept else []
        added = [(i, Row(row.role, row.image)) for i, row in tail] if plan.with_picture and plan.without_picture else []
        apart = added and not conds  # the host runs slices: then none of ours is larger than its own
        out = self._run_rows(inner, x, sigma, cond, rows if apart else rows + added) if rows else x.new_empty(0)
        if apart:
            self._image_out.append(self._run_rows(inner, x, sigma, cond, added))
        elif added:
            self._image_out.append(out[len(rows) :])
        self._cond_out.append(out[:conds])
        self._acted = True
        if kept or not images:
            return out[: len(x)]
        weights = [weight for parts in self.weights for weight in parts]
        found = torch.cat([part for part in self._cond_out if len(part)])
        summed = weigh(found, self.owners, weights, len(self.weights))
        return torch.cat([out[:conds], summed[list(images)]]) if conds else summed[list(images)]

    def _run_rows(
        self, inner: nn.Module, x: Tensor, sigma: Tensor, cond: dict[str, Any], rows: list[tuple[int, Row]]
    ) -> Tensor:
        assert self.call is not None
        self.call.coming = tuple(row for _, row in rows)
        blind = [position for position, (_, row) in enumerate(rows) if row.without_picture]
        indices = [i for i, _ in rows]
        if not blind and indices == list(range(len(x))):
            return inner(x, sigma, cond=cond)
        chosen = torch.tensor(indices, device=x.device)
        picked = {name: _pick(value, chosen) for name, value in cond.items()}
        if blind:
            (picture,) = picked["c_concat"]
            picture = picture.clone()
            picture[blind] = 0
            picked["c_concat"] = [picture]
        return inner(x[chosen], sigma[chosen], cond=picked)

    def moved(self, x_out: Tensor, cond_scale: float) -> tuple[Tensor, float, Tensor | None]:
        """The rows moved so that the host's sum of two is the method's, the scale for that sum, and e(I, 0).

        Untouched with None where the host itself skipped the uncond rows, or the model sees no image.
        """
        count, images = len(self.owners), len(self.weights)
        if not self._acted or self._done < count + images:
            return x_out, cond_scale, None
        rows = x_out.float()  # differences of half precision numbers, added up again
        if not self._image_out:
            return rows, self.plan.text_scale, rows[-images:]
        image, empty = torch.cat(self._image_out).float(), rows[-images:]
        base = self.planner.base(self.plan, image, empty)
        shift = (base - image)[self.owners]
        return torch.cat([rows[:count] + shift, base]), self.plan.text_scale, image


class _InnerModel(nn.Module):
    """Stands where the host keeps its inner model, and looks like it."""

    def __init__(self, wrapped: nn.Module, takeover: RowTakeover) -> None:
        super().__init__()
        self.wrapped = wrapped
        self._takeover = takeover

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def forward(self, x: Tensor, sigma: Tensor, cond: dict[str, Any]) -> Tensor:
        return self._takeover.run(self.wrapped, x, sigma, cond)


def _pick(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    return [part[rows] for part in value]
