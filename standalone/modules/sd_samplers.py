"""The list of samplers, and names: today's, and the old ones that carry a schedule ("DPM++ 2M Karras")."""

from __future__ import annotations

import sys
from typing import Any

from modules import (
    sd_samplers_common,
    sd_samplers_kdiffusion,
    sd_samplers_lcm,
    sd_samplers_timesteps,
    sd_schedulers,
    shared,
)
from standalone.engine.errors import UserError

samples_to_image_grid = sd_samplers_common.samples_to_image_grid
sample_to_image = sd_samplers_common.sample_to_image

all_samplers: list[sd_samplers_common.SamplerData] = [
    *sd_samplers_kdiffusion.samplers_data_k_diffusion,
    *sd_samplers_timesteps.samplers_data_timesteps,
    *sd_samplers_lcm.samplers_data_lcm,
]
all_samplers_map = {x.name: x for x in all_samplers}
samplers: list[sd_samplers_common.SamplerData] = all_samplers
samplers_for_img2img: list[sd_samplers_common.SamplerData] = all_samplers
samplers_map: dict[str, str] = {}
samplers_hidden: set[str] = set()


def find_sampler_config(name: str | None) -> sd_samplers_common.SamplerData | None:
    """The sampler called `name`; the first one for None; None when there is no such sampler."""
    return all_samplers[0] if name is None else all_samplers_map.get(name)


def create_sampler(name: str | None, model: Any) -> Any:
    """A new sampler for one sampling. Raises UserError for an unknown name."""
    config = find_sampler_config(name)
    if config is None:
        raise UserError(f"There is no sampler named {name!r}.")
    sampler = config.constructor(model)
    sampler.config = config
    return sampler


def set_samplers() -> None:
    """Takes the settings over into the lists."""
    global samplers_hidden
    samplers_hidden = set(shared.opts.hide_samplers or [])
    samplers_map.clear()
    for sampler in all_samplers:
        for alias in (sampler.name, *sampler.aliases):
            samplers_map[alias.lower()] = sampler.name


def visible_samplers() -> list[sd_samplers_common.SamplerData]:
    return [x for x in samplers if x.name not in samplers_hidden]


def visible_sampler_names() -> list[str]:
    return [x.name for x in visible_samplers()]


def get_sampler_and_scheduler(
    sampler_name: str | None, scheduler_name: str | None, *, convert_automatic: bool = True
) -> tuple[str, str]:
    """Names as they are today: ("DPM++ 2M Karras", None) is ("DPM++ 2M", "Karras").

    A schedule that is the sampler's own becomes "Automatic", unless `convert_automatic` is off. Unknown names give the
    first sampler and "Automatic".
    """
    found = sd_schedulers.schedulers_map.get(scheduler_name or "", sd_schedulers.schedulers[0])
    name = sampler_name or samplers[0].name
    for scheduler in sd_schedulers.schedulers:
        suffix = next(
            (s for s in (scheduler.label, scheduler.name, *(scheduler.aliases or [])) if name.endswith(" " + s)), None
        )
        if suffix is not None and name not in all_samplers_map:
            found, name = scheduler, name[: -len(suffix) - 1]
            break
    sampler = all_samplers_map.get(name, samplers[0])
    if convert_automatic and sampler.options.get("scheduler") == found.name:
        found = sd_schedulers.schedulers[0]
    return sampler.name, found.label


def fix_p_invalid_sampler_and_scheduler(p: Any) -> None:
    """Puts today's names into `p`, with a word on stderr when they change."""
    before = p.sampler_name, p.scheduler
    p.sampler_name, p.scheduler = get_sampler_and_scheduler(p.sampler_name, p.scheduler, convert_automatic=False)
    if before[0] != p.sampler_name or before[1] not in (None, p.scheduler):
        print(
            f"Sampler {before[0]!r} with schedule {before[1]!r} taken as {p.sampler_name!r} with {p.scheduler!r}",
            file=sys.stderr,
        )


def get_sampler_from_infotext(d: dict[str, Any]) -> str:
    return get_sampler_and_scheduler(d.get("Sampler"), d.get("Schedule type"))[0]


def get_scheduler_from_infotext(d: dict[str, Any]) -> str:
    return get_sampler_and_scheduler(d.get("Sampler"), d.get("Schedule type"))[1]


def get_hr_sampler_and_scheduler(d: dict[str, Any]) -> tuple[str, str]:
    """Sampler and schedule of the second pass; "Use same ..." where they are those of the first."""
    hr_sampler = d.get("Hires sampler", "Use same sampler")
    hr_scheduler = d.get("Hires schedule type", "Use same scheduler")
    sampler, scheduler = get_sampler_and_scheduler(
        d.get("Sampler") if hr_sampler == "Use same sampler" else hr_sampler,
        d.get("Schedule type") if hr_scheduler == "Use same scheduler" else hr_scheduler,
    )
    return (
        sampler if sampler != d.get("Sampler") else "Use same sampler",
        scheduler if scheduler != d.get("Schedule type") else "Use same scheduler",
    )


def get_hr_sampler_from_infotext(d: dict[str, Any]) -> str:
    return get_hr_sampler_and_scheduler(d)[0]


def get_hr_scheduler_from_infotext(d: dict[str, Any]) -> str:
    return get_hr_sampler_and_scheduler(d)[1]


set_samplers()
