"""Finds what a name means, as people and other programs write it: in any case, with or without a file's ending."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from lib_methods.errors import UserError

T = TypeVar("T")
_LONGEST_LIST = 40
SAMPLERS: dict[str, tuple[str, ...]] = {
    "DPM++ 2M": ("k_dpmpp_2m", "dpmpp_2m"),
    "DPM++ SDE": ("k_dpmpp_sde", "dpmpp_sde", "dpmpp_sde_gpu"),
    "DPM++ 2M SDE": ("k_dpmpp_2m_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    "Euler a": ("k_euler_a", "k_euler_ancestral", "euler_a", "euler_ancestral"),
    "Euler": ("k_euler",),
    "Heun": ("k_heun",),
    "DDIM": ("ddim",),
    "UniPC": ("unipc", "uni_pc"),
    "LCM": ("k_lcm",),
}
"""The samplers, with their other names: in the WebUI's API, in ComfyUI and in Easy Diffusion."""
SCHEDULES: dict[str, tuple[str, ...]] = {
    "Automatic": ("automatic",),
    "Uniform": ("uniform",),
    "Karras": ("karras",),
    "Exponential": ("exponential",),
    "Polyexponential": ("polyexponential",),
    "SGM Uniform": ("sgm_uniform", "SGMUniform"),
    "KL Optimal": ("kl_optimal",),
    "Align Your Steps": ("align_your_steps",),
    "Simple": ("simple",),
    "Normal": ("normal",),
    "DDIM": ("ddim", "ddim_uniform"),
}
"""The schedules: label, name, other names."""
OWN_TIMESTEPS = ("DDIM", "UniPC")
"""The samplers for which no schedule can be chosen."""
UPSCALERS = ("None", "Lanczos", "Nearest")
"""The upscalers of images."""
LATENT_UPSCALERS: dict[str, dict[str, Any]] = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
    "Latent (nearest-exact)": {"mode": "nearest-exact", "antialias": False},
}
"""The ways in which Hires. fix enlarges latents, with the arguments of torch's interpolate."""
_OLD_ENDINGS = {"Karras": ("_ka",), "Exponential": ("_exp",)}  # of aliases before v1.9


def folded(name: str) -> str:
    """`name` without what makes no difference: case, accents' encoding, spaces around it and doubled inside."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def folded_file(name: str) -> str:
    """The same for the name of a model's file, whose ending makes no difference, nor which slash a folder has."""
    return folded(name.replace("\\", "/")).removesuffix(".safetensors")


def find(name: str, table: Mapping[str, T], fold: Callable[[str], str] = folded) -> T | None:
    """The entry called exactly `name`, else the only one whose name folds to the same; None where there is none."""
    if name in table:
        return table[name]
    wanted = fold(name)
    found = {id(value): value for key, value in table.items() if wanted and fold(key) == wanted}
    return next(iter(found.values())) if len(found) == 1 else None


def is_text(name: str) -> bool:
    """Whether a file's name can be written in an answer; names of other encodings cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_sampler(
    name: str, table: Mapping[str, Iterable[str]], schedules: Mapping[str, Iterable[str]]
) -> tuple[str, str | None] | None:
    """The sampler that `name` means, and the schedule when the name carries one; None when there is no such sampler.

    Names are today's, aliases ("k_euler_a"), and those that carried a schedule before v1.9: "DPM++ 2M Karras", and in
    the API "k_dpmpp_2m_ka"; ComfyUI's nodes write "dpmpp_2m_karras". A sampler's full name comes first: "DDIM" is no
    schedule here.
    """
    known = {text: sampler for sampler, aliases in table.items() for text in (sampler, *aliases)}
    found = find(name, known)
    if found is not None:
        return found, None
    text = folded(name)
    for label, others in schedules.items():
        endings = (f"{before}{folded(other)}" for other in (label, *others) for before in " _")
        for ending in (*endings, *_OLD_ENDINGS.get(label, ())):
            found = find(text.removesuffix(ending), known) if text.endswith(ending) else None
            if found is not None and found not in OWN_TIMESTEPS:
                return found, label
    return None


def find_schedule(name: str, schedules: Mapping[str, Iterable[str]]) -> str | None:
    """The label of the schedule with this label or name, in any case; None when there is no such schedule."""
    return find(name, {text: label for label, others in schedules.items() for text in (label, *others)})


def shown(text: object) -> str:
    """`text` as it can stand in a sentence: one line, at most 80 letters, nothing that cannot be printed or encoded."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:80])


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that nothing has; `kind` as in "sampler", `known` are the names to choose from."""
    choices = list(known)
    listed = ", ".join(choices[:_LONGEST_LIST]) + (" ..." if len(choices) > _LONGEST_LIST else "")
    return UserError(f"There is no {kind} named '{shown(name)}'. Available: {listed or 'none'}.")
