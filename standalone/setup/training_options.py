"""The options of train-dreambooth. Standard library only; what is not given stays None, for the training to choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

KINDS = {"lora": "LoRA", "full": "full"}


def _memory(text: str) -> float:
    number = text.strip().lower().removesuffix("b").removesuffix("i").removesuffix("g").strip()
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 < value < 10_000:
        raise argparse.ArgumentTypeError(f"'{text}' is not an amount of memory such as 8GB")
    return value


def _kind(text: str) -> str:
    if text.lower() not in KINDS:
        raise argparse.ArgumentTypeError(f"'{text}' is neither lora nor full")
    return KINDS[text.lower()]


class _Concepts(argparse.Action):
    """Each `--concept` as a concept of a settings file."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if not 2 <= len(values) <= 4:
            raise argparse.ArgumentError(
                self, "needs a folder and a class, and may have an identifier and class images"
            )
        names = ("photos", "class_noun", "identifier", "class_folder")
        given = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*given, dict(zip(names, values))])


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Every field of TrainingSettings, under its own name where the user knows it by that."""
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder with 3 to 5 photos of the subject")
    parser.add_argument("--class", dest="class_noun", metavar="NOUN", help='what the subject is, for example "dog"')
    parser.add_argument("--base", type=Path, metavar="FILE", help="a .safetensors checkpoint or a diffusers folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the result; the run itself is in DIR/NAME")
    parser.add_argument("--name", help="the result's name")
    parser.add_argument("--kind", type=_kind, metavar="lora|full", help="kind of result (default: lora)")
    parser.add_argument("--identifier", metavar="WORD", help="the subject's name in prompts (default: a rare word)")
    parser.add_argument("--resume", action="store_true", help="resume; only --out and --name are required")
    parser.add_argument("--plan", action="store_true", help="only print what would be done, and the memory it takes")
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="a JSON file with all settings, instead of options"
    )
    _strength(parser.add_argument_group("training"))
    _prior(parser.add_argument_group("prior preservation (keeps the class as it is)"))
    _photos(parser.add_argument_group("the photos"))
    _machine(parser.add_argument_group("the machine"))
    _shown(parser.add_argument_group("samples and saving"))


def _strength(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--steps", type=int, help="optimizer steps (default: by the number of photos)")
    group.add_argument("--rate", type=float, help="learning rate (default: by the kind and the model's size)")
    group.add_argument("--text-rate", type=float, help="of the text encoder (default: half of --rate)")
    group.add_argument("--batch-size", type=int, help="photos per step; class images come on top (default: 1)")
    group.add_argument("--accumulation", type=int, metavar="N", help="passes accumulated per step (default: 1)")
    group.add_argument("--train-text", action="store_const", const=True, help="also train the text encoder")
    group.add_argument("--text-stop", type=float, metavar="SHARE", help="up to this share of the steps (default: 1)")
    group.add_argument("--rank", type=int, help="of the LoRA (default: 16)")
    group.add_argument("--alpha", type=float, help="of the LoRA (default: same as the rank)")
    group.add_argument("--convolutions", action="store_const", const=True, help="Also train convolutions (LoRA)")
    group.add_argument(
        "--continue-from", type=Path, metavar="LORA", help="start from a LoRA, with its ranks and layers"
    )
    group.add_argument("--schedule", metavar="NAME", help="constant, cosine or linear (default: constant)")
    group.add_argument("--warm-up", type=int, metavar="STEPS", help="warm-up steps (default: 0)")
    group.add_argument("--weight-decay", type=float, help="(default: 0.01)")
    group.add_argument("--clip-gradients", type=float, metavar="NORM", help="0 to turn off (default: 1)")
    group.add_argument(
        "--ema", type=float, metavar="DECAY", help="decay of averaged weights, such as 0.999 (default: off)"
    )
    group.add_argument("--snr-gamma", type=float, help="of min-SNR weighting, 0 for none (default: 5)")


def _prior(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prior", metavar="KIND", help="images, model, off or auto (default: model for a LoRA, images for full)"
    )
    group.add_argument("--prior-weight", type=float, metavar="LAMBDA", help="(default: 1)")
    group.add_argument("--class-prompt", metavar="PROMPT", help='of the class images (default: "a NOUN")')
    group.add_argument(
        "--class-folder",
        type=Path,
        metavar="DIR",
        help="your own class images (regularisation images), used as they are",
    )
    group.add_argument("--class-images", type=int, metavar="N", help="number of generated class images (default: 100)")
    group.add_argument("--class-steps", type=int, metavar="N", help="sampling steps of each (default: 20)")


def _photos(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--resolution", type=int, metavar="PIXELS", help="(default: the model's own)")
    group.add_argument("--no-buckets", dest="buckets", action="store_const", const=False, help="crop all to squares")
    group.add_argument(
        "--concept",
        dest="concepts",
        action=_Concepts,
        nargs="+",
        metavar=("DIR", "NOUN"),
        help="one more subject: its folder, its class, and perhaps its identifier and its folder of class images; may "
        "be given more than once. kohya's folders (10_ohwx dog) in --photos are subjects by themselves",
    )
    group.add_argument(
        "--caption-dropout", type=float, metavar="SHARE", help="share of captions left empty (default: 0)"
    )
    group.add_argument("--noise-offset", type=float, metavar="X", help="for darker and brighter images, such as 0.05")
    group.add_argument(
        "--flip", action="store_const", const=True, help="also use mirrored photos; not for faces or letters"
    )
    group.add_argument("--no-captions", dest="captions", action="store_const", const=False, help="ignore captions")
    group.add_argument("--no-masks", dest="masks", action="store_const", const=False, help="ignore masks")


def _machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--memory", type=_memory, metavar="8GB", help="memory limit (default: all free memory)")
    group.add_argument("--precision", metavar="NAME", help="fp32, bf16, fp16 or auto (default: auto)")
    group.add_argument(
        "--optimizer", metavar="NAME", help="adamw, adamw8bit, adafactor, prodigy or auto (default: auto)"
    )
    group.add_argument(
        "--fused-backward", action="store_const", const=True, help="update weights during the backward pass"
    )
    group.add_argument("--checkpointing", action="store_const", const=True, help="less memory for a third more time")
    group.add_argument("--seed", type=int, help="the same seed gives the same result (default: 0)")


def _shown(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sample-prompt",
        dest="sample_prompts",
        action="append",
        metavar="PROMPT",
        help='with {subject}, for example "a {subject} in the snow"; may be given more than once',
    )
    group.add_argument("--sample-every", type=int, metavar="STEPS", help="(default: a fifth of the steps)")
    group.add_argument(
        "--save-every", type=int, metavar="STEPS", help="also keep a result every so many steps (default: off)"
    )
    group.add_argument(
        "--select-best", action="store_const", const=True, help="keep the best-scoring weights and stop early"
    )
    group.add_argument("--saved-as", metavar="NAME", help="fp16, bf16, fp32 or source (default: fp16)")
