"""The options of train-dreambooth and cascade, made from their settings; what is not given stays None, for the job to
choose."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lib_methods.cascade.settings import CascadeSettings
from lib_methods.dreambooth.settings import KINDS, TrainingSettings
from lib_methods.webui.controls import Control, controls_of

_GROUPS = {
    "training": "steps rate text_rate batch_size accumulation train_text text_stop rank alpha convolutions schedule "
    "warm_up weight_decay clip_gradients ema snr_gamma",
    "prior preservation (keeps the class as it is)": "prior prior_weight class_prompt class_images class_steps",
    "the photos": "resolution buckets flip captions also_plain masks caption_dropout noise_offset",
    "a pixel cascade": "stages small_image_noise",
    "the machine": "memory precision optimizer fused_backward checkpointing seed",
    "samples and saving": "sample_every save_every select_best saved_as",
}


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
    for kind in KINDS:
        if text.lower() == kind.lower():
            return kind
    raise argparse.ArgumentTypeError(f"'{text}' is neither lora nor full")


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


def _add(group: argparse._ArgumentGroup | argparse.ArgumentParser, control: Control) -> None:
    flag, words, default = control.name.replace("_", "-"), control.about or control.help, control.default
    words = words or f"{control.label[:1].lower()}{control.label[1:]}"
    if control.kind == "checkbox":
        name, words = (f"--no-{flag}", f"do not {words}") if default else (f"--{flag}", words)
        group.add_argument(name, dest=control.name, action="store_const", const=not default, help=words)
        return
    if "(default" not in words and default != "":
        words += f" (default: {default if isinstance(default, str) else f'{default:g}'})"
    kind: Any = str if control.choices or control.kind == "text" else int if control.whole else float
    metavar = "|".join(control.choices).lower() or {str: "TEXT", int: "N", float: "X"}[kind]
    special = {"memory": (_memory, "8GB"), "kind": (_kind, metavar)}
    kind, metavar = special.get(control.name, (kind, metavar))
    group.add_argument(f"--{flag}", type=kind, metavar=metavar, help=words)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Every setting as an option, under its own name where the user knows it by that."""
    declared = {control.name: control for control in controls_of(TrainingSettings)}
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder with 3 to 5 photos of the subject")
    parser.add_argument("--class", dest="class_noun", metavar="NOUN", help='what the subject is, for example "dog"')
    parser.add_argument(
        "--base", type=Path, metavar="FILE", help="a .safetensors checkpoint, a diffusers folder or a pixel cascade's"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the result; the run itself is in DIR/NAME")
    parser.add_argument("--name", help="the result's name")
    _add(parser, declared["kind"])
    _add(parser, declared["identifier"])
    parser.add_argument("--resume", action="store_true", help="resume; only --out and --name are required")
    parser.add_argument("--plan", action="store_true", help="only print what would be done, and the memory it takes")
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="a JSON file with all settings, instead of options"
    )
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    for title, names in _GROUPS.items():
        for name in names.split():
            _add(groups[title], declared[name])
    training, prior, photos, *_, samples = groups.values()
    training.add_argument(
        "--continue-from", type=Path, metavar="LORA", help="start from a LoRA, with its ranks and layers"
    )
    prior.add_argument(
        "--class-folder",
        type=Path,
        metavar="DIR",
        help="your own class images (regularisation images), used as they are",
    )
    photos.add_argument(
        "--concept",
        dest="concepts",
        action=_Concepts,
        nargs="+",
        metavar=("DIR", "NOUN"),
        help="one more subject: its folder, its class, and perhaps its identifier and its folder of class images; may "
        "be given more than once. kohya's folders (10_ohwx dog) in --photos are subjects by themselves",
    )
    samples.add_argument(
        "--sample-prompt",
        dest="sample_prompts",
        action="append",
        metavar="PROMPT",
        help='with {subject}, for example "a {subject} in the snow"; may be given more than once',
    )


_CASCADE_GROUPS = {
    "stage 1": "negative_prompt seed steps guidance solver timesteps width height",
    "stage 2": "stage2_negative_prompt stage2_steps stage2_guidance stage2_noise_level stage2_seed stage2_solver "
    "stage2_timesteps",
    "stage 3": "stage3_prompt stage3_negative_prompt stage3_steps stage3_guidance stage3_noise_level stage3_seed",
    "thresholding (keeps high guidance from burning)": "thresholding percentile upper_bound",
    "the machine": "batch precision text_precision memory residence",
}


def add_cascade_options(parser: argparse.ArgumentParser) -> None:
    """Every setting as an option."""
    declared = {control.name: control for control in controls_of(CascadeSettings)}
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to generate; candidates keep their own")
    parser.add_argument(
        "--stages",
        dest="folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="the folders of stages I, II and III, as many as there are, or one folder that holds them",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the images; a run's own are in DIR/NAME")
    parser.add_argument("--name", help="the run's name (default: from the prompt)")
    _add(parser, declared["count"])
    _add(parser, declared["last_stage"])
    parser.add_argument(
        "--style",
        dest="stage2_prompt",
        metavar="TEXT",
        help='prompt of stage 2 and up, such as "an oil painting of {subject}"; {subject} stands for the prompt',
    )
    parser.add_argument(
        "--resume-from",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="candidates (PNG files of an earlier run) to take up again, instead of new ones",
    )
    parser.add_argument("--resume", action="store_true", help="resume; only --out and --name are required")
    parser.add_argument("--plan", action="store_true", help="only print what would be done, and the memory it takes")
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="a JSON file with the whole job, instead of options"
    )
    source = parser.add_argument_group("an image to change")
    source.add_argument("--image", type=Path, metavar="FILE", help="start from this image")
    source.add_argument("--mask", type=Path, metavar="FILE", help="change only where this mask is white")
    _add(source, declared["strength"])
    _add(source, declared["stage2_strength"])
    for title, names in _CASCADE_GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names.split():
            _add(group, declared[name])
