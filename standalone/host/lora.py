"""`<lora:name:strength>` in prompts, in the forms of the WebUI's built-in extension.

`<lora:name>`, `<lora:name:both>`, `<lora:name:text:unet>`, `<lora:name:text:unet:ranks>`, or by names: `te=`, `unet=`,
`dyn=`. The files lie in `models/Lora` of the host's data folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lib_methods.errors import UserError
from standalone.engine.lora import LoadedLora, apply_loras, loaded_loras, loras_restored
from standalone.engine.lora.file import LoraFolder
from standalone.host import callbacks, extra_networks, paths, shared
from standalone.host.settings.options import OptionInfo

ERROR_KEY = "LoRA error"
HASHES_KEY = "Lora hashes"
_TAG_START = re.compile(r"<lora:([^:>]+)")
_WITHOUT = str.maketrans("", "", ":,")  # these two mean something in the infotext's list

_folders: dict[str, LoraFolder] = {}


def folder() -> LoraFolder:
    """The running host's LoRAs; the folder is made if it is not there."""
    path = Path(paths.models_path) / "Lora"
    if str(path) not in _folders:
        with suppress(OSError):  # on a medium that cannot be written there may be LoRAs all the same
            path.mkdir(parents=True, exist_ok=True)
        _folders.clear()
        _folders[str(path)] = LoraFolder(path)
    return _folders[str(path)]


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    """Adds the LoRAs that a prompt names to the model; a job's end takes them off."""

    def __init__(self) -> None:
        super().__init__("lora")

    def activate(self, p: Any, params_list: list[extra_networks.ExtraNetworkParams]) -> None:
        wanted: list[LoadedLora] = []
        problems: list[str] = []
        for params in params_list:
            try:
                wanted.append(find(params))
            except UserError as error:
                problems.append(str(error))
        problems += apply_loras(shared.sd_model, wanted)
        for problem in problems:
            p.comment(problem)
        second = getattr(p, "is_hr_pass", False)
        _note(p, ERROR_KEY, {text: text for text in problems}, " ", second)
        used = {lora.mentioned_name.translate(_WITHOUT): lora for lora in loaded_loras(shared.sd_model)}
        told = used if shared.opts.lora_add_hashes_to_infotext else {}
        hashes = {name: f"{name}: {lora.network_on_disk.shorthash}" for name, lora in told.items()}
        _note(p, HASHES_KEY, hashes, ", ", second)

    def refresh(self) -> None:
        """Looks through the folder again."""
        folder().refresh()

    def deactivate(self, p: Any) -> None:
        """Nothing: `kept` does it, also after an exception."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        before = shared.sd_model
        with nullcontext() if before is None else loras_restored(before):
            try:
                yield
            finally:
                after = shared.sd_model
                if after is not None and after is not before:  # Hires. fix changed the checkpoint
                    apply_loras(after, ())


def _note(p: Any, key: str, entries: dict[str, str], between: str, second_pass: bool) -> None:
    """Writes entries to the infotext; those of Hires. fix's second pass join those of the first."""
    noted: dict[str, dict[str, str]] = p.__dict__.setdefault("lora_notes", {})
    noted[key] = {**noted.get(key, {}), **entries} if second_pass else dict(entries)
    if noted[key]:
        p.extra_generation_params[key] = between.join(noted[key].values())
    else:
        p.extra_generation_params.pop(key, None)


def find(params: extra_networks.ExtraNetworkParams) -> LoadedLora:
    """The LoRA that a tag means, and its strengths. Raises UserError with what is wrong with the tag."""
    if not params.positional:
        raise UserError("A <lora:...> tag was left out: it has no name.")
    name, *numbers = params.positional
    te = _strength(name, params.named.get("te", numbers[0] if numbers else "1"))
    unet = _strength(name, params.named.get("unet", numbers[1] if len(numbers) > 1 else str(te)))
    dyn = params.named.get("dyn", numbers[2] if len(numbers) > 2 else None)
    found = folder().find(name)
    if found is None:
        pickle = folder().pickled(name)
        if pickle is not None:
            raise UserError(
                f"LoRA {_short(name)} was left out: {pickle} is a pickled file, and opening one can run any code "
                "that its author put into it. Get the .safetensors version."
            )
        raise UserError(f"LoRA {_short(name)} was left out: there is no {_short(name)}.safetensors in models/Lora.")
    if dyn is not None and not dyn.strip().isdecimal():
        raise UserError(f"LoRA {_short(name)} was left out: its rank {_short(dyn)!r} is not a whole number.")
    return LoadedLora(found, te, unet, None if dyn is None else int(dyn), name)


def _strength(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"LoRA {_short(name)} was left out: its strength {_short(text)!r} is not a number.")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def infotext_pasted(text: str, params: dict[str, Any]) -> None:
    """Names the LoRAs of a pasted prompt as they are called here, where their hashes tell it."""
    told = dict(part.strip().split(": ", 1) for part in str(params.get(HASHES_KEY) or "").split(",") if ": " in part)
    if not told:
        return

    def here(match: re.Match[str]) -> str:
        shorthash = told.get(match[1].translate(_WITHOUT))
        found = None if shorthash is None else folder().by_hash(shorthash.strip())
        return match[0] if found is None or found.alias == match[1] else f"<lora:{found.name}"

    params["Prompt"] = _TAG_START.sub(here, str(params.get("Prompt") or ""))


def register_default_extra_networks() -> None:
    """Makes the tag, its setting and the pasting known to the host, unless a script has taken the name."""
    if "lora" in extra_networks.extra_network_registry:
        return
    network = ExtraNetworkLora()
    extra_networks.register_extra_network(network)
    extra_networks.register_extra_network_alias(network, "lyco")
    shared.opts.add_option(
        "lora_add_hashes_to_infotext",
        OptionInfo(True, "Add Lora hashes to infotext", section=("extra_networks", "Extra Networks")),
    )
    callbacks.on_infotext_pasted(infotext_pasted)
    folder().refresh()
