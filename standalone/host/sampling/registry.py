"""The list of samplers, and names: today's, and the old ones that carry a schedule ("DPM++ 2M Karras")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_methods.errors import UserError
from standalone.engine import names
from standalone.host import shared
from standalone.host.sampling import base, schedulers, sigma, timestep

samples_to_image_grid = base.samples_to_image_grid
sample_to_image = base.sample_to_image

all_samplers: list[base.SamplerData] = [
    *sigma.samplers_data_k_diffusion,
    *timestep.samplers_data_timesteps,
    *sigma.samplers_data_lcm,
]
all_samplers_map = {x.name: x for x in all_samplers}
samplers: list[base.SamplerData] = all_samplers
samplers_for_img2img: list[base.SamplerData] = all_samplers
samplers_map: dict[str, str] = {}
samplers_hidden: set[str] = set()


def find_sampler_config(name: str | None) -> base.SamplerData | None:
    """The sampler with this name or alias, in any case; the first one for None; None when there is no such sampler."""
    if name is None:
        return all_samplers[0]
    return names.find(name, {text: sampler for sampler in all_samplers for text in (sampler.name, *sampler.aliases)})


def create_sampler(name: str | None, model: Any) -> Any:
    """A new sampler for one sampling. Raises UserError for an unknown name."""
    config = find_sampler_config(name)
    if config is None:
        raise unknown_sampler(name)
    sampler = config.constructor(model)
    sampler.config = config
    return sampler


def is_sampler_using_eta_noise_seed_delta(p: Any) -> bool:
    """Whether the setting "Eta noise seed delta" has a part in the image."""
    config = find_sampler_config(p.sampler_name)
    eta = p.eta if p.eta is not None else getattr(p.sampler, "eta", None)
    return eta != 0 and bool(config is not None and config.options.get("uses_ensd", False))


def list_samplers() -> list[base.SamplerData]:
    return all_samplers


def set_samplers() -> None:
    """Takes the settings over into the lists."""
    global samplers_hidden
    samplers_hidden = set(shared.opts.hide_samplers or [])
    samplers_map.clear()
    for sampler in all_samplers:
        for alias in (sampler.name, *sampler.aliases):
            samplers_map[alias.lower()] = sampler.name


def visible_samplers() -> list[base.SamplerData]:
    return [x for x in samplers if x.name not in samplers_hidden]


def visible_sampler_names() -> list[str]:
    return [x.name for x in visible_samplers()]


def takes_schedule(sampler: base.SamplerData) -> bool:
    """Whether a schedule can be chosen; DDIM and UniPC use their own timesteps."""
    return sampler.name not in names.OWN_TIMESTEPS


def unknown_sampler(name: object) -> UserError:
    return names.unknown("sampler", name, (sampler.name for sampler in all_samplers))


def find_sampler(name: str) -> tuple[base.SamplerData, schedulers.Scheduler | None] | None:
    """The sampler and the schedule that `name` means, see `names.find_sampler`."""
    aliases = {sampler.name: sampler.aliases for sampler in all_samplers}
    found = names.find_sampler(name, aliases, schedulers.labels())
    if found is None:
        return None
    by_name = {sampler.name: sampler for sampler in all_samplers}
    return by_name[found[0]], schedulers.find_scheduler(found[1]) if found[1] else None


def resolve(sampler_name: str | None, scheduler_name: str | None = None) -> tuple[str, str]:
    """Today's names of a sampler (None or "": the first) and a schedule (None or "": "Automatic").

    A schedule in the sampler's name counts when `scheduler_name` leaves the choice open. Raises UserError with the
    names to choose from.
    """
    found = find_sampler(sampler_name) if sampler_name else (all_samplers[0], None)
    if found is None:
        raise unknown_sampler(sampler_name)
    scheduler = schedulers.find_scheduler(scheduler_name)
    if scheduler is None:
        raise names.unknown("schedule", scheduler_name, (item.label for item in schedulers.schedulers))
    if scheduler is schedulers.schedulers[0] and found[1] is not None:
        scheduler = found[1]
    return found[0].name, scheduler.label


def get_sampler_and_scheduler(
    sampler_name: str | None, scheduler_name: str | None, *, convert_automatic: bool = True
) -> tuple[str, str]:
    """Names as they are today: ("DPM++ 2M Karras", None) is ("DPM++ 2M", "Karras"). Never raises.

    A schedule in the sampler's name comes before `scheduler_name`. A schedule that is the sampler's own becomes
    "Automatic", unless `convert_automatic` is off. Unknown names give the first sampler and "Automatic".
    """
    sampler, carried = (find_sampler(sampler_name) if sampler_name else None) or (all_samplers[0], None)
    scheduler = carried or schedulers.find_scheduler(scheduler_name) or schedulers.schedulers[0]
    if convert_automatic and sampler.options.get("scheduler") == scheduler.name:
        scheduler = schedulers.schedulers[0]
    return sampler.name, scheduler.label


def _or_same(name: str | None, same: str) -> str | None:
    """None for the ways to say that the second pass has what the first pass has."""
    return None if not name or names.folded(name) == same else name


def resolve_hires(sampler_name: str | None, scheduler_name: str | None) -> tuple[str | None, str | None]:
    """Sampler and schedule of Hires. fix's second pass; None means those of the first. Raises UserError."""
    sampler, scheduler = _or_same(sampler_name, "use same sampler"), _or_same(scheduler_name, "use same scheduler")
    found = resolve(sampler, scheduler)
    carried = sampler is not None and find_sampler_config(sampler) is None
    return sampler and found[0], found[1] if scheduler or carried else None


def fix_p_invalid_sampler_and_scheduler(p: Any) -> None:
    """Puts today's names into the job `p`. Raises UserError for a name that no sampler or schedule has."""
    p.sampler_name, scheduler = resolve(p.sampler_name, p.scheduler)
    config = find_sampler_config(p.sampler_name)
    p.scheduler = scheduler if config is not None and takes_schedule(config) else schedulers.schedulers[0].label
    if getattr(p, "enable_hr", False):
        p.hr_sampler_name, hr_scheduler = resolve_hires(p.hr_sampler_name, p.hr_scheduler)
        p.hr_scheduler = hr_scheduler or scheduler


def _pasted(sampler_name: str | None, scheduler_name: str | None) -> tuple[str | None, str | None]:
    """The names of an infotext as they are today; one that nothing has stays, so that no control takes it."""
    known = sampler_name is None or find_sampler(sampler_name) is not None
    if not known or schedulers.find_scheduler(scheduler_name) is None:
        return sampler_name, scheduler_name
    sampler, scheduler = get_sampler_and_scheduler(sampler_name, scheduler_name)
    return (None if sampler_name is None else sampler), scheduler


def get_sampler_from_infotext(d: Mapping[str, Any]) -> str | None:
    return _pasted(d.get("Sampler"), d.get("Schedule type"))[0]


def get_scheduler_from_infotext(d: Mapping[str, Any]) -> str | None:
    return _pasted(d.get("Sampler"), d.get("Schedule type"))[1]


def get_hr_sampler_and_scheduler(d: Mapping[str, Any]) -> tuple[str, str]:
    """Sampler and schedule of the second pass; "Use same ..." where they are those of the first."""
    first = _pasted(d.get("Sampler"), d.get("Schedule type"))
    hr_sampler = _or_same(d.get("Hires sampler"), "use same sampler")
    hr_scheduler = _or_same(d.get("Hires schedule type"), "use same scheduler")
    # a schedule in the name of the first pass's sampler does not count for another one
    same = d.get("Schedule type") if hr_sampler else first[1]
    sampler, scheduler = _pasted(hr_sampler or first[0], hr_scheduler or same)
    return (
        sampler if sampler not in (None, first[0]) else "Use same sampler",
        scheduler if scheduler not in (None, first[1]) else "Use same scheduler",
    )


def get_hr_sampler_from_infotext(d: Mapping[str, Any]) -> str:
    return get_hr_sampler_and_scheduler(d)[0]


def get_hr_scheduler_from_infotext(d: Mapping[str, Any]) -> str:
    return get_hr_sampler_and_scheduler(d)[1]


set_samplers()
