"""Writes a trained model as one checkpoint file, built on the source's own weights.

What was not trained has the source's bytes and precision, also what this pack knows nothing about. What was trained is
found by comparing with what the source holds, in the precision that the model has in memory. Moving averages that the
source keeps of its UNet (`model_ema.*`) become the trained weights, too: a program that prefers them would otherwise
draw with the model as it was before.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_methods.files import replacing

from .errors import DreamBoothError
from .model import TrainingModel

Progress = Callable[[int, int], None]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
_FLOATS = {name: dtype for dtype, name in _NAMES.items()}  # fewer bits cannot hold what was learnt
_EMA = "model_ema."
_TEXT = "cond_stage_model.transformer."
_STALE = ("modelspec.hash_sha256", "modelspec.thumbnail", "sshs_model_hash", "sshs_legacy_hash")
_PIECE = 16 << 20
_LARGEST_HEADER = 100_000_000  # what safetensors itself takes


@dataclass(frozen=True)
class Entry:
    """One tensor of the result. `data` gives its bytes, piece by piece."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    data: Callable[[], Iterator[bytes | memoryview]]

    @property
    def width(self) -> float:
        """Bytes of one number."""
        return self.size / max(1, torch.Size(self.shape).numel())


def save_checkpoint(
    path: Path,
    source: Path,
    model: TrainingModel,
    saved_as: str = "fp16",
    progress: Progress | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes `model`, which was loaded from `source`, to `path`, whole or not at all, and the source's yaml beside it.

    saved_as: the precision of what was trained, "fp16", "bf16", "fp32" or the "source"'s own. progress: told the
    tensors done and all of them. weights: the model's `file_weights`, where they had to be gathered. A diffusers folder
    becomes one file in LDM's names. Raises DreamBoothError when the weights are not finite, when the disk is full, or
    when the source has changed meanwhile; `path` is then as before.
    """
    if path.exists() and source.exists() and path.samefile(source):
        raise DreamBoothError(f"{path.name} is the base model itself; give the result another name.")
    dtype = None if saved_as == "source" else DTYPES[saved_as]
    weights = model.file_weights() if weights is None else weights
    try:
        if source.is_dir():
            _write(path, _tensor_entries(model.source_weights(source), weights, dtype), {}, progress)
            return
        yaml = source.with_suffix(".yaml")
        with _Source(source) as opened:
            entries = list(opened.entries(weights, dtype))
            metadata = {key: value for key, value in opened.metadata.items() if key not in _STALE}
            if "modelspec.title" in metadata:
                metadata["modelspec.title"] = path.stem
            if yaml.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path.with_suffix(".yaml")) as file:
                    file.write(yaml.read_bytes())
            _write(path, entries, metadata, progress)
    except OSError as error:
        raise DreamBoothError(f"{path.name} cannot be written: {error.strerror or 'the disk may be full'}.") from error


# -- the source


class _Source:
    """A .safetensors file: its tensors as numbers, and as the bytes that they are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Source:
        try:
            self._tensors: Any = safe_open(str(self.path), framework="pt").__enter__()
            self._bytes: IO[bytes] = self.path.open("rb")
        except FileNotFoundError as error:
            raise DreamBoothError(f"The base model {self.path.name} is gone; the result is built on it.") from error
        except (SafetensorError, ValueError) as error:
            raise DreamBoothError(f"The base model {self.path.name} is damaged.") from error
        (length,) = struct.unpack("<Q", self._bytes.read(8))
        header: dict[str, Any] = json.loads(self._bytes.read(min(length, _LARGEST_HEADER)))
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._start, self._header = 8 + length, header
        return self

    def __exit__(self, *exception: object) -> None:
        self._bytes.close()
        self._tensors.__exit__(None, None, None)

    def entries(self, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[Entry]:
        names = {_shared_name(name): name for name in self._header}
        missing = [name for name in weights if name not in names]
        if missing:
            raise DreamBoothError(
                f"The base model {self.path.name} is another one than at the start: '{missing[0]}' is missing."
            )
        averages = {_ema_name(name): name for name in weights}
        for name, own in names.items():
            look = self._header[own]
            first, last = look["data_offsets"]
            weight = weights.get(name, weights.get(averages.get(name, "")))
            trained = None if weight is None else _trained(name, weight, self._read(names, averages.get(name, name)))
            if trained is None:
                yield Entry(name, look["dtype"], tuple(look["shape"]), last - first, self._piecewise(first, last))
            else:
                yield _entry(name, trained, dtype or _FLOATS.get(look["dtype"], torch.float16))

    def _read(self, names: Mapping[str, str], name: str) -> Tensor:
        tensor: Tensor = self._tensors.get_tensor(names[name])
        return tensor

    def _piecewise(self, first: int, last: int) -> Callable[[], Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            self._bytes.seek(self._start + first)
            left = last - first
            while left:
                piece = self._bytes.read(min(left, _PIECE))
                if not piece:
                    raise DreamBoothError(f"The base model {self.path.name} has become shorter meanwhile.")
                left -= len(piece)
                yield piece

        return pieces


def _shared_name(name: str) -> str:
    """Older files of SD1 lack the infix `text_model.`; the result has it, as nearly all have."""
    if name.startswith(_TEXT + "embeddings.") or name.startswith((_TEXT + "encoder.", _TEXT + "final_layer_norm.")):
        return f"{_TEXT}text_model.{name[len(_TEXT) :]}"
    return name


def _ema_name(name: str) -> str:
    """LDM's name for the moving average of a weight of the UNet."""
    return _EMA + name.removeprefix("model.").replace(".", "")


# -- what was trained


def _trained(name: str, weight: Tensor, source: Tensor) -> Tensor | None:
    """The weight in the source's shape if it is another than the source's; None if it is the same."""
    if weight.numel() != source.numel():
        raise DreamBoothError(f"The base model is another one than at the start: '{name}' has another size.")
    own = weight.detach().reshape(source.shape)
    if torch.equal(source.to(own.dtype), own.to("cpu")):
        return None
    if not bool(torch.isfinite(own).all()):
        raise DreamBoothError(
            "The trained weights are not finite, so nothing was written. The learning rate was too high; "
            "train again with a lower one."
        )
    return own


def _entry(name: str, tensor: Tensor, dtype: torch.dtype) -> Entry:
    if dtype == torch.float16 and tensor.numel() and bool(tensor.abs().max() > torch.finfo(dtype).max):
        raise DreamBoothError("The trained weights are too large for fp16; save the result as bf16 or fp32.")

    def data() -> Iterator[memoryview]:
        flat = tensor.to("cpu", dtype).contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data

    return Entry(name, _NAMES[dtype], tuple(tensor.shape), tensor.numel() * dtype.itemsize, data)


def _tensor_entries(
    source: Mapping[str, Tensor], weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> list[Entry]:
    """The entries when the source's weights are in memory, under the result's names."""
    found: list[Entry] = []
    for name, own in source.items():
        trained = _trained(name, weights[name], own) if name in weights else None
        found.append(_entry(name, own, own.dtype) if trained is None else _entry(name, trained, dtype or own.dtype))
    return found


# -- the file


def _write(path: Path, entries: list[Entry], metadata: Mapping[str, str], progress: Progress | None) -> None:
    entries = sorted(entries, key=lambda entry: -entry.width)  # readers want numbers at multiples of their size
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < offset + len(text):
        raise DreamBoothError(
            f"{path.name} needs {offset / 2**30:.1f} GiB and the disk has {free / 2**30:.1f} GiB left. "
            "Make room and go on: the training is kept."
        )
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for done, entry in enumerate(entries, 1):
            for piece in entry.data():
                file.write(piece)
            if progress is not None:
                progress(done, len(entries))
