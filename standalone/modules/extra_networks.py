"""`<name:arguments>` in prompts. The host itself has no such networks; scripts may register theirs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from modules import errors

extra_network_registry: dict[str, Any] = {}
extra_network_aliases: dict[str, Any] = {}
_TAG = re.compile(r"<(\w+):([^>]+)>")


class ExtraNetworkParams:
    """The arguments of one tag, split at colons: `items`, of these `positional` and `named` (with an equals sign)."""

    def __init__(self, items: Sequence[str] | None = None) -> None:
        self.items = list(items or [])
        self.positional = [item for item in self.items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in self.items if "=" in item)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExtraNetworkParams) and self.items == other.items

    __hash__ = None  # type: ignore[assignment]


class ExtraNetwork:
    """Base class: `activate` before every sampling (with no arguments when not mentioned), `deactivate` at the end."""

    def __init__(self, name: str) -> None:
        self.name = name

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        raise NotImplementedError

    def deactivate(self, p: Any) -> None:
        raise NotImplementedError


def initialize() -> None:
    extra_network_registry.clear()
    extra_network_aliases.clear()


def register_extra_network(extra_network: ExtraNetwork) -> None:
    extra_network_registry[extra_network.name] = extra_network


def register_extra_network_alias(extra_network: ExtraNetwork, alias: str) -> None:
    extra_network_aliases[alias] = extra_network


def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]:
    """The prompt without its tags, and the tags by name."""
    found: dict[str, list[ExtraNetworkParams]] = defaultdict(list)
    for name, args in _TAG.findall(prompt):
        found[name].append(ExtraNetworkParams(args.split(":")))
    return _TAG.sub("", prompt), found


def parse_prompts(prompts: Sequence[str]) -> tuple[list[str], dict[str, list[ExtraNetworkParams]] | None]:
    """All prompts without tags, and the tags of the first."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1] if parsed else None


def activate(p: Any, extra_network_data: dict[str, list[ExtraNetworkParams]] | None) -> None:
    """Activates the registered networks, notes unknown ones in the job's comments, then tells the scripts."""
    data = extra_network_data or {}
    for name in data:
        if name not in extra_network_registry and name not in extra_network_aliases:
            p.comment(f"<{name}:...> in the prompt was left out: this host has no networks of that kind.")
    for name, network in {**extra_network_registry, **extra_network_aliases}.items():
        try:
            network.activate(p, data.get(name, []))
        except Exception as error:
            errors.display(error, f"activating extra network {name}")
    if p.scripts is not None:
        p.scripts.after_extra_networks_activate(
            p,
            batch_number=p.iteration,
            prompts=p.prompts,
            seeds=p.seeds,
            subseeds=p.subseeds,
            extra_network_data=extra_network_data,
        )


def deactivate(p: Any, extra_network_data: dict[str, list[ExtraNetworkParams]] | None) -> None:
    """Deactivates all registered networks."""
    for name, network in extra_network_registry.items():
        try:
            network.deactivate(p)
        except Exception as error:
            errors.display(error, f"deactivating extra network {name}")
