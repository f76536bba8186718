"""The host's checkpoints and LoRAs: which one is loaded, which there are, and where they are."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lib_methods.checkpoints.kinds import other_model
from lib_methods.checkpoints.ldm_names import UNET_PREFIX
from lib_methods.checks import SettingsError
from lib_methods.denoiser import ChosenSampler, LoadedModel, sees_picture
from lib_methods.errors import CheckpointError
from lib_methods.hosts.a1111 import start
from lib_methods.hosts.forge import editing, memory_management
from lib_methods.hosts.forge.picture import predicts_flow, predicts_v
from lib_methods.safetensors import read_header
from modules import extra_networks, paths, sd_models, sd_samplers, shared

Unsuited = Callable[[LoadedModel], str]
_KNOWN: WeakKeyDictionary[nn.Module, dict[Unsuited, str]] = WeakKeyDictionary()
_MOST_READ = 300  # checkpoints whose headers are read for a suggestion
_PICTURE_CHANNELS = 8  # of a UNet that sees an image beside the latents
_UNET_PARTS = ("input_blocks", "down_blocks")
_TRANSFORMER_PARTS = ("transformer_blocks", "double_blocks", "joint_blocks", "blocks", "layers")
_SPELLED = {
    "ErnieImage": "ERNIE-Image",
    "Flux2": "Flux.2",
    "Krea2": "Krea 2",
    "Lumina2": "Lumina 2",
    "QwenImage": "Qwen-Image",
    "SD3Inferencer": "Stable Diffusion 3",
    "StableDiffusion3": "Stable Diffusion 3",
    "ZImage": "Z-Image",
}  # the names of the hosts' classes


def current_model() -> Any:
    """The host's model; None where there is none yet."""
    data = getattr(sd_models, "model_data", None)
    return data.sd_model if data is not None else shared.sd_model


def unet_of(model: Any) -> nn.Module:
    """What samples in the host's model."""
    patched = getattr(model, "forge_objects", None)
    unet: nn.Module = (model if patched is None else patched.unet).model.diffusion_model
    return unet


def family() -> str:
    """Of the host's model: "v_prediction", "sdxl" or "sd1" (SD2, too); "sdxl" where that cannot be said."""
    model = current_model()
    try:
        patched = getattr(model, "forge_objects", None)
        is_v = model.parameterization == "v" if patched is None else predicts_v(patched.unet.model)
        return "v_prediction" if is_v else "sdxl" if model.is_sdxl else "sd1"
    except AttributeError:
        return "sdxl"


def transformer_name(model: Any) -> str:
    """What the host's model is called if it is a transformer (Flux, Qwen-Image); empty for one with a UNet."""
    inner = unet_of(model)
    if any(hasattr(inner, part) for part in _UNET_PARTS):
        return ""
    if not any(isinstance(getattr(inner, part, None), nn.ModuleList) for part in _TRANSFORMER_PARTS):
        return ""
    name = type(model).__name__
    return _SPELLED.get(name, name)


def _chosen(model: Any) -> Path | None:
    """The checkpoint that Forge will load at the next job; None where it is loaded, and in other hosts."""
    told = getattr(getattr(sd_models, "model_data", None), "forge_loading_parameters", None) or {}
    file = getattr(told.get("checkpoint_info"), "filename", None)
    return Path(file) if file and file != getattr(getattr(model, "sd_checkpoint_info", None), "filename", "") else None


@lru_cache(maxsize=8)
def _other_model(file: Path, _changed: int) -> str:
    return other_model(_tensor_names(file)).partition(" ")[2]


def _tensor_names(file: Path) -> Iterable[str]:
    if file.suffix.lower() != ".gguf":
        return read_header(file).tensors
    bundled = ("gguf", "modules_forge.packages.gguf")  # with every fork that reads such files
    reader = next(kind for name in bundled if (kind := getattr(sys.modules.get(name), "GGUFReader", None)) is not None)
    return [str(tensor.name) for tensor in reader(str(file)).tensors]


def obstacle(unsuited: Unsuited) -> str:
    """What `unsuited` says about the checkpoint of the next job: why a method cannot work with it, in one sentence;
    empty where it can, or where nothing can be said yet. Answered once for each, so that a page may ask at every key.

    Of one that is not loaded yet, its file shows whether it has a UNet at all."""
    try:
        model = current_model()
        if (chosen := _chosen(model)) is not None:
            name = _other_model(chosen, chosen.stat().st_mtime_ns)
            return unsuited(LoadedModel(nn.Module(), transformer=name)) if name else ""
        if model is None:
            return ""
        unet = unet_of(model)
        known = _KNOWN.setdefault(unet, {})
        if unsuited not in known:
            patched, name = getattr(model, "forge_objects", None), transformer_name(model)
            is_flow = patched is not None and predicts_flow(patched.unet.model)
            known[unsuited] = unsuited(LoadedModel(unet, sees_picture(unet), transformer=name, is_flow=is_flow))
        return known[unsuited]
    except Exception:  # a model that is just being exchanged, or none of ours: the job itself will tell
        return ""


def chosen_sampler(name: str, steps: int) -> ChosenSampler | None:
    """What methods ask about the sampler of this name; None where it cannot be said before a job.

    steps: 0 where only the job knows how many there are (img2img).
    """
    config = sd_samplers.find_sampler_config(name)
    if config is None:
        return None
    adapter = start if memory_management() is None else editing
    function = _function_of(config)
    why = adapter.obstacle_of(SimpleNamespace(func=function, config=config), steps)
    if why or function is None:
        return ChosenSampler(why, False, False)
    given = {key: value.default for key, value in inspect.signature(function).parameters.items()}
    return ChosenSampler("", start.needs_noise(given), start.own_noise(function.__name__, given) is not None)


def _function_of(config: Any) -> Any:
    """The function of a sampler, without its model, which Forge loads for the first job: what makes the sampler keeps
    it, or its name in k-diffusion. None where it is elsewhere."""
    make = config.constructor
    cells = [cell.cell_contents for cell in getattr(make, "__closure__", None) or ()]
    kept = [*getattr(make, "args", ()), *(getattr(make, "__defaults__", None) or ()), *cells]
    found = next((value for value in kept if callable(value) or isinstance(value, str)), None)
    if not isinstance(found, str):
        return found
    # reForge brings its own k-diffusion, and the function that makes the sampler knows it
    homes = (getattr(make, "__globals__", {}).get("sampling"), sys.modules.get("k_diffusion.sampling"))
    functions = (getattr(home, name, None) for home in homes for name in (found, f"sample_{found}"))
    return next((function for function in functions if callable(function)), None)


def checkpoints() -> list[str]:
    """The titles of all checkpoints."""
    return [str(title) for title in sd_models.checkpoint_tiles()]


def loaded() -> str:
    """The title of the checkpoint that is in use; the first one where that is not known, "" where there is none."""
    titles = checkpoints()
    chosen = sd_models.get_closet_checkpoint_match(getattr(shared.opts, "sd_model_checkpoint", None))
    if chosen is not None and chosen.title in titles:
        return str(chosen.title)
    return titles[0] if titles else ""


def checkpoint_file(title: object) -> Path:
    """The file, or diffusers folder, of a checkpoint. Raises SettingsError: there is none of that title."""
    found = sd_models.get_closet_checkpoint_match(title) if isinstance(title, str) and title.strip() else None
    if found is None:
        raise SettingsError(
            "Choose the base model." if not title else "The base model no longer exists. Choose another one."
        )
    return Path(found.filename)


def checkpoint_title(file: Path) -> str:
    """The title of a checkpoint's file; "" where the host does not list it."""
    for info in sd_models.checkpoints_list.values():
        if Path(info.filename).resolve() == file.resolve():
            return str(info.title)
    return ""


def suited_checkpoint(sees_picture: bool) -> str:
    """The title of the first checkpoint, by the files' headers, whose UNet sees an image beside the latents
    (InstructPix2Pix), or of the first whose UNet sees none; "" where there is none."""
    for info in list(sd_models.checkpoints_list.values())[:_MOST_READ]:
        file = Path(info.filename)
        with suppress(OSError):
            channels = _input_channels(file, file.stat().st_mtime_ns)
            if channels and (channels == _PICTURE_CHANNELS) == sees_picture:
                return str(info.title)
    return ""


@lru_cache(maxsize=_MOST_READ)
def _input_channels(file: Path, _changed: int) -> int:
    """Of a checkpoint's UNet; 0 where there is none that can be seen."""
    with suppress(CheckpointError):
        first = read_header(file).tensors.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
        if first is not None and len(first.shape) == 4:
            return first.shape[1]
    return 0


def _lora_files() -> dict[str, Path]:
    """All LoRAs by their places in the host's folder, or in one of the further ones that Forge Neo may have."""
    folders = [folder_of("LoRA"), *map(Path, getattr(shared.cmd_opts, "lora_dirs", None) or ())]
    files = [(folder, file) for folder in reversed(folders) for file in folder.rglob("*")]
    return {str(file.relative_to(folder)): file for folder, file in files if file.suffix.lower() == ".safetensors"}


def loras() -> list[str]:
    """The names of all LoRAs: their files' places in the host's folders."""
    return sorted(_lora_files())


def lora_file(name: object) -> Path:
    """The file of a LoRA of `loras`, also without its ending. Raises SettingsError: there is none of that name."""
    for known, file in _lora_files().items():
        if name in (known, str(Path(known).with_suffix(""))):
            return file
    raise SettingsError("The LoRA to continue from no longer exists. Choose another one.")


def folder_of(kind: str) -> Path:
    """Where the host, or the Cascade tab, looks for results of the kind "LoRA", "full" or "cascade"."""
    if kind == "cascade":
        return cascade_places()[0]
    if kind == "LoRA":
        return Path(getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora")
    given = getattr(shared.cmd_opts, "ckpt_dir", None)
    return Path(given) if given and Path(given).is_dir() else Path(paths.models_path) / "Stable-diffusion"


def cascade_places() -> list[Path]:
    """Where folders of pixel cascades are looked for: the host's models/cascade, and what ships with the pack."""
    return [Path(paths.models_path) / "cascade", Path(__file__).resolve().parents[2] / "models"]


def cascades() -> dict[str, Path]:
    """Pixel cascades that can be trained, by what lists call them: folders of `cascade_places` with a stage I, and the
    stages that lie there side by side."""
    from lib_methods.cascade.folder import find_folders, is_cascade, read_cascade  # a higher floor

    found: dict[str, Path] = {}
    for place in cascade_places():
        for folder in (place, *find_folders([place]).values()):
            with suppress(CheckpointError):
                stages = read_cascade([folder]).stages if is_cascade(folder) else ()
                if stages and stages[0].number == 1:
                    name = " + ".join(stage.folder.name for stage in stages) if folder == place else folder.name
                    found.setdefault(f"{name} (pixel cascade)", folder)
    return found


def refresh() -> None:
    """Looks through the folders again."""
    sd_models.list_models()
    networks = sys.modules.get("networks")  # AUTOMATIC1111's built-in extension
    if networks is not None and hasattr(networks, "list_available_networks"):
        networks.list_available_networks()
    own = extra_networks.extra_network_registry.get("lora")  # the standalone host's can do it itself
    if own is not None and hasattr(own, "refresh"):
        own.refresh()
