"""Makes an instruct version of a checkpoint by adding a difference: A + B - C, weight by weight.

B learnt from C to see a picture and to follow instructions (InstructPix2Pix from Stable Diffusion 1.5); what it learnt,
B - C, is added to A, another descendant of C. B's first convolution has 8 input channels: the four for the latents are
added like all others, the four for the picture are B's own.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lib_methods.errors import known_reason
from lib_methods.ldm_checkpoint import SD1_TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX

from .errors import CheckpointError, UserError
from .files import check_not_pickled, sha256_of
from .geometry import detect_family

FIRST_CONVOLUTION = UNET_PREFIX + "input_blocks.0.0.weight"
LATENT_CHANNELS = 4
_LEFT_OUT = ("model_ema.", "betas", "alphas_cumprod", "sqrt_", "log_", "posterior_")
"""Training's moving averages, and buffers of the noise schedule, which every program computes anew."""


class _File:
    """A .safetensors file whose weights are read one at a time, under names that all versions of the layout share."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        check_not_pickled(path)
        if not path.is_file():
            raise CheckpointError(f"There is no checkpoint named {path.name}.")
        if path.suffix.lower() != ".safetensors":
            raise CheckpointError(f"{path.name} is not a .safetensors file; only those can be merged.")
        try:
            self._file: Any = stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path.name} is damaged or not complete; download it again.") from error
        self.names: dict[str, str] = {_shared_name(key): key for key in self._file.keys()}
        self.family = detect_family(self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(self.names[name]).get_shape())

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(self.names[name])
        return tensor

    @property
    def input_channels(self) -> int:
        if FIRST_CONVOLUTION not in self.names:
            raise CheckpointError(f"{self.path.name} is incomplete: the weight '{FIRST_CONVOLUTION}' is missing.")
        return self.shape(FIRST_CONVOLUTION)[1]


def _shared_name(key: str) -> str:
    """Early SD1 checkpoints lack the infix `text_model.` in their text encoder."""
    infix = SD1_TEXT_PREFIX + "text_model."
    if key.startswith(SD1_TEXT_PREFIX) and not key.startswith(infix):
        return infix + key[len(SD1_TEXT_PREFIX) :]
    return key


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
        raise UserError(f"The result has to be a .safetensors file, and {out.name} is none.")
    if out.exists():
        raise UserError(f"There is a file {out.name} already; give another name with --out, or remove it.")
    with ExitStack() as stack:
        base, instruct, origin = (_File(path, stack) for path in (a, b, c))
        if (base.input_channels, instruct.input_channels) == (2 * LATENT_CHANNELS, LATENT_CHANNELS):
            base, instruct = instruct, base
        _check(base, instruct, origin)
        merged: dict[str, torch.Tensor] = {}
        counts = {"merged": 0, "kept": 0}
        names = [name for name in base.names if not name.startswith(_LEFT_OUT)]
        for number, name in enumerate(names):
            merged[name], added = _weight(name, base, instruct, origin)
            counts["merged" if added else "kept"] += 1
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
    return counts


def _check(base: _File, instruct: _File, origin: _File) -> None:
    channels = [file.input_channels for file in (base, instruct, origin)]
    if channels != [LATENT_CHANNELS, 2 * LATENT_CHANNELS, LATENT_CHANNELS]:
        found = ", ".join(f"{file.path.name} has {n}" for file, n in zip((base, instruct, origin), channels))
        raise CheckpointError(
            "One of the first two has to be an InstructPix2Pix checkpoint with 8 input channels, the other and the "
            f"third plain ones with 4: {found}."
        )
    for other in (instruct, origin):
        if other.family != base.family:
            raise CheckpointError(
                f"{base.path.name} is an {base.family.upper()} checkpoint and {other.path.name} an "
                f"{other.family.upper()} one; all three have to be of one family."
            )
    for name in base.names:
        if not name.startswith(UNET_PREFIX):
            continue
        for other in (instruct, origin):
            if name not in other.names or (name != FIRST_CONVOLUTION and other.shape(name) != base.shape(name)):
                raise CheckpointError(
                    f"The UNets of {base.path.name} and {other.path.name} differ in build (at '{name}'); all three "
                    "have to be of one family."
                )


def _weight(name: str, base: _File, instruct: _File, origin: _File) -> tuple[torch.Tensor, bool]:
    """One weight of the result, and whether anything was added to A's."""
    own = base.read(name)
    shared = name in instruct.names and name in origin.names
    if not own.is_floating_point() or name.startswith(VAE_PREFIX) or not shared:
        return own, False
    learnt, before = instruct.read(name).float(), origin.read(name).float()
    if name == FIRST_CONVOLUTION:
        latent = own.float() + learnt[:, :LATENT_CHANNELS] - before
        return torch.cat([latent, learnt[:, LATENT_CHANNELS:]], dim=1).to(own.dtype), True
    if learnt.shape != own.shape or before.shape != own.shape:
        return own, False  # a text encoder of another build; the UNets were compared before
    return (own.float() + learnt - before).to(own.dtype), True


def _write(state: Mapping[str, torch.Tensor], out: Path, metadata: dict[str, str]) -> None:
    """Writes to a file of its own, then renames: nobody ever sees half a checkpoint."""
    temporary: str | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".merging-{os.getpid()}-", suffix=".tmp", dir=out.parent)
        os.close(handle)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)  # mkstemp's files are for their owner alone
        os.replace(temporary, out)
        temporary = None
    except (OSError, SafetensorError) as error:
        told = known_reason(error) or getattr(error, "strerror", None) or "The disk may be full."
        raise UserError(f"{out.name} cannot be written. {told}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
