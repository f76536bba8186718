"""Makes an instruct version of a checkpoint by adding a difference: A + B - C, weight by weight.

B learnt from C to see an image and to follow instructions (InstructPix2Pix from Stable Diffusion 1.5); what it learnt,
B - C, is added to A, another descendant of C. B's first convolution has 8 input channels: the four for the latents are
added like all others, the four for the image are B's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lib_methods.checkpoints.kinds import EMA_PREFIX, check_readable, family_of
from lib_methods.checkpoints.ldm_names import UNET_PREFIX, VAE_PREFIX, shared_text_name
from lib_methods.checkpoints.schedule import V_MARK
from lib_methods.errors import CheckpointError, UserError, reason
from lib_methods.safetensors import TensorSource, read_header, rounded, write_tensors

from .weights import check_not_pickled, sha256_of

FIRST_CONVOLUTION = UNET_PREFIX + "input_blocks.0.0.weight"
LATENT_CHANNELS = 4
_LEFT_OUT = (EMA_PREFIX, "betas", "alphas_cumprod", "sqrt_", "log_", "posterior_")
"""Training's moving averages, and buffers of the noise schedule, which every program computes itself."""


class _File:
    """A .safetensors file whose weights are read one at a time, under names that all versions of the layout share."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        if not path.exists():
            check_not_pickled(path)
            raise CheckpointError(f"There is no checkpoint named {path.name}.")
        self._heads = read_header(path).tensors
        self.family = family_of(self._heads)
        check_readable(self._heads)
        try:
            self._file: Any = stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path.name} is damaged; download it again.") from error
        self.names: dict[str, str] = {shared_text_name(key): key for key in self._heads}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._heads[self.names[name]].shape

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(self.names[name])
        return tensor

    def is_float(self, name: str) -> bool:
        return self._heads[self.names[name]].is_float

    @property
    def input_channels(self) -> int:
        if FIRST_CONVOLUTION not in self.names:
            raise CheckpointError(f"{self.path.name} is incomplete: the weight '{FIRST_CONVOLUTION}' is missing.")
        return self.shape(FIRST_CONVOLUTION)[1]


def merge_instruct(
    a: Path, b: Path, c: Path, out: Path, progress: Callable[[float], None] | None = None
) -> dict[str, int]:
    """Writes A + B - C to `out`, with B's yaml beside it where B has one; returns how many weights were merged and how
    many were taken from A as they are.

    Args:
        a: the checkpoint to make an instruct version of; its VAE stays, and its precision is the result's.
        b: an InstructPix2Pix checkpoint (8 input channels). `a` and `b` may change places, as the sum is the same.
        c: what `b` was trained from (4 input channels).
        out: the new .safetensors file; it is never written over another.
        progress: called with a share from 0 to 1 now and then.

    Raises:
        UserError: the files do not fit together, or the result cannot be written; one sentence.
    """
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"The result must be a .safetensors file; {out.name} is not one.")
    if out.exists():
        raise UserError(f"{out.name} already exists. Choose another name with --out, or remove it.")
    with ExitStack() as stack:
        base, instruct, origin = (_File(path, stack) for path in (a, b, c))
        if (base.input_channels, instruct.input_channels) == (2 * LATENT_CHANNELS, LATENT_CHANNELS):
            base, instruct = instruct, base
        _check(base, instruct, origin)
        names = [name for name in base.names if not name.startswith(_LEFT_OUT)]
        added = {name for name in names if _is_merged(name, base, instruct, origin)}
        merged: dict[str, TensorSource] = {}
        for number, name in enumerate(names):
            merged[name] = _weight(name, base, instruct, origin) if name in added else base.read(name)
            if progress is not None and number % 16 == 0:
                progress(number / len(names))
        recipe = {
            "type": "sd-webui-steer merge-instruct",
            "formula": "A + B - C",
            **{letter: sha256_of(file.path) for letter, file in (("A", base), ("B", instruct), ("C", origin))},
        }
        _write(merged, out, {"format": "pt", "sd_merge_recipe": json.dumps(recipe)})
        config = instruct.path.with_suffix(".yaml")
        if config.is_file():
            shutil.copyfile(config, out.with_suffix(".yaml"))
    return {"merged": len(added), "kept": len(names) - len(added)}


def _check(base: _File, instruct: _File, origin: _File) -> None:
    channels = [file.input_channels for file in (base, instruct, origin)]
    if channels != [LATENT_CHANNELS, 2 * LATENT_CHANNELS, LATENT_CHANNELS]:
        found = ", ".join(f"{file.path.name} has {n}" for file, n in zip((base, instruct, origin), channels))
        raise CheckpointError(
            "One of the first two must be an InstructPix2Pix checkpoint with 8 input channels, the other and the third "
            f"plain ones with 4: {found}."
        )
    for other in (instruct, origin):
        if other.family != base.family:
            raise CheckpointError(
                f"{base.path.name} is an {base.family.upper()} checkpoint and {other.path.name} an "
                f"{other.family.upper()} one; all three must be of one family."
            )
    if len({V_MARK in file.names for file in (base, instruct, origin)}) > 1:
        raise CheckpointError("One of the three predicts v and another one noise; all three must predict the same.")
    for name in base.names:
        if not name.startswith(UNET_PREFIX):
            continue
        for other in (instruct, origin):
            if name not in other.names or (name != FIRST_CONVOLUTION and other.shape(name) != base.shape(name)):
                raise CheckpointError(
                    f"The UNets of {base.path.name} and {other.path.name} differ in build (at '{name}'); all three "
                    "must be of one family."
                )


def _is_merged(name: str, base: _File, instruct: _File, origin: _File) -> bool:
    """Whether anything is added to A's weight."""
    if not base.is_float(name) or name.startswith(VAE_PREFIX) or name not in instruct.names or name not in origin.names:
        return False
    # a text encoder of another build stays; the UNets were compared before
    return name == FIRST_CONVOLUTION or instruct.shape(name) == origin.shape(name) == base.shape(name)


def _weight(name: str, base: _File, instruct: _File, origin: _File) -> torch.Tensor:
    """One weight of the sum, in A's precision. Raises CheckpointError, which names the file that spoils it."""
    own = base.read(name)
    summands = [(file, file.read(name)) for file in (base, instruct, origin)]
    for file, tensor in summands:
        try:
            rounded(name, tensor, tensor.dtype)
        except CheckpointError:
            raise CheckpointError(
                f"{file.path.name} has weights that are NaN or infinite ('{name}'), so nothing was written. Get "
                "another version of it."
            ) from None
    learnt, before = summands[1][1].float(), summands[2][1].float()
    if name == FIRST_CONVOLUTION:
        latent = own.float() + learnt[:, :LATENT_CHANNELS] - before
        return rounded(name, torch.cat([latent, learnt[:, LATENT_CHANNELS:]], dim=1), own.dtype)
    return rounded(name, own.float() + learnt - before, own.dtype)


def _write(state: dict[str, TensorSource], out: Path, metadata: dict[str, str]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(out, state, metadata, shared=True)
    except OSError as error:
        raise UserError(f"{out.name} cannot be written. {reason(error)}") from error
