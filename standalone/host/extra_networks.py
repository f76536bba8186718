"""`<name:arguments>` in prompts. The host itself has LoRAs (`lora`); scripts may register others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from standalone.engine.names import find
from standalone.host import errors
from standalone.host.jobs.queue import explain

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
    """Base class: `activate` before every sampling (with no arguments when not mentioned), `deactivate` at the end.

    What `activate` may have changed is put back by `kept`, which is around the whole job, whatever happens in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        raise NotImplementedError

    def deactivate(self, p: Any) -> None:
        raise NotImplementedError

    @contextmanager
    def kept(self) -> Iterator[None]:
        yield


def initialize() -> None:
    """Forgets all networks; for a host that starts."""
    extra_network_registry.clear()
    extra_network_aliases.clear()


def register_extra_network(extra_network: ExtraNetwork) -> None:
    extra_network_registry[extra_network.name] = extra_network


def register_extra_network_alias(extra_network: ExtraNetwork, alias: str) -> None:
    extra_network_aliases[alias] = extra_network


def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]:
    """The prompt without its tags, and the tags by name."""
    found: dict[str, list[ExtraNetworkParams]] = defaultdict(list)
    last = prompt.rfind(">") + 1  # behind it no tag ends, and each "<" would look for one to the end of the text
    for name, args in _TAG.findall(prompt[:last]):
        found[name].append(ExtraNetworkParams(args.split(":")))
    return _TAG.sub("", prompt[:last]) + prompt[last:], found


def parse_prompts(prompts: Sequence[str]) -> tuple[list[str], dict[str, list[ExtraNetworkParams]] | None]:
    """All prompts without tags, and the tags of the first."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    return [text for text, _ in parsed], parsed[0][1] if parsed else None


def activate(p: Any, extra_network_data: dict[str, list[ExtraNetworkParams]] | None) -> None:
    """Activates the registered networks, notes unknown ones in the job's comments, then tells the scripts."""
    tags: dict[str, list[ExtraNetworkParams]] = {name: [] for name in extra_network_registry}
    for name, params in (extra_network_data or {}).items():
        network = find(name, {**extra_network_aliases, **extra_network_registry})
        if network is None:
            p.comment(f"<{name}:...> in the prompt was left out: this host has no networks of that kind.")
        else:
            tags.setdefault(network.name, []).extend(params)
    for name, params in tags.items():
        try:
            extra_network_registry[name].activate(p, params)
        except Exception as error:
            errors.report(f"Error while activating extra network {name}", exc_info=True)
            if params:
                p.comment(f"<{name}:...> in the prompt was left out. {explain(error)}")
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


@contextmanager
def kept() -> Iterator[None]:
    """What jobs activate within the block is gone after it; what a job around it has activated is there again."""
    with ExitStack() as stack:
        for network in extra_network_registry.values():
            if isinstance(network, ExtraNetwork):
                stack.enter_context(network.kept())
        yield
