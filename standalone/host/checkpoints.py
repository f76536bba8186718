"""The checkpoints that can be chosen, and the one that is loaded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lib_methods.errors import CheckpointError, reason
from lib_methods.files import read_json
from standalone.engine import checkpoint as loader
from standalone.engine import names
from standalone.engine.text import TextOptions
from standalone.host import callbacks, devices, errors, paths, shared

checkpoints_list: dict[str, CheckpointInfo] = {}
checkpoint_aliases: dict[str, CheckpointInfo] = {}
checkpoint_dirs: list[Path] = []
nearby_dirs: list[Path] = []
_unloaded: Any = None  # the model that `unload_model_weights` has moved off the device
_CHECKSUM = re.compile(r"\s*\[[^]]+]\s*$")


class CheckpointInfo:
    """One checkpoint: a .safetensors file or a diffusers folder. Its hash is computed when it is first loaded."""

    def __init__(self, filename: str | Path) -> None:
        path = Path(filename)
        self.filename = str(path)
        self.is_safetensors = path.suffix.lower() == ".safetensors"
        self.metadata: dict[str, Any] = {}
        self.name = path.name
        self.name_for_extra = path.stem if path.is_file() else path.name
        self.model_name = self.name_for_extra
        self.hash: str | None = None
        self.sha256: str | None = None
        self.shorthash: str | None = None
        self.title = self.short_title = self.name
        self.ids = [self.name, self.name_for_extra]

    @property
    def config(self) -> str | None:
        """The yaml beside the file, if there is one."""
        beside = Path(self.filename).with_suffix(".yaml")
        return str(beside) if beside.is_file() else None

    def register(self) -> None:
        """Puts the checkpoint into the lists under all its names; a name that is taken gets its folder in front."""
        if checkpoint_aliases.get(self.name, self) is not self:
            folder = Path(self.filename).parent.name
            self.name = self.title = self.short_title = f"{folder}/{self.name}"
            self.ids.append(self.name)
        checkpoints_list[self.title] = self
        for name in self.ids:
            checkpoint_aliases.setdefault(name, self)

    def calculate_shorthash(self) -> str:
        """The first ten digits of the SHA-256, which then are part of the title."""
        if self.shorthash is None:
            checkpoints_list.pop(self.title, None)
            self.sha256 = loader.checkpoint_sha256(Path(self.filename))
            self.shorthash = self.hash = self.sha256[:10]
            self.title = f"{self.name} [{self.shorthash}]"
            self.short_title = f"{self.name_for_extra} [{self.shorthash}]"
            self.ids += [self.shorthash, self.sha256, self.title, self.short_title]
            self.register()
        return self.shorthash


def list_models() -> None:
    """Looks for checkpoints in the folders again; what is known stays known."""
    for title, info in list(checkpoints_list.items()):
        if not Path(info.filename).exists():
            del checkpoints_list[title]
            for alias in [name for name, other in checkpoint_aliases.items() if other is info]:
                del checkpoint_aliases[alias]
    known = {Path(info.filename).resolve() for info in checkpoints_list.values()}
    found = [path for folder in checkpoint_dirs for path in _checkpoints_in(folder, "**/")]
    # the folder of a checkpoint given by its path may be anything, a home folder even: no deeper than that
    found += [path for folder in nearby_dirs for path in _checkpoints_in(folder, "")]
    for path in found:
        if path.resolve() not in known:
            known.add(path.resolve())
            CheckpointInfo(path).register()


def _checkpoints_in(folder: Path, depth: str) -> list[Path]:
    """The .safetensors files in `folder` that are no LoRA and no part of a diffusers folder, and those folders,
    stages of a pixel cascade aside."""
    files = [
        path
        for path in sorted(folder.glob(f"{depth}*"))
        if path.name.lower().endswith(".safetensors")
        and not path.name.lower().endswith(".vae.safetensors")
        and names.is_text(path.name)
        and not any(map(loader.is_diffusers_folder, path.parents))
        and "Lora" not in path.relative_to(folder).parts[:-1]
    ]
    folders = [config.parent.parent for config in sorted(folder.glob(f"{depth}*/unet/config.json"))]
    return files + [path for path in folders if not _is_cascade_stage(path)]


def _is_cascade_stage(folder: Path) -> bool:
    """Whether a diffusers folder holds a stage of DeepFloyd IF, which is no checkpoint for a job."""
    index = folder / "model_index.json"
    return index.is_file() and '"_class_name": "IF' in index.read_text(encoding="utf-8", errors="replace")


def checkpoint_tiles(use_short: bool = False) -> list[str]:
    """The titles of all checkpoints."""
    return [info.short_title if use_short else info.title for info in checkpoints_list.values()]


def get_closet_checkpoint_match(search_string: str | None) -> CheckpointInfo | None:
    """The checkpoint with this name, title or hash, or the one with the shortest title that contains it.

    Case, the ending and a checksum behind the name make no difference. The name of the function is the WebUI's.
    """
    if not search_string or not search_string.strip():
        return None
    for text in (search_string, _CHECKSUM.sub("", search_string)):
        found = names.find(text, checkpoint_aliases, names.folded_file)
        if found is not None:
            return found
    wanted = names.folded_file(_CHECKSUM.sub("", search_string))
    matches = [info for info in checkpoints_list.values() if wanted and wanted in names.folded(info.title)]
    return min(matches, key=lambda info: len(info.title), default=None)


def checkpoint_of_infotext(params: Mapping[str, Any]) -> CheckpointInfo | None:
    """The checkpoint that an infotext means: by its hash, else by its name where the hash is not known yet."""
    found = get_closet_checkpoint_match(params.get("Model hash"))
    if found is None:
        named = names.find(params.get("Model") or "", checkpoint_aliases, names.folded_file)
        found = named if named and (named.shorthash is None or not params.get("Model hash")) else None
    return found


def find_checkpoint(name: str | None, kind: str = "checkpoint") -> CheckpointInfo | None:
    """The checkpoint that a job names; None for no choice: "", "None", "Use same checkpoint". Raises UserError."""
    if not name or names.folded(name) in ("", "none", "use same checkpoint"):
        return None
    found = get_closet_checkpoint_match(name)
    if found is None:
        raise names.unknown(kind, name, checkpoint_tiles())
    return found


def select_checkpoint() -> CheckpointInfo:
    """The checkpoint that the settings name, or the loaded one, or the first. Raises CheckpointError without any."""
    found = get_closet_checkpoint_match(shared.opts.sd_model_checkpoint)
    if found is None and shared.sd_model is not None:
        found = shared.sd_model.sd_checkpoint_info
    if found is None:
        found = next(iter(checkpoints_list.values()), None)
    if found is None:
        raise CheckpointError("There is no checkpoint to load.")
    return found


def text_options() -> TextOptions:
    """What the settings say about text, for the encoders."""
    opts = shared.opts
    return TextOptions(
        clip_skip=int(opts.CLIP_stop_at_last_layers),
        emphasis=opts.emphasis,
        backtrack=int(opts.comma_padding_backtrack),
        sdxl_clip_l_skip=bool(opts.sdxl_clip_l_skip),
    )


def load_model(
    checkpoint_info: CheckpointInfo | None = None, already_loaded_state_dict: Any = None, progress: Any = None
) -> Any:
    """Loads a checkpoint into shared.sd_model and tells the scripts. After a CheckpointError the old model stays."""
    info = checkpoint_info or select_checkpoint()
    model = loader.load_checkpoint(Path(info.filename), device=devices.device, dtype=devices.dtype, progress=progress)
    try:
        info.calculate_shorthash()
    except OSError as error:
        raise CheckpointError(f"{info.name} cannot be read. {reason(error)}") from error
    model.sd_checkpoint_info = info
    model.sd_model_hash = info.shorthash
    for encoder in model.text_encoders:
        setattr(encoder, "options", text_options)  # noqa: B010 - nn.Module types its attributes as tensors
    shared.sd_model = model
    shared.opts.data["sd_model_checkpoint"] = info.title
    callbacks.model_loaded_callback(model)
    return model


def reload_model_weights(sd_model: Any = None, info: CheckpointInfo | None = None, forced_reload: bool = False) -> Any:
    """Loads the checkpoint that the settings (or `info`) name, unless it is loaded already.

    When the one that the settings name cannot be loaded, the loaded one is chosen again: the next job can do its work.
    """
    wanted = info or select_checkpoint()
    loaded = shared.sd_model.sd_checkpoint_info if shared.sd_model is not None else None
    if loaded is not None and loaded.filename == wanted.filename and not forced_reload:
        if info is None:
            shared.opts.data["sd_model_checkpoint"] = loaded.title
        if _unloaded is shared.sd_model:
            send_model_to_device(shared.sd_model)
        return shared.sd_model
    try:
        return load_model(wanted)
    except Exception as error:
        if info is not None or loaded is None:
            raise
        shared.opts.data["sd_model_checkpoint"] = loaded.title
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{error} {loaded.name} stays loaded.") from error
        raise


def send_model_to_cpu(m: Any) -> None:
    """Makes room on the device."""
    if m is not None:
        m.to(devices.cpu)
    devices.torch_gc()


def send_model_to_device(m: Any) -> None:
    """The way back."""
    global _unloaded
    m.to(devices.device)
    _unloaded = None


def unload_model_weights(sd_model: Any = None, info: Any = None) -> Any:
    """Makes room on the device; the model stays in memory, and the next job brings it back."""
    global _unloaded
    _unloaded = sd_model or shared.sd_model
    send_model_to_cpu(_unloaded)
    return sd_model


def reset() -> None:
    """Forgets all checkpoints; for a host that is closed."""
    global _unloaded
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    checkpoint_dirs.clear()
    nearby_dirs.clear()
    shared.sd_model = _unloaded = None
    devices.torch_gc()


def apply_token_merging(sd_model: Any, token_merging_ratio: float) -> None:
    """This host merges no tokens."""


def apply_alpha_schedule_override(sd_model: Any, p: Any = None) -> None:
    """This host keeps the noise schedule of the checkpoint."""


@contextlib.contextmanager
def SkipWritingToConfig() -> Iterator[None]:
    """Loading inside leaves the setting as it was."""
    before = shared.opts.data.get("sd_model_checkpoint")
    try:
        yield
    finally:
        shared.opts.data["sd_model_checkpoint"] = before


@contextlib.contextmanager
def checkpoint_kept() -> Iterator[None]:
    """After the block, whatever happens in it, the checkpoint from before it is loaded: a job may change it."""
    before = shared.sd_model.sd_checkpoint_info
    try:
        yield
    finally:
        try:
            with SkipWritingToConfig():
                reload_model_weights(info=before)
        except CheckpointError as error:  # its file is gone: the images of the job are not lost for that
            errors.report(f"{error} {shared.sd_model.sd_checkpoint_info.name} stays loaded.")


@dataclass(frozen=True)
class Defaults:
    """First values on the page and the command line; a checkpoint brings its own in (NAME.)defaults.json beside it."""

    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.0
    sampler_name: str = "Euler a"
    scheduler: str = "Automatic"
    prompt: str = ""
    negative_prompt: str = ""
    examples: tuple[str, ...] = (
        "a lighthouse on a cliff at sunset, oil painting",
        "portrait of a fox in a library, soft light",
        "a bowl of ramen on a wooden table, studio photo",
    )  # prompts to try, shown where the first images will be


def _read_defaults(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    kinds = {field.name: type(field.default) for field in fields(Defaults)}
    good: dict[str, Any] = {}
    for name, value in found.items():
        kind = kinds.get(name)
        if kind is float and isinstance(value, (int, float)):
            good[name] = float(value)
        elif kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            good[name] = tuple(value)
        elif kind is not None and isinstance(value, kind):
            good[name] = value
    return good


def defaults_of(model: Any) -> Defaults:
    """The defaults for a loaded model, from the file beside its checkpoint, else by its family."""
    predicts_v = getattr(model, "parameterization", "eps") != "eps"
    is_768 = getattr(model, "is_sd2", False) and predicts_v
    size = 1024 if getattr(model, "is_sdxl", False) else 768 if is_768 else 512
    values: dict[str, Any] = {"width": size, "height": size}
    info = getattr(model, "sd_checkpoint_info", None)
    if info is not None:
        path = Path(info.filename)
        beside = path.parent / f"{path.stem}.defaults.json"
        values |= _read_defaults(beside) or _read_defaults(path.parent / "defaults.json")
    return Defaults(**values)


model_path = paths.models_path
list_checkpoint_tiles, refresh_checkpoints = checkpoint_tiles, list_models  # as `modules.shared` has them
