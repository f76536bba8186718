"""The rows of a denoiser call: which are in the UNet, and those that a method chooses.

`CFGDenoiser.forward` builds the UNet's batch as `[cond rows, several per image under AND | uncond rows | for 8-channel
models uncond rows without image]` and runs it at once or in slices, always in that order. So rows are known by counting
how many have gone through the UNet.

Where a method chooses the rows (`RowTakeover`), the host is left with the two blocks that it knows, so that its slices,
its padding, its skipping of rows, its callbacks and its mask stay what they are. What stands in for its inner model
runs the rows that the method wants and returns as many as the host expects. Uncond rows that are left out come back as
the weighted sum of the image's cond rows, which is then the host's sum, too. Perturbed rows are cond rows once more, in
a run of their own, so that no run is larger than the host's.

For a model that sees an image, the host's uncond rows are e(0, 0) where that is computed, else e(I, 0). Before the host
combines them they are moved so that its own sum, `uncond + scale * (cond - uncond)`, is the method's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import Needs, Role, Row, RowChoice, RowPlan, RowPlanner, Unsupported, sees_picture
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
        if self.coming is not None:
            self.current_rows, self.coming = self.coming, None
            if not any(row.perturbed for row in self.current_rows):
                self.inputs.append(latents)
            return
        self.inputs.append(latents)
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
    """One denoiser call whose rows are not the host's own: those of a planner, of a guide's choice, or of both."""

    def __init__(
        self, planner: RowPlanner | None, denoiser: Any, unet: Callable[[], nn.Module], cond: Any, has_guides: bool
    ) -> None:
        self.planner, self.denoiser, self.unet = planner, denoiser, unet
        self.weights = [[float(part.weight) for part in parts] for parts in cond.batch]
        self.owners = [image for image, parts in enumerate(self.weights) for _ in parts]
        self.needs = Needs(
            sums_to_one=all(abs(sum(weights) - 1) < 1e-6 for weights in self.weights),
            base=has_guides,
            empty=bool(getattr(denoiser, "need_last_noise_uncond", False)),
        )
        self.plan, self.choice = RowPlan(1.0, 1.0, False, False), RowChoice()
        self.call: A1111Call | None = None
        self._done = 0
        self._acted = False
        self._cond_out: list[Tensor] = []
        self._image_out: list[Tensor] = []
        self._away: list[Tensor] = []

    def begin(self, call: A1111Call, choice: RowChoice, given: dict[str, Any], like: Tensor) -> dict[str, Any]:
        """Set the call's rows; returns the host's further arguments, with a planner's image where there is one."""
        self.call, host = call, call.rows
        if self.planner is not None:
            given = self._planned(self.planner, call, given, like)
        # a third block of rows has the host's own image scale
        needed = self.planner is not None or not self.needs.sums_to_one or self.needs.empty
        needed = needed or any(row.without_picture for row in host)
        self.choice = RowChoice(choice.uncond or needed, choice.perturbed)
        if not self.choice.uncond:
            call.rows = tuple(row for row in host if row.role is Role.COND)
        if choice.perturbed:
            call.rows += tuple(self._perturbed(range(len(self.owners))))
        return given

    def _perturbed(self, conds: Iterable[int]) -> list[Row]:
        return [Row(Role.COND, self.owners[i], perturbed=True) for i in conds]

    def _planned(self, planner: RowPlanner, call: A1111Call, given: dict[str, Any], like: Tensor) -> dict[str, Any]:
        """Make the plan; the host's further arguments with the method's image."""
        plan = self.plan = planner.plan(call, given["cond_scale"] * scale_factor(self.denoiser), self.needs)
        images = range(len(self.weights))
        call.rows = tuple(Row(Role.COND, image) for image in self.owners)
        if plan.without_picture:
            call.rows += tuple(Row(Role.UNCOND, image, without_picture=True) for image in images)
        if plan.with_picture:
            call.rows += tuple(Row(Role.UNCOND, image) for image in images)
        picture = planner.picture().to(like)
        expected = (len(like), like.shape[1], *like.shape[2:])
        if tuple(picture.shape) != expected:
            raise Unsupported(f"The image has the shape {tuple(picture.shape)} and the sampler {expected}.")
        return {**given, "image_cond": picture}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, the host's inner model is this one; with a planner, the host's own way with three rows is
        switched off."""
        denoiser = self.denoiser
        scale = denoiser.image_cfg_scale
        if self.planner is not None:
            denoiser.image_cfg_scale = None
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
        if call is None or call.paused or self._done >= count + len(self.weights):
            return inner(x, sigma, cond=cond)
        start, self._done = self._done, self._done + len(x)
        conds = range(start, max(start, min(self._done, count)))
        plans = self.planner is not None and sees_picture(self.unet(), x.shape[1])
        if plans or not self.choice.uncond:
            self._acted = plans
            out = self._run_planned(inner, x, sigma, cond, conds)
        else:
            out = inner(x, sigma, cond=cond)
        if self.choice.perturbed and conds:
            rows = list(enumerate(self._perturbed(conds)))
            self._away.append((out[: len(conds)] - self._run_rows(inner, x, sigma, cond, rows)).float())
        return out

    def _run_planned(self, inner: nn.Module, x: Tensor, sigma: Tensor, cond: dict[str, Any], chosen: range) -> Tensor:
        count, conds = len(self.owners), len(chosen)
        if len(cond.get("c_concat", [x])[0]) > len(x):  # a host that skips the uncond rows still passes their image
            cond = {**cond, "c_concat": [part[: len(x)] for part in cond["c_concat"]]}
        images = range(chosen.stop - count, self._done - count) if len(x) > conds else range(0)
        rows = [(i, Row(Role.COND, self.owners[row])) for i, row in enumerate(chosen)]
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
        assert self.planner is not None
        base = self.planner.base(self.plan, image, empty)
        shift = (base - image)[self.owners]
        return torch.cat([rows[:count] + shift, base]), self.plan.text_scale, image

    @property
    def perturbation(self) -> Tensor | None:
        """For each image what perturbed rows lack, weighted as their prompts are; None without them."""
        if sum(map(len, self._away)) != len(self.owners):
            return None
        weights = [weight for parts in self.weights for weight in parts]
        return weigh(torch.cat(self._away), self.owners, weights, len(self.weights))


def scale_factor(denoiser: Any) -> float:
    """What the host multiplies the CFG scale by (CFG++)."""
    return float(getattr(denoiser, "cond_scale_miltiplier", 1.0))


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
