"""The verb train-instruct: an InstructPix2Pix checkpoint from a plain one and a folder of pairs."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from lib_methods.errors import UserError, reason

from .arguments import full_path, writable_folder
from .serve import find_checkpoint, say


def _check(options: argparse.Namespace, out: Path, folders: list[Path]) -> None:
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"The result is a .safetensors file, and {out.name} is not one.")
    writable_folder(out.parent, "--out")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--data: there is no folder {folder.name}.")
    if options.steps is None and options.minutes is None:
        raise UserError("Set the length of training with --steps or --minutes.")


def _state(options: argparse.Namespace, out: Path) -> Path:
    """The file of the training's state, beside the result. UserError when something would be overwritten."""
    state = out.with_suffix(".training")
    if options.resume:
        if not state.exists():
            raise UserError(f"There is no {state.name} to resume from. Start without --resume.")
    elif state.exists():
        raise UserError(f"A run, {state.name}, already exists. Resume it with --resume, or remove it.")
    elif out.exists():
        raise UserError(f"{out.name} already exists. Choose another name with --out, or remove it.")
    return state


def _identity(checkpoint: Path, folders: list[Path]) -> str:
    """A hash of the checkpoint and of the manifests of the pairs."""
    from standalone.engine.checkpoint import checkpoint_sha256
    from standalone.instruct.dataset import MANIFEST

    digest = hashlib.sha256(checkpoint_sha256(checkpoint).encode())
    for folder in folders:
        digest.update(hashlib.sha256((folder / MANIFEST).read_bytes()).digest())
    return digest.hexdigest()


def run(options: argparse.Namespace) -> int:
    """Trains and says where the result is."""
    out = options.out
    try:
        out = full_path(options.out, "--out")
        folders = [full_path(folder, "--data") for folder in options.data]
        _check(options, out, folders)
        state = _state(options, out)
        checkpoint = find_checkpoint(options.checkpoint)
        from lib_methods.ldm_checkpoint import read_yaml
        from standalone.instruct.dataset import read_pairs
        from standalone.instruct.examples import Examples
        from standalone.instruct.train import Length, Trainer, load_plain
        from standalone.instruct.widen import write_checkpoint

        pairs = [pair for folder in folders for pair in read_pairs(folder)]
        model, _ = load_plain(checkpoint)
        config = None if checkpoint.is_dir() else read_yaml(checkpoint)
        trainer = Trainer(model, options.batch, options.rate, options.seed, _identity(checkpoint, folders))
        if options.resume:
            trainer.load(state)
            say(f"Resuming after step {trainer.step}.")
        out.parent.mkdir(parents=True, exist_ok=True)
        say(f"Training on {len(pairs)} pairs.")
        trainer.run(Examples(model, pairs, say), Length(options.steps, options.minutes), state, say)
        write_checkpoint(model, trainer.average, config, out)
    except OSError as error:
        raise UserError(f"{out.name} cannot be written. {reason(error)}") from None
    say(f"{out.with_suffix('.training').name} beside it can be resumed with --resume and more steps.")
    say(str(out))
    return 0
