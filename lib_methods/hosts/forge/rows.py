"""A method's own unconditional rows in Forge (InstructPix2Pix).

Forge keeps what it runs in two lists, cond and uncond. It runs every entry for the whole batch, in as many runs of the
UNet as memory allows, takes the mean of each list, weighted by the entries' `strength`, and adds the two up, or lets
the `sampler_cfg_function` of an extension do that. Before all this, a `conditioning_modifier` may change both lists. So
e(0, 0) and e(I, 0) stand in the uncond list as entries of their own, what they give is kept when they run, and a
`sampler_cfg_function` adds up the method's sum of three in the place of the host's sum of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lib_methods.denoiser import Guidance, Role, Row, RowPlan, RowPlanner, Unsupported

Entry = dict[str, Any]

_ROWS = {
    "cond": lambda image: Row(Role.COND, image),
    "image": lambda image: Row(Role.UNCOND, image),
    "empty": lambda image: Row(Role.UNCOND, image, without_picture=True),
}


class _Concat:
    """What goes beside the latents in one entry's rows, in the interface of the hosts' conditions. When the host joins
    the entries of a run, it says which they are."""

    def __init__(self, planned: PlannedRows, kind: str, cond: Tensor) -> None:
        self.planned, self.kind, self.cond = planned, kind, cond

    def process_cond(self, batch_size: int, device: Any, **_: Any) -> _Concat:
        return _Concat(self.planned, self.kind, self.cond[:batch_size].to(device))

    def can_concat(self, other: Any) -> bool:
        return bool(self.cond.shape == other.cond.shape)

    def size(self) -> list[int]:  # reForge estimates memory by it
        return list(self.cond.shape)

    def concat(self, others: Sequence[_Concat]) -> Tensor:
        parts = [self, *others]
        self.planned.coming = [part.kind for part in parts]
        return torch.cat([part.cond for part in parts])


@dataclass
class PlannedRows:
    """One denoiser call whose unconditional rows a method has chosen.

    weight: of all conds under AND together. needs_empty: the sampler continues with e(0, 0). coming: the entries of the
    next run. found: their predictions. guidance: what they add up to; None where the host has left out these rows.
    """

    planner: RowPlanner
    plan: RowPlan
    weight: float
    needs_empty: bool
    coming: list[str] = field(default_factory=list)
    found: dict[str, Tensor] = field(default_factory=dict)
    guidance: Guidance | None = None

    def entries(self, cond: list[Entry], uncond: list[Entry], x: Tensor) -> tuple[list[Entry], list[Entry] | None]:
        """The host's two lists with the method's image and rows."""
        picture = self.planner.picture().to(x)
        if picture.shape != x.shape:
            raise Unsupported(f"The image has the shape {tuple(picture.shape)} and the sampler {tuple(x.shape)}.")
        blind = torch.zeros_like(picture)
        added = [self._beside(entry, "empty", blind) for entry in uncond if self.plan.without_picture]
        added += [self._beside(entry, "image", picture) for entry in uncond if self.plan.with_picture]
        return [self._beside(entry, "cond", picture) for entry in cond], added or None

    def _beside(self, entry: Entry, kind: str, picture: Tensor) -> Entry:
        return {**entry, "model_conds": {**entry["model_conds"], "c_concat": _Concat(self, kind, picture)}}

    def rows(self, batch: int) -> tuple[Row, ...] | None:
        """The rows of the run that is about to start; None where the host did not join them."""
        return tuple(_ROWS[kind](image) for kind in self.coming for image in range(batch)) if self.coming else None

    def keep(self, out: Tensor) -> None:
        """Remember what a run predicted, before the sum: others may run the entries once more after it (SAG)."""
        kinds, self.coming = self.coming, []
        for kind, part in zip(kinds, out.chunk(max(1, len(kinds)))):
            self.found.setdefault(kind, part)

    def summed(self, formula: Callable[[dict[str, Any]], Tensor] | None, arguments: dict[str, Any]) -> Tensor:
        """What stands as the call's `sampler_cfg_function`, which returns x minus the guided prediction.

        formula: the one of another extension; it is shown two predictions whose plain sum is the method's.
        """
        x, cond, uncond = (arguments[name] for name in ("input", "cond_denoised", "uncond_denoised"))
        image, empty = self.found.get("image"), self.found.get("empty")
        start = empty if image is None else image
        if start is None:
            return x - cond
        base = start if image is None or empty is None else self.planner.base(self.plan, image, empty)
        direction = (cond - start) * self.weight
        guided = base + self.plan.text_scale * direction
        self.guidance = Guidance(start + direction, base, direction, self.plan.text_scale, guided)
        uncond.copy_(empty if self.needs_empty and empty is not None else base)  # for all who ask afterwards
        if formula is None:
            return x - guided
        moved = base + direction
        shown = {"cond": x - moved, "uncond": x - base, "cond_denoised": moved, "uncond_denoised": base}
        return formula({**arguments, **shown})


class NegativePrompt:
    """The negative prompts of a pass whose host embeds none, because its CFG scale is 1."""

    def __init__(self, schedules: Any) -> None:
        self._schedules = schedules

    @staticmethod
    def of(p: Any, pixels: tuple[int, int]) -> NegativePrompt | None:
        """Embeds them as the host would; None where the host has done so. pixels: width and height."""
        from modules import prompt_parser

        if p.get_conds()[1] is not None:
            return None
        texts = p.hr_negative_prompts if getattr(p, "is_hr_pass", False) else p.negative_prompts
        width, height = pixels
        prompts = prompt_parser.SdConditioning(list(texts), is_negative_prompt=True, width=width, height=height)
        return NegativePrompt(prompt_parser.get_learned_conditioning(p.sd_model, prompts, p.steps))

    def entry(self, like: Entry, step: int) -> Entry:
        """Them at a step, as an entry in the host's format."""
        from modules import prompt_parser

        text = prompt_parser.reconstruct_cond_batch(self._schedules, step)
        told = (
            {"c_crossattn": text["crossattn"], "y": text["vector"]} if isinstance(text, dict) else {"c_crossattn": text}
        )
        conds = like["model_conds"]
        new = {key: type(conds[key])(value) for key, value in told.items()}
        return {**like, "cross_attn": told["c_crossattn"], "model_conds": {**conds, **new}}
