"""The verbs of run.py and their options. Standard library only, so that --help works before anything is installed."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

from lib_methods.errors import UserError

from .job_options import add_cascade_options, add_training_options
from .values import host, port, real, size, whole

VERBS = {
    "serve": "open the page and the WebUI's API (the default command)",
    "generate": "generate images from the command line",
    "test": "run all tests and checks",
    "evaluate": "measure a method's quality: evaluate METHOD --out DIR",
    "bench": "measure a method's speed: bench METHOD --out DIR",
    "merge-instruct": "make an InstructPix2Pix version of a checkpoint: merge-instruct A B C",
    "make-instruct-data": "generate pairs of images with an instruction, to train an InstructPix2Pix checkpoint",
    "train-instruct": "train an InstructPix2Pix checkpoint on such pairs",
    "train-dreambooth": "train a LoRA or a new checkpoint on 3 to 5 photos of a subject",
    "cascade": "generate images with a pixel cascade (DeepFloyd IF): small candidates, then larger",
}


class UsageError(UserError):
    """A command line that makes no sense; the message is one sentence."""


class Parser(argparse.ArgumentParser):
    """Ends in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError. `message` is argparse's own, in lower case and without a full stop."""
        message = re.sub(r"(--[\w-]*auth[= ])\S+", r"\1...", message)  # a password
        raise UsageError(f"{message[:1].upper()}{message[1:]}. See: python {self.prog} --help")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="FILE_OR_FOLDER",
        type=Path,
        help="a .safetensors file, a diffusers folder, or a folder of checkpoints "
        "(default: shapes, which ships with the pack)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="where settings, outputs and feedback images are kept (default: the pack's folder)",
    )


def _serve(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("--port", type=port, default=7860, help="the port to listen on (default: 7860)")
    parser.add_argument(
        "--listen",
        action="store_true",
        help="be reachable from other machines, too; without the logins below, only use it in a network you trust",
    )
    parser.add_argument(
        "--allowed-hosts",
        metavar="NAME",
        nargs="+",
        action="extend",
        type=host,
        default=[],
        help="further host names to answer to, for example steer.lan; with --listen, every other name is refused, "
        "and addresses such as 192.168.1.7 are answered (default: with --listen any name, else localhost only)",
    )
    parser.add_argument(
        "--gradio-auth",
        metavar="NAME:PASSWORD",
        help="ask for a login on the page; several as name:password,name:password. Guards the API, too, unless "
        "--api-auth is given",
    )
    parser.add_argument(
        "--gradio-auth-path", metavar="FILE", type=Path, help="the same, from a text file with one account per line"
    )
    parser.add_argument(
        "--api-auth", metavar="NAME:PASSWORD", help="ask for a login (HTTP Basic) in the API and the pack's routes"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")


def _generate(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    picture = parser.add_argument_group("the image")
    picture.add_argument("prompt", help="what to generate")
    picture.add_argument("--negative", default="", metavar="PROMPT", help="what to avoid")
    picture.add_argument("--size", type=size, metavar="WxH", help="for example 512x768 (default: the checkpoint's own)")
    picture.add_argument("--steps", type=whole(1, 1000), help="sampling steps (default: the checkpoint's own, else 20)")
    picture.add_argument(
        "--sampler", help='for example "Euler a" or "DPM++ 2M" (default: the checkpoint\'s own, else Euler a)'
    )
    picture.add_argument("--scheduler", default="Automatic", help='for example "Karras" (default: Automatic)')
    picture.add_argument("--cfg-scale", type=real(0, 100), help="CFG scale (default: the checkpoint's own, else 7)")
    picture.add_argument("--seed", type=whole(-(2**63), 2**63 - 1), default=-1, help="-1 for a random one (default)")
    picture.add_argument("--batch-size", type=whole(1, 64), default=1, help="images per batch")
    picture.add_argument("--batch-count", type=whole(1, 1000), default=1, help="number of batches")
    start = parser.add_argument_group("img2img")
    start.add_argument("--init-image", type=Path, metavar="FILE", help="start from this image")
    start.add_argument("--mask", type=Path, metavar="FILE", help="change only where this mask is white")
    start.add_argument(
        "--denoising-strength",
        type=real(0, 1),
        help="how far the result may differ from the image, 0 to 1 (default: 0.75, for Hires.fix 0.7)",
    )
    hires = parser.add_argument_group("Hires.fix")
    hires.add_argument("--hires", action="store_true", help="generate small, upscale, and refine")
    hires.add_argument("--hires-scale", type=real(1, 8), default=2.0, help="upscaling factor (default: 2)")
    hires.add_argument("--hires-upscaler", default="Latent", help="for example Latent, Lanczos (default: Latent)")
    hires.add_argument(
        "--hires-steps", type=whole(0, 1000), default=0, help="steps of the second pass (default: same as the first)"
    )
    fabric = parser.add_argument_group("FABRIC: feedback images")
    fabric.add_argument(
        "--like", type=Path, nargs="+", action="extend", default=[], metavar="FILE", help="images to lean towards"
    )
    fabric.add_argument(
        "--dislike", type=Path, nargs="+", action="extend", default=[], metavar="FILE", help="images to lean away from"
    )
    for name, most, words in (
        ("strength", 2, "strength (default: 0.8)"),
        ("min-strength", 2, "strength before start and after end (default: 0)"),
        ("start", 1, "first guided share of the steps, 0 to 1 (default: 0)"),
        ("end", 1, "last guided share of the steps, 0 to 1 (default: 0.8)"),
        ("negative-weight", 2, "strength of dislikes, as a share of the likes' (default: 0.5)"),
    ):
        fabric.add_argument(f"--fabric-{name}", type=real(0, most), help=words)
    fabric.add_argument(
        "--fabric-reference-levels", choices=("six", "every step", "one"), help="noise levels at which images are read"
    )
    fabric.add_argument("--fabric-layers", choices=("all", "coarse", "fine"), help="layers that see the images")
    for name, words in (
        ("adain", "match the images' statistics, for a stronger pull towards their style"),
        ("consistent-batch", "the images of a batch share the style of its first"),
    ):
        fabric.add_argument(f"--fabric-{name}", action="store_const", const=True, help=words)
    parser.add_argument(
        "--out", type=Path, default=Path("outputs"), metavar="DIR", help="folder for the PNG files (default: outputs)"
    )


def _test(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tests", nargs=argparse.REMAINDER, metavar="...", help="arguments for pytest (default: all tests)"
    )


def _method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="for example fabric; or all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report")
    parser.add_argument("--quick", action="store_true", help="a short run, as a smoke test")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="for all: the page of figures to update (default: DIR/figures.md)"
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _method(parser)
    parser.add_argument(
        "--images", type=whole(1, 100_000), metavar="N", help="images behind each figure (default: 200, --quick 24)"
    )
    folders: dict[str, Any] = {"type": Path, "nargs": "+", "metavar": "DIR"}
    parser.add_argument("--stages", **folders, help="for cascade: the stages' folders (default: shapes-cascade)")
    parser.add_argument(
        "--text-encoders", **folders, help="for cascade: training folders of stage 1 whose text encoders to compare"
    )


def _bench(parser: argparse.ArgumentParser) -> None:
    _method(parser)
    parser.add_argument(
        "--size",
        choices=("tiny", "full", "sd15", "sdxl"),
        help="of the networks: sd15 (default) or sdxl; for cascade: tiny or full (default: full on a GPU, else tiny)",
    )


def _merge_instruct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="the checkpoint to make an instruct version of")
    parser.add_argument("b", metavar="B", type=Path, help="an InstructPix2Pix checkpoint (8 input channels)")
    parser.add_argument("c", metavar="C", type=Path, help="the checkpoint that B was trained from")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="the new .safetensors file (default: A-instruct beside A)"
    )


def _make_instruct_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the pairs; a stopped run resumes there"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="checkpoint that generates the pairs (default: shapes, which ships with the pack)",
    )
    captions = parser.add_mutually_exclusive_group()
    captions.add_argument(
        "--triplets", type=Path, metavar="FILE", help='JSON lines with "before", "instruction" and "after"'
    )
    captions.add_argument("--shapes-world", action="store_true", help="captions of coloured shapes (default)")
    parser.add_argument(
        "--rendered", action="store_true", help="draw the shapes without a model, one attribute changed"
    )
    parser.add_argument(
        "--count", type=whole(1, 10**9), metavar="N", help="triplets (default: all of the file, else 1000)"
    )
    parser.add_argument(
        "--pairs-per-triplet",
        type=whole(1, 1000),
        default=8,
        metavar="K",
        help="pairs generated per triplet (default: 8)",
    )
    parser.add_argument(
        "--keep", type=whole(1, 1000), default=4, metavar="K", help="pairs kept per triplet (default: 4)"
    )
    parser.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="the same seed gives the same pairs (default: 0)"
    )
    draw = parser.add_argument_group("how pairs are generated")
    draw.add_argument("--steps", type=whole(1, 1000), default=20, help="sampling steps (default: 20)")
    draw.add_argument("--cfg-scale", type=real(0, 100), help="CFG scale (default: the checkpoint's own, else 7)")
    draw.add_argument(
        "--size", type=whole(64, 4096), metavar="PIXELS", help="side (default: the checkpoint's own, else 512)"
    )
    draw.add_argument("--batch", type=whole(1, 10_000), default=8, help="pairs at once (default: 8)")
    draw.add_argument(
        "--shares",
        type=real(0, 1),
        nargs=2,
        default=[0.1, 0.9],
        metavar=("LEAST", "MOST"),
        help="range of the random share of steps with shared attention (default: 0.1 0.9)",
    )
    judge = parser.add_argument_group("which pairs are kept")
    judge.add_argument("--clip", type=Path, metavar="DIR", help="a folder with a transformers CLIP model")
    judge.add_argument("--no-filter", action="store_true", help="keep every pair")
    judge.add_argument("--image-similarity", type=real(-1, 1), default=0.75, help="image to image (default: 0.75)")
    judge.add_argument(
        "--direction-similarity", type=real(-1, 1), default=0.2, help="with --clip, change to change (default: 0.2)"
    )
    judge.add_argument(
        "--text-similarity", type=real(-1, 1), default=0.2, help="with --clip, to the caption (default: 0.2)"
    )


def _train_instruct(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR", help="folders written by make-instruct-data"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="what to start from (default: shapes, which ships with the pack)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the new .safetensors file")
    parser.add_argument("--steps", type=whole(1, 10**9), help="length of training in steps, over all runs")
    parser.add_argument(
        "--minutes", type=real(0.01, 10**6), help="length of training in minutes; with both, whichever comes first"
    )
    parser.add_argument("--batch", type=whole(1, 10_000), default=32, help="pairs per step (default: 32)")
    parser.add_argument("--rate", type=real(1e-9, 10), default=1e-4, help="learning rate (default: 1e-4)")
    parser.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="the same seed gives the same result (default: 0)"
    )
    parser.add_argument("--resume", action="store_true", help="resume a stopped run")


_BUILDERS = {
    "serve": _serve,
    "generate": _generate,
    "test": _test,
    "evaluate": _evaluate,
    "bench": _bench,
    "merge-instruct": _merge_instruct,
    "make-instruct-data": _make_instruct_data,
    "train-instruct": _train_instruct,
    "train-dreambooth": add_training_options,
    "cascade": add_cascade_options,
}


def overview() -> str:
    """The text of run.py --help."""
    lines = ["Usage: python run.py [COMMAND] [options]", ""]
    lines += [f"  {verb:<19} {meaning}" for verb, meaning in VERBS.items()]
    lines += ["", "Each command has its own --help. The first start installs the packages into .venv beside run.py."]
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line; the result has `verb`, and the verb's options. UsageError with a sentence.

    Exits with 0 after --help.
    """
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(overview())
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        verb, rest = "serve", arguments
    else:
        verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no command '{verb}'.{hint} The commands are: {', '.join(VERBS)}")
    parser = Parser(prog=f"run.py {verb}", description=VERBS[verb], allow_abbrev=False)
    _BUILDERS[verb](parser)
    parsed = parser.parse_args(rest)
    parsed.verb = verb
    return parsed
