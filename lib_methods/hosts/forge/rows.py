"""A method's own unconditional rows in Forge (InstructPix2Pix).

Forge keeps what it runs in two lists, cond and uncond. It runs every entry for the whole batch, in as many runs of the
UNet as memory allows, and takes the mean of each list, weighted by the entries' `strength` and `mask`; then it adds up
`uncond + S (cond - uncond)`. Before that, a `conditioning_modifier` may change both lists. So the entries e(0, 0) and
e(I, 0) stand in the uncond list, with the weights that make the host's own sum `base + S (cond - e(I, 0))`, where the
base is a e(0, 0) + (1 - a) e(I, 0), a = 1 - s_I:

    uncond = [a e(0, 0) + (1 - a - S) e(I, 0)] / (1 - S)

At S = 1 no uncond row has a part in the host's sum: there they stand in the cond list, with the weights a and -a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    def concat(self, others: Sequence[_Concat]) -> Tensor:
        parts = [self, *others]
        self.planned.coming = [part.kind for part in parts]
        return torch.cat([part.cond for part in parts])


@dataclass
class PlannedRows:
    """One denoiser call whose unconditional rows a method has chosen.

    weight: of all conds under AND together. coming: the entries of the next run. found: their predictions.
    """

    planner: RowPlanner
    plan: RowPlan
    weight: float
    coming: list[str] = field(default_factory=list)
    found: dict[str, Tensor] = field(default_factory=dict)

    def entries(self, cond: list[Entry], uncond: list[Entry], x: Tensor) -> tuple[list[Entry], list[Entry] | None]:
        """The host's two lists with the method's image and rows."""
        picture = self.planner.picture().to(x)
        if picture.shape != x.shape:
            raise Unsupported(f"The image has the shape {tuple(picture.shape)} and the sampler {tuple(x.shape)}.")
        conds = [self._beside(entry, "cond", picture) for entry in cond]
        scale = self.plan.text_scale * self.weight
        share = torch.as_tensor(1.0 - self.plan.image_scale, device=x.device, dtype=torch.float32)
        share = share.expand(1, 1, *x.shape[2:])[:, 0]
        singular = math.isclose(scale, 1.0, abs_tol=1e-6)
        weights = (
            {"empty": share, "image": -share}
            if singular
            else {
                "empty": share / (1 - scale),
                "image": (1 - share - scale) / (1 - scale),
            }
        )
        wanted = {"empty": self.plan.without_picture, "image": self.plan.with_picture}
        added = []
        for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
            beside = picture if kind == "image" else torch.zeros_like(picture)
            (row,) = [self._beside(entry, kind, beside) for entry in uncond]
            mask, sign = weights[kind], 1.0
            if singular:  # strengths that add up to 0: the host multiplies its scale by the sum of the conds'
                sign = 1.0 if kind == "empty" else -1.0
                mask = mask * self.weight * sign
            added.append({**row, "mask": mask, "strength": sign})
        return ([*conds, *added], None) if singular else (conds, added or None)

    def _beside(self, entry: Entry, kind: str, picture: Tensor) -> Entry:
        return {**entry, "model_conds": {**entry["model_conds"], "c_concat": _Concat(self, kind, picture)}}

    def rows(self, batch: int) -> tuple[Row, ...] | None:
        """The rows of the run that is about to start; None where the host did not join them."""
        return tuple(_ROWS[kind](image) for kind in self.coming for image in range(batch)) if self.coming else None

    def keep(self, out: Tensor) -> None:
        """Remember what a run predicted."""
        kinds, self.coming = self.coming, []
        for kind, part in zip(kinds, out.chunk(max(1, len(kinds)))):
            if kind != "cond":
                self.found[kind] = part

    def guidance(self, cond: Tensor, guided: Tensor) -> Guidance | None:
        """What the guides are shown; cond: the host's mean. None where the host skipped the unconditional rows."""
        image, empty = self.found.get("image"), self.found.get("empty")
        if image is None:
            return None
        base = image if empty is None else self.planner.base(self.plan, image, empty)
        if math.isclose(self.plan.text_scale * self.weight, 1.0, abs_tol=1e-6):
            cond = cond - (base - image)
        direction = (cond - image) * self.weight
        return Guidance(image + direction, base, direction, self.plan.text_scale, guided)


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
