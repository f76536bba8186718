"""The WebUIs that the tests can start: one entry for each, with its flags, its options and what it cannot do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any


class WebUIUnavailable(Exception):
    """There is no WebUI to test with; the message says what is missing."""


_EDIT = "pix2pix-zero"
_NO_SAMPLER = "it has no such sampler"


@dataclass(frozen=True)
class Host:
    """A WebUI, and how to talk to it.

    variable: `SD_<variable>_DIR` names its checkout, `SD_<variable>_PYTHON` its interpreter (without it, the one in its
    `venv`), `SD_<variable>_CKPT` another checkpoint, `SD_<variable>_ARGS` more of its command line.
    settings: written into its config.json before it starts.
    txt2img: what every such request needs there.
    names: what it calls values of a request otherwise.
    guesses: whether it takes a model's family from the weights, and needs a checkpoint of `models`, which is slow.
    lacks: what it cannot do, or what is not tested with it: names of tests, as of `fnmatch`, and why.
    complaints: starts of errors that it logs with or without the pack.
    """

    variable: str
    title: str
    arguments: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    txt2img: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    guesses: bool = True
    lacks: Mapping[str, str] = field(default_factory=dict)
    complaints: tuple[str, ...] = ()

    def root(self) -> Path:
        """Its checkout. Raises WebUIUnavailable."""
        variable = f"SD_{self.variable}_DIR"
        named = os.environ.get(variable)
        if not named:
            raise WebUIUnavailable(f"{variable} is not set to a checkout of {self.title}")
        root = Path(named).resolve()
        if not (root / "launch.py").is_file() or not (root / "modules" / "scripts.py").is_file():
            raise WebUIUnavailable(f"{variable} names {root}, which holds no WebUI (launch.py, modules/scripts.py)")
        return root

    def python(self) -> Path:
        """Its interpreter. Raises WebUIUnavailable."""
        root, named = self.root(), os.environ.get(f"SD_{self.variable}_PYTHON")
        own = (root / "venv" / "bin" / "python", root / "venv" / "Scripts" / "python.exe")
        candidates = [Path(named)] if named else own
        for path in candidates:
            if path.is_file():
                return path
        places = " or ".join(map(str, candidates))
        raise WebUIUnavailable(f"no Python for {self.title} at {places}; set SD_{self.variable}_PYTHON")

    def adapted(self, payload: dict[str, Any]) -> dict[str, Any]:
        """A request in its words."""
        changed = {**self.txt2img, **payload} if "init_images" not in payload else dict(payload)
        for name, values in self.names.items():
            if changed.get(name) in values:
                changed[name] = values[changed[name]]
        scripts = changed.get("alwayson_scripts", {})
        match scripts.get(_EDIT):
            case {"args": [dict(given)]} if self.guesses:
                args = [{"direction_from": "caption", **given}]  # hundreds of sentences take minutes there
                changed["alwayson_scripts"] = {**scripts, _EDIT: {"args": args}}
        return changed

    def why_not(self, test: str) -> str:
        """Why a test, "test_file.py::test_name[case]", is not run with it; empty where it is."""
        return next((reason for pattern, reason in self.lacks.items() if fnmatch(test, pattern)), "")


_LAUNCH = (
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--disable-console-progressbars",
    "--api",
)  # fmt: skip
_FORKS = (
    *_LAUNCH, "--skip-install", "--always-cpu", "--no-download-sd-model", "--no-hashing",
    "--skip-python-version-check",
)  # fmt: skip
_OF_A1111 = {
    "*512x768*": "takes many minutes with a UNet of the real width",
    "test_pix2pix_zero_page.py::test_an_edit*": "a direction from sentences takes many minutes on a CPU",
    "test_pix2pix_zero.py*UniPC]": "it hands the model other latents there, and pix2pix-zero says so",
    "test_pix2pix_zero.py*strength_0*DPM++ 2M]": "with random weights a solver of second order leads elsewhere",
    "test_fabric.py*every_way*layers*": "in the random checkpoint all layers are of one width, and FABRIC says so",
    "test_lifecycle.py*": "the order of A1111's calls",
    "test_parity.py*": "the standalone host is compared with A1111",
    "test_signatures.py*": "the standalone host is compared with A1111",
    "test_lora.py*": "the standalone host is compared with A1111",
    "test_editing.py*start_and_levels*": "the editing seam of A1111",
    "test_editing.py*schedule*": "the editing seam of A1111",
    "test_editing.py*cannot_be_edited*": "the editing seam of A1111",
    "test_editing.py*UniPC*": "it hands the model other latents there",
    "test_image_cfg.py*hosts_own*": "compared with A1111's own InstructPix2Pix",
    "test_image_cfg.py*off_means_off*": "without the pack an 8-channel checkpoint crashes the host",
    "*one_call_or_several*": "an option of A1111",
}
# an infotext without them is answered with 500, as these hosts check a value against `list[str]`; the first is also
# what Hires.fix needs
_LISTS = {"hr_additional_modules": ["Use same choices"], "styles": []}
_QUIET = {"live_previews_enable": False}

A1111 = Host(
    "WEBUI",
    "AUTOMATIC1111's WebUI v1.10.1",
    (*_LAUNCH, "--no-download-sd-model", "--do-not-download-clip", "--use-cpu", "all", "--no-half"),
    guesses=False,
)
FORGE = Host(
    "FORGE",
    "Forge (main)",
    (*_FORKS, "--do-not-download-clip"),
    _QUIET,
    txt2img=_LISTS,
    lacks={
        **_OF_A1111,
        "test_models.py*sd1-q8*": "it reads the UNet alone from GGUF, and with NumPy 1 takes its sizes for fractions",
    },
)
NEO = Host(
    "NEO",
    "Forge Neo",
    (*_LAUNCH, "--skip-install", "--cpu", "--no-hashing", "--skip-python-version-check"),
    {**_QUIET, "VERSION_UID": "PY313"},  # without the latter it waits for Enter
    txt2img=_LISTS,
    names={"hr_upscaler": {"Latent": "None", "Lanczos": "None"}},
    lacks={
        **_OF_A1111,
        "*slices*": "it has no option to run cond and uncond one after the other",
        **dict.fromkeys(("*DPM fast*", "*DPM adaptive*", "*DPM2 a]", "*DPM++ 2S a]", "*2M SDE Heun]"), _NO_SAMPLER),
        "*the_infotext_alone*Hires.fix*": 'it adds "Hires schedule type" of its own to it; the image is the same',
        "*when_uncond_is_skipped*": "it never skips the first step",
        "*step_without_uncond_rows*": "it never skips the first step",
    },
)
REFORGE = Host(
    "REFORGE",
    "reForge",
    (*_FORKS, "--do-not-download-clip"),
    _QUIET,
    lacks={
        **_OF_A1111,
        "*negative_guidance_minimum_sigma*": "it takes the sigma from its settings alone",
        "test_dreambooth.py*makes_room*": "its log does not say that a model is loaded again",
    },
)
CLASSIC = Host(
    "CLASSIC",
    "Forge Classic",
    _FORKS,
    {**_QUIET, "skip_early_cond": -1.0},  # at 0 it leaves the guidance out of the first step
    lacks={
        **_OF_A1111,
        "*slices*": "it has no option to run cond and uncond one after the other",
        "*negative_guidance_minimum_sigma*": "it neither has the option for all steps nor names the sigma",
        "test_image_cfg.py*DDIM CFG++*": _NO_SAMPLER,
    },
)
HOSTS = (A1111, FORGE, NEO, REFORGE, CLASSIC)


def chosen() -> list[Host]:
    """The hosts whose variables are set."""
    return [host for host in HOSTS if os.environ.get(f"SD_{host.variable}_DIR")]
