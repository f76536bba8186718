"""The commands for InstructPix2Pix checkpoints: merge-instruct, make-instruct-data and train-instruct."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_methods.errors import UserError, reason

from .arguments import existing_file, full_path, new_file, writable_folder
from .serve import find_checkpoint, say

if TYPE_CHECKING:
    from standalone.instruct.filters import Filter
    from standalone.instruct.make import Source
    from standalone.instruct.triplets import Triplet


def run(options: argparse.Namespace) -> int:
    """Runs the command that `options.verb` names and returns its exit status."""
    verbs = {"merge-instruct": _merge, "make-instruct-data": _make_data, "train-instruct": _train}
    return verbs[options.verb](options)


def _merge(options: argparse.Namespace) -> int:
    """Merges and says where the result is."""
    a, b, c = (existing_file(path, name) for path, name in ((options.a, "A"), (options.b, "B"), (options.c, "C")))
    out = new_file(options.out or a.with_name(f"{a.stem}-instruct.safetensors"), "--out")
    from standalone.engine.merge import merge_instruct

    def show(share: float) -> None:
        if sys.stdout.isatty():
            print(f"\r  {int(share * 100):3d} %", end="", flush=True)

    counts = merge_instruct(a, b, c, out, show)
    if sys.stdout.isatty():
        print("\r" + " " * 10 + "\r", end="")
    say(f"{counts['merged']} weights merged, {counts['kept']} taken from {a.name} as they are.")
    say(str(out))
    return 0


def _check_data(options: argparse.Namespace) -> None:
    """UserError for what cannot be done, said before torch is imported."""
    writable_folder(options.out, "--out")
    if options.triplets is not None:
        existing_file(options.triplets, "--triplets")
    if options.clip is not None and not full_path(options.clip, "--clip").is_dir():
        raise UserError("--clip: give the folder of a CLIP model.")
    if options.size is not None and options.size % 8:
        raise UserError("--size must be a multiple of 8.")
    low, high = options.shares
    if not 0 <= low <= high <= 1:
        raise UserError("--shares takes two numbers from 0 to 1, the smaller one first.")
    if options.triplets is not None and options.rendered:
        raise UserError("--rendered works only with coloured shapes. Leave --triplets out.")
    if options.triplets is not None and options.clip is None and not options.no_filter:
        raise UserError("Pairs of your own captions are filtered by CLIP: give its folder with --clip, or --no-filter.")


def _triplets(options: argparse.Namespace) -> tuple[Callable[[int], Triplet], int, str]:
    """The triplet of a number, how many, and what they are called in the settings."""
    from standalone.engine.weights import sha256_of
    from standalone.instruct.triplets import read_triplets, world_triplet

    if options.triplets is None:
        return (lambda number: world_triplet(options.seed, number)), options.count or 1000, "shapes-world"
    path = Path(options.triplets).expanduser()
    listed = read_triplets(path)
    return listed.__getitem__, min(options.count or len(listed), len(listed)), sha256_of(path)


def _filter(options: argparse.Namespace) -> Filter:
    from standalone.instruct.filters import AttributeFilter, ClipFilter, Thresholds, keep_all
    from standalone.instruct.train import device

    if options.no_filter:
        return keep_all
    if options.clip is None:
        return AttributeFilter(options.image_similarity)
    thresholds = Thresholds(options.image_similarity, options.direction_similarity, options.text_similarity)
    return ClipFilter(Path(options.clip).expanduser(), thresholds, device())


def _source(options: argparse.Namespace, checkpoint: Path | None) -> tuple[Source, int]:
    """The source of pairs, and the side of the images in pixels."""
    from standalone.instruct.make import ModelSource, RenderedSource
    from standalone.instruct.prompt_to_prompt import Drawing

    if checkpoint is None:
        return RenderedSource(options.size or 64), options.size or 64
    from standalone.instruct.train import load_plain

    model, defaults = load_plain(checkpoint)
    drawing = Drawing(options.steps, options.cfg_scale or defaults.cfg_scale, options.size or defaults.width)
    return ModelSource(model, drawing, options.batch), drawing.size


def _settings(options: argparse.Namespace, checkpoint: Path | None, triplets: str, size: int) -> dict[str, Any]:
    """What the pairs depend on."""
    from standalone.engine.checkpoint import checkpoint_sha256

    names = ["seed", "pairs_per_triplet", "keep", "no_filter", "image_similarity"]
    names += ["direction_similarity", "text_similarity"] if options.clip is not None else []
    settings = {"triplets": triplets, "size": size, **{name: getattr(options, name) for name in names}}
    settings["filter"] = "none" if options.no_filter else "clip" if options.clip is not None else "attributes"
    if checkpoint is None:
        return {"source": "rendered", **settings}
    drawing = {name: getattr(options, name) for name in ("steps", "cfg_scale", "shares", "batch")}
    return {"source": "prompt-to-prompt", "checkpoint": checkpoint_sha256(checkpoint), **settings, **drawing}


def _make_data(options: argparse.Namespace) -> int:
    """Makes the pairs and says how many were kept."""
    out = options.out
    try:
        _check_data(options)
        out = full_path(options.out, "--out")
        checkpoint = None if options.rendered else find_checkpoint(options.checkpoint)
        from standalone.instruct import dataset
        from standalone.instruct.make import PairCounts, make_pairs

        triplet_at, count, name = _triplets(options)
        source, size = _source(options, checkpoint)
        judge = _filter(options)
        dataset.open_folder(out, _settings(options, checkpoint, name, size))
        plan: PairCounts = PairCounts(options.pairs_per_triplet, options.keep, options.seed, tuple(options.shares))
        kept, drawn = make_pairs(out, triplet_at, count, source, judge, plan, say)
    except OSError as error:
        raise UserError(f"The pairs cannot be written to {out.name}. {reason(error)}") from None
    say(f"{kept} of {drawn} pairs kept.")
    say(str(out))
    return 0


def _check_training(options: argparse.Namespace, out: Path, folders: list[Path]) -> None:
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"The result must be a .safetensors file; {out.name} is not one.")
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


def _train(options: argparse.Namespace) -> int:
    """Trains and says where the result is."""
    out = options.out
    try:
        out = full_path(options.out, "--out")
        folders = [full_path(folder, "--data") for folder in options.data]
        _check_training(options, out, folders)
        state = _state(options, out)
        checkpoint = find_checkpoint(options.checkpoint)
        from lib_methods.checkpoints.ldm_names import read_yaml
        from standalone.instruct.dataset import read_pairs
        from standalone.instruct.train import Examples, Length, Trainer, load_plain, write_checkpoint

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
