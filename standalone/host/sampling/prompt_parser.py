"""Prompts to conditioning: schedules over the steps, AND with weights, and the objects that samplers take them from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from standalone.engine.prompts import Timeline, check_weight, prompt_schedule
from standalone.engine.prompts import parse_prompt_attention as parse_prompt_attention

re_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")


class ScheduledPromptConditioning(NamedTuple):
    """`cond`, (T, D) or for SDXL a dict, holds up to and with step `end_at_step` (from 1)."""

    end_at_step: int
    cond: Any


class SdConditioning(list[str]):
    """Prompts with what SDXL wants to know besides: the size of the image, and whether they are negative prompts."""

    def __init__(
        self,
        prompts: Iterable[str],
        is_negative_prompt: bool = False,
        width: int | None = None,
        height: int | None = None,
        copy_from: Any = None,
    ) -> None:
        super().__init__(prompts)
        source = prompts if copy_from is None else copy_from
        self.is_negative_prompt = is_negative_prompt or getattr(source, "is_negative_prompt", False)
        self.width = width or getattr(source, "width", None)
        self.height = height or getattr(source, "height", None)

    @property
    def crop_top_left(self) -> tuple[int, int]:
        from standalone.host.shared import opts

        return int(opts.sdxl_crop_top), int(opts.sdxl_crop_left)


def get_learned_conditioning_prompt_schedules(
    prompts: Sequence[str], base_steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> list[list[list[Any]]]:
    """The schedule of every prompt: lists of [last step, text]. With `hires_steps` that of the second pass."""
    if hires_steps is None or use_old_scheduling:
        timeline = Timeline(base_steps, old=use_old_scheduling)
    else:
        timeline = Timeline(hires_steps, int_offset=base_steps, share_offset=1.0)
    known: dict[str, Any] = {prompt: prompt_schedule(prompt, timeline) for prompt in dict.fromkeys(prompts)}
    return [known[prompt] for prompt in prompts]


def get_learned_conditioning(
    model: Any, prompts: Sequence[str], steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> list[list[ScheduledPromptConditioning]]:
    """A list of ScheduledPromptConditioning for every prompt."""
    known: dict[str, list[ScheduledPromptConditioning]] = {}
    schedules = get_learned_conditioning_prompt_schedules(prompts, steps, hires_steps, use_old_scheduling)
    for prompt, schedule in zip(prompts, schedules):
        if prompt in known:
            continue
        conds = model.get_learned_conditioning(SdConditioning([text for _, text in schedule], copy_from=prompts))
        known[prompt] = [ScheduledPromptConditioning(end, _row(conds, i)) for i, (end, _) in enumerate(schedule)]
    return [known[prompt] for prompt in prompts]


def _row(conds: Any, index: int) -> Any:
    return {key: value[index] for key, value in conds.items()} if isinstance(conds, Mapping) else conds[index]


def get_multicond_prompt_list(
    prompts: Sequence[str],
) -> tuple[list[list[tuple[int, float]]], SdConditioning, dict[str, int]]:
    """Splits prompts at AND: for each its (index, weight) pairs, the flat list they point into, and text to index."""
    flat = SdConditioning([], copy_from=prompts)
    positions: dict[str, int] = {}
    indexes: list[list[tuple[int, float]]] = []
    for prompt in prompts:
        row: list[tuple[int, float]] = []
        for part in re_AND.split(prompt):
            text, _, number = part.rpartition(":")
            match = _WEIGHT.fullmatch(number.strip()) if text or part.startswith(":") else None
            text, weight = (text.rstrip(), float(match[0])) if match else (part.rstrip(), 1.0)
            if text not in positions:
                positions[text] = len(flat)
                flat.append(text)
            check_weight(weight, "AND weight")
            row.append((positions[text], weight))
        indexes.append(row)
    return indexes, flat, positions


class ComposableScheduledPromptConditioning:
    """One part of a prompt with AND: its schedule, and its weight."""

    def __init__(self, schedules: list[ScheduledPromptConditioning], weight: float = 1.0) -> None:
        self.schedules = schedules
        self.weight = weight


class MulticondLearnedConditioning:
    """Conditioning of a batch: for every image a list of its parts."""

    def __init__(self, shape: tuple[int, ...], batch: list[list[ComposableScheduledPromptConditioning]]) -> None:
        self.shape = shape
        self.batch = batch


def get_multicond_learned_conditioning(
    model: Any, prompts: Sequence[str], steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> MulticondLearnedConditioning:
    """Like get_learned_conditioning, for prompts that may contain AND."""
    indexes, flat, _ = get_multicond_prompt_list(prompts)
    learned = get_learned_conditioning(model, flat, steps, hires_steps, use_old_scheduling)
    batch = [[ComposableScheduledPromptConditioning(learned[i], weight) for i, weight in row] for row in indexes]
    return MulticondLearnedConditioning(shape=(len(prompts),), batch=batch)


class DictWithShape(dict[str, Any]):
    """An SDXL cond that has the shape of its text."""

    def __init__(self, x: Mapping[str, Any], shape: Any = None) -> None:
        super().__init__(x)

    @property
    def shape(self) -> torch.Size:
        return self["crossattn"].shape


def _at_step(schedule: Sequence[ScheduledPromptConditioning], step: int) -> Any:
    return next((entry.cond for entry in schedule if step <= entry.end_at_step), schedule[0].cond)


def stack_conds(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stacks conds (T, D) of unequal lengths: the shorter repeat their last token."""
    longest = max(tensor.shape[0] for tensor in tensors)
    return torch.stack(
        [
            tensor
            if tensor.shape[0] == longest
            else torch.cat([tensor, tensor[-1:].expand(longest - tensor.shape[0], *tensor.shape[1:])])
            for tensor in tensors
        ]
    )


def _stack(conds: list[Any]) -> Any:
    if not isinstance(conds[0], Mapping):
        return stack_conds(conds)
    parts = {key: [cond[key] for cond in conds] for key in conds[0]}
    return DictWithShape(
        {key: stack_conds(rows) if rows[0].ndim > 1 else torch.stack(rows) for key, rows in parts.items()}
    )


def reconstruct_cond_batch(c: list[list[ScheduledPromptConditioning]], current_step: int) -> Any:
    """The conds of a batch at `current_step`: (B, T, D), or a DictWithShape."""
    return _stack([_at_step(schedule, current_step) for schedule in c])


def reconstruct_multicond_batch(
    c: MulticondLearnedConditioning, current_step: int
) -> tuple[list[list[tuple[int, float]]], Any]:
    """For every image its (row, weight) pairs, and the rows' conds at `current_step`."""
    rows: list[list[tuple[int, float]]] = []
    conds: list[Any] = []
    for parts in c.batch:
        row: list[tuple[int, float]] = []
        for part in parts:
            row.append((len(conds), part.weight))
            conds.append(_at_step(part.schedules, current_step))
        rows.append(row)
    return rows, _stack(conds)
