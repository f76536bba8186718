"""LoRA files: which there are in a folder, their metadata, and the layers in them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from lib_methods.checkpoints.kinds import how_quantised
from lib_methods.errors import CheckpointError, UserError
from lib_methods.safetensors import PICKLED, read_header
from standalone.engine.weights import read_state

from .. import names
from ..model import StableDiffusionModel
from .family import check_family, check_lora
from .layer import LoraLayer
from .names import BUNDLE, plain_name, split_key

SUFFIX = ".safetensors"
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class LoraOnDisk:
    """One file. `name` is the file's without its ending, `alias` the one that the trainer gave, often the same."""

    name: str
    filename: str
    mtime: float
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def alias(self) -> str:
        alias = self.metadata.get("ss_output_name")
        return alias if isinstance(alias, str) and alias else self.name

    @property
    def told_hash(self) -> str | None:
        """The hash in the metadata, where the trainer wrote it."""
        told = str(self.metadata.get("sshs_model_hash") or "").lower()
        return told[:12] if len(told) == 64 and _HEX.issuperset(told) else None

    @cached_property
    def shorthash(self) -> str:
        """Twelve digits of kohya's hash: SHA-256 of the file behind its header, so that metadata may change."""
        if self.told_hash:
            return self.told_hash
        digest = hashlib.sha256()
        with open(self.filename, "rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()[:12]


def read_metadata(path: Path) -> dict[str, Any]:
    """What the file says about itself; values that are JSON are parsed. Empty for a file that cannot be read."""
    try:
        return {key: _parsed(value) for key, value in read_header(path).metadata.items()}
    except CheckpointError:
        return {}


def _parsed(value: str) -> Any:
    if not value.startswith("{"):
        return value
    try:
        parsed = json.loads(value)
        json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()  # what JSON cannot say again stays text
    except (ValueError, RecursionError):
        return value
    return parsed


class LoraFolder:
    """The LoRAs in a folder and its subfolders. A name is looked up among the files found, never joined to a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, LoraOnDisk] = {}
        self._by_path: dict[str, LoraOnDisk] = {}  # "subfolder/name"
        self.refresh()

    def refresh(self) -> None:
        """Looks through the folder again. Of two files of one name the one less deep counts, then the first."""
        inside = self.folder.resolve()
        by_name: dict[str, LoraOnDisk] = {}
        by_path: dict[str, LoraOnDisk] = {}
        files = (path for path in self.folder.rglob("*") if path.suffix.lower() == SUFFIX)
        for path in sorted(files, key=lambda path: (len(path.parts), path)):
            mtime, place = _mtime(path), path.relative_to(self.folder).with_suffix("").as_posix()
            if mtime is None or inside not in path.resolve().parents or not names.is_text(place):
                continue
            known = self._by_path.get(place)
            if known is None or (known.filename, known.mtime) != (str(path), mtime):
                known = LoraOnDisk(path.stem, str(path), mtime, read_metadata(path))
            by_path[place] = known
            by_name.setdefault(path.stem, known)
        self._by_name, self._by_path = by_name, by_path

    def all(self) -> list[LoraOnDisk]:
        """All files found, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def find(self, name: str) -> LoraOnDisk | None:
        """The file of this name, or the only one with this alias. Looks again when the file is new or has changed."""
        found = self._lookup(name)
        if found is None or _mtime(Path(found.filename)) != found.mtime:
            self.refresh()
            found = self._lookup(name)
        return found

    def _lookup(self, name: str) -> LoraOnDisk | None:
        found = names.find(name, self._by_name, names.folded_file) or names.find(name, self._by_path, names.folded_file)
        if found is not None:
            return found
        used = Counter(lora.alias for lora in self._by_name.values())
        once = {lora.alias: lora for lora in self._by_name.values() if used[lora.alias] == 1}
        return names.find(name, once, names.folded_file)

    def by_hash(self, shorthash: str) -> LoraOnDisk | None:
        """The file with this hash, among those whose hash is known without reading them."""
        known = (lora for lora in self.all() if (lora.told_hash or lora.__dict__.get("shorthash")) == shorthash)
        return next(known, None)

    def pickled(self, name: str) -> str | None:
        """The file name of a pickle called `name`, which would be meant if it could be trusted."""
        files = (path for path in self.folder.rglob("*") if path.suffix.lower() in PICKLED)
        wanted = names.folded_file(name)
        return next((path.name for path in files if wanted in map(names.folded_file, (path.stem, path.name))), None)


def _mtime(path: Path) -> float | None:
    """When the file was written; None if there is no such file."""
    try:
        return path.stat().st_mtime if path.is_file() else None
    except OSError:
        return None


@dataclass(frozen=True)
class LoraContent:
    """What a file holds: layers by plain name, and the vectors of bundled embeddings, `{word: {encoder: (n, D)}}`."""

    layers: Mapping[str, LoraLayer]
    words: Mapping[str, Mapping[str, Tensor]]


def read_lora(lora: LoraOnDisk, model: StableDiffusionModel) -> LoraContent:
    """Reads a file, once its header shows that it is a LoRA and can be one for `model`. Raises UserError."""
    path = Path(lora.filename)
    header = read_header(path)
    check_lora(lora.name, header.tensors)
    how = how_quantised(header.tensors)
    if how is not None:
        raise UserError(f"its weights are stored {how}, which cannot be read here. Get its fp16 or bf16 version.")
    check_family(model, lora.metadata, (split_key(key)[0] for key in header.tensors if not key.startswith(BUNDLE)))
    layers: dict[str, LoraLayer] = {}
    words: dict[str, dict[str, Tensor]] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_state(path).items():
        if key.startswith(BUNDLE):
            word, _, part = key.removeprefix(BUNDLE).partition(".")
            words.setdefault(word, {})[part.split(".")[0]] = tensor.unsqueeze(0) if tensor.ndim == 1 else tensor
        else:
            layer, part = split_key(key)
            parts.setdefault(layer, {})[part] = tensor
    for layer, tensors in parts.items():
        name = plain_name(layer)
        if name in layers:  # two programs' names of one layer: neither is more right
            name = layer
        layers[name] = LoraLayer(layer, tensors, told_alpha(lora.metadata, layer, tensors))
    return LoraContent(layers, words)


def told_alpha(metadata: Mapping[str, Any], layer: str, parts: Mapping[str, Tensor]) -> float | None:
    """The alpha of a layer that diffusers wrote into the metadata as PEFT's configuration; None where there is none."""
    config = metadata.get("lora_adapter_metadata")
    if not isinstance(config, dict) or "down" not in parts:
        return None
    component, _, rest = layer.partition(".")
    alpha = config.get(f"{component}.lora_alpha")
    pattern = config.get(f"{component}.alpha_pattern")
    if isinstance(pattern, dict):
        alpha = next((value for key, value in pattern.items() if rest == key or rest.endswith("." + key)), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        return None
    return float(alpha) * math.sqrt(len(parts["down"])) if config.get(f"{component}.use_rslora") else float(alpha)
