"""The host's loaded checkpoint, asked between two jobs, without loading one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lib_methods.denoiser import LoadedModel
from lib_methods.hosts.a1111_rows import sees_picture

Unsuited = Callable[[LoadedModel], str]
_KNOWN: WeakKeyDictionary[nn.Module, dict[Unsuited, str]] = WeakKeyDictionary()


def current_model() -> Any:
    """The host's model; None where there is none yet."""
    from modules import sd_models, shared

    data = getattr(sd_models, "model_data", None)
    return data.sd_model if data is not None else shared.sd_model


def obstacle(unsuited: Unsuited) -> str:
    """What `unsuited` says about the loaded checkpoint: why a method cannot work with it, in one sentence; empty where
    it can, or where nothing can be said yet. Answered once for each checkpoint, so that a page may ask at every key."""
    try:
        model = current_model()
        if model is None:
            return ""
        patched = getattr(model, "forge_objects", None)
        unet = (model if patched is None else patched.unet).model.diffusion_model
        known = _KNOWN.setdefault(unet, {})
        if unsuited not in known:
            known[unsuited] = unsuited(_described(unet, is_fork=patched is not None))
        return known[unsuited]
    except Exception:  # a model that is just being exchanged, or none of ours: the job itself will tell
        return ""


def _described(unet: nn.Module, is_fork: bool) -> LoadedModel:
    if not is_fork:
        return LoadedModel(unet, sees_picture(unet))
    from lib_methods.hosts.forge import NO_ROWS
    from lib_methods.hosts.no_editing import NO_EDITING

    return LoadedModel(unet, sees_picture(unet), NO_ROWS, NO_EDITING)
