"""LoRA files: which there are in a folder, what they say about themselves, and the matrices in them.

The names of the layers are kohya's (sd-scripts): `lora_unet_...`, `lora_te_...`, `lora_te1_...`, `lora_te2_...`, each
with `.lora_down.weight` and `.lora_up.weight`, perhaps `.lora_mid.weight` and `.alpha`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import names
from .errors import UserError
from .files import PICKLED, read_state

SUFFIX = ".safetensors"
_HEX = frozenset("0123456789abcdef")
_PARTS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",  # peft's names of the same two
    "lora_B.weight": "up",
    "alpha": "alpha",
}


class DoesNotFit(ValueError):
    """A layer of a LoRA that the layer of the model with its name cannot take."""


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
        return self.told_hash or _data_sha256(Path(self.filename))[:12]


def _data_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, Any]:
    """What the file says about itself; values that are JSON are parsed. Empty for a file that cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            found = file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}
    return {key: _parsed(value) for key, value in found.items()}


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
        self.refresh()

    def refresh(self) -> None:
        """Looks through the folder again. Of two files of one name the one less deep counts, then the first."""
        inside = self.folder.resolve()
        found: dict[str, LoraOnDisk] = {}
        for path in sorted(self.folder.rglob(f"*{SUFFIX}"), key=lambda path: (len(path.parts), path)):
            mtime = _mtime(path)
            if (
                mtime is None
                or path.stem in found
                or inside not in path.resolve().parents
                or not names.is_text(path.name)
            ):
                continue
            known = self._by_name.get(path.stem)
            same = known is not None and (known.filename, known.mtime) == (str(path), mtime)
            found[path.stem] = known if same and known else LoraOnDisk(path.stem, str(path), mtime, read_metadata(path))
        self._by_name = found

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
        found = names.find(name, self._by_name, names.folded_file)
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
class LoraLayer:
    """The change of one layer, as matrices: `down` (rank, in[, k, k]), `up` (out, rank[, 1, 1]).

    With `mid` (rank, rank, k, k), the kernel is there and the other two have none. `alpha` None stands for an alpha
    equal to the rank, which is a factor of one.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    alpha: Tensor | None = None

    def change(self, shape: Sequence[int], device: torch.device, dyn_dim: int | None = None) -> Tensor:
        """What is added to a weight of `shape` at strength one: float32 of that shape, on `device`.

        `dyn_dim` takes only the first so many ranks. Raises DoesNotFit.
        """
        if any(not tensor.is_floating_point() or tensor.ndim < 2 for tensor in self._matrices()):
            raise DoesNotFit("these are no matrices")
        outputs, inputs, *kernel = shape
        down, up = (tensor.to(device, torch.float32).flatten(1) for tensor in (self.down, self.up))
        taken = down.shape[1] if self.mid is not None else down.shape[1] // math.prod(kernel)
        if taken == 4 and inputs in (8, 9):
            # made for a model without the inputs that inpainting and InstructPix2Pix add: these stay as they are
            change = self.change((outputs, taken, *kernel), device, dyn_dim)
            return nn.functional.pad(change, (0, 0) * len(kernel) + (0, inputs - taken))
        rank = down.shape[0]
        if rank == 0 or up.shape[0] != outputs:
            raise DoesNotFit("another number of outputs")
        if self.mid is not None:
            if self.mid.shape != (up.shape[1], rank, *kernel) or taken != inputs:
                raise DoesNotFit("another number of inputs or kernel")
            change = torch.einsum("nmkl,in,mj->ijkl", self.mid.to(device, torch.float32), up, down)
        else:
            if up.shape[1] != rank or down.shape[1] != inputs * math.prod(kernel):
                raise DoesNotFit("another number of inputs or kernel")
            change = (up[:, :dyn_dim] @ down[:dyn_dim]).reshape(tuple(shape))
        change = change * self._scale(rank)
        if not bool(torch.isfinite(change).all()):
            raise DoesNotFit("numbers that are not finite")
        return change

    def _matrices(self) -> list[Tensor]:
        return [self.down, self.up, *([] if self.mid is None else [self.mid])]

    def _scale(self, rank: int) -> float:
        if self.alpha is None:
            return 1.0
        if self.alpha.numel() != 1:
            raise DoesNotFit("alpha is not a number")
        return float(self.alpha) / rank


def read_layers(lora: LoraOnDisk) -> dict[str, LoraLayer | None]:
    """The layers in a file, by kohya's names; None for one of another kind (LoHa, LoKr, DoRA ...). Raises UserError."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_state(Path(lora.filename)).items():
        name, _, part = key.partition(".")
        parts.setdefault(name, {})[part] = tensor
    if not any(name.startswith("lora_") for name in parts):
        raise UserError(f"{lora.name} holds no LoRA in kohya's names (lora_unet_..., lora_te_...).")
    return {name: _layer(tensors) for name, tensors in parts.items() if name.startswith("lora_")}


def _layer(tensors: Mapping[str, Tensor]) -> LoraLayer | None:
    if not tensors.keys() <= _PARTS.keys():
        return None
    named = {_PARTS[part]: tensor for part, tensor in tensors.items()}
    return LoraLayer(**named) if {"down", "up"} <= named.keys() else None
