"""An extension script that writes down every call it gets from its host, one JSON object a line.

The file is named by the environment variable LIFECYCLE_PROBE_LOG. Both hosts load this script, so their life cycles can
be compared call by call.
"""

import json
import os
from pathlib import Path

import gradio as gr

from modules import script_callbacks, scripts

HOOKS_WITH_OBJECT = (
    "post_sample",
    "postprocess_batch_list",
    "postprocess_image",
    "postprocess_maskoverlay",
    "postprocess_image_after_composite",
)
HOOKS = (
    "setup",
    "before_process",
    "process",
    "before_process_batch",
    "after_extra_networks_activate",
    "process_batch",
    "process_before_every_sampling",
    "before_hr",
)


def describe(value):
    """The shape of a tensor or a cond, the length of a list, a number or a text itself, else the name of the type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return f"{len(value)} items"
    if hasattr(value, "shape"):
        return [int(size) for size in value.shape]
    return type(value).__name__


def record(hook, args=(), kwargs=None):
    """Appends one call to the log."""
    entry = {
        "hook": hook,
        "args": [describe(a) for a in args],
        "kwargs": {k: describe(v) for k, v in (kwargs or {}).items()},
    }
    with Path(os.environ["LIFECYCLE_PROBE_LOG"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, sort_keys=True) + "\n")


def recorder(hook, skipped):
    """A method that records its arguments without the first `skipped`, which are objects of the host."""

    def method(self, *args, **kwargs):
        record(hook, args[skipped:], kwargs)

    method.__name__ = hook
    return method


class LifecycleProbe(scripts.Script):
    """Always on, with two hidden controls whose values the host must hand to every hook."""

    def title(self):
        return "Life cycle probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(value=True, label="probe", visible=False), gr.Number(value=7, label="seven", visible=False)]

    def postprocess_batch(self, p, *args, **kwargs):
        kwargs.pop("images", None)
        record("postprocess_batch", args, kwargs)

    def postprocess(self, p, processed, *args):
        record("postprocess", args, {"images": len(processed.images), "infotexts": len(processed.infotexts)})


for name in HOOKS:
    setattr(LifecycleProbe, name, recorder(name, 1))
for name in HOOKS_WITH_OBJECT:
    setattr(LifecycleProbe, name, recorder(name, 2))


def record_callback(hook, *fields):
    """A script callback that records these fields of its one parameter."""
    return lambda params: record(hook, (), {field: getattr(params, field) for field in fields})


script_callbacks.on_cfg_denoiser(
    record_callback("cfg_denoiser", "x", "sigma", "sampling_step", "total_sampling_steps", "text_cond", "text_uncond")
)
script_callbacks.on_cfg_denoised(record_callback("cfg_denoised", "x", "sampling_step", "total_sampling_steps"))
script_callbacks.on_cfg_after_cfg(record_callback("cfg_after_cfg", "x", "sampling_step", "total_sampling_steps"))
