"""`<name:arguments>` in prompts. The host itself has LoRAs (`extra_networks_lora`); scripts may register others."""

from standalone.host.extra_networks import ExtraNetwork, ExtraNetworkParams, activate, deactivate
from standalone.host.extra_networks import extra_network_aliases, extra_network_registry, initialize, parse_prompt
from standalone.host.extra_networks import parse_prompts, register_extra_network, register_extra_network_alias
from . import lead
from standalone.host.lora import register_default_extra_networks

lead(__name__, "host.extra_networks", "host.lora")
