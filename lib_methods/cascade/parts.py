"""The networks of a cascade, each on the device only while it works, or all of them where there is room."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lib_methods.cascade.folder import Part
from lib_methods.checkpoints.folder import check_numbers
from lib_methods.checkpoints.kinds import how_quantised
from lib_methods.device import release_memory
from lib_methods.errors import CheckpointError, reason

_MOST_LAYERS = 200
_FP32 = ("wo",)  # of T5 in fp16, where these layers overflow


def skeleton(part: Part) -> nn.Module:
    """The network of a part without weights, on the device that is current. Raises CheckpointError: its configuration
    cannot be used."""
    config = dict(part.config)
    what = f"{part.name.replace('_', ' ')} in the folder {part.folder.name}"
    try:
        module = _BUILDERS["text" if part.name == "text_encoder" else part.name](config, what)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a library raises at settings that it cannot build
        raise CheckpointError(
            f"The {what} cannot be built from its config.json ({type(error).__name__}); download it again."
        ) from error
    return module.eval().requires_grad_(False)


def _unet(config: dict[str, Any], what: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    depths = config.get("layers_per_block", 2)
    for depth in depths if isinstance(depths, list) else [depths]:  # an efficient UNet has none at its full size
        if not isinstance(depth, int) or not 0 <= depth <= _MOST_LAYERS:
            raise CheckpointError(f"The {what} cannot be built from its configuration: it has {depth!r:.20} layers.")
    check_numbers({**config, "layers_per_block": None}, what)
    return UNet2DConditionModel.from_config(config)


def _vae(config: dict[str, Any], what: str) -> nn.Module:
    from diffusers import AutoencoderKL

    check_numbers(config, what)
    return AutoencoderKL.from_config(config)


def _text(config: dict[str, Any], what: str) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    depth = config.get("num_layers", config.get("num_hidden_layers", 0))
    if not isinstance(depth, int) or not 0 < depth <= _MOST_LAYERS:
        raise CheckpointError(f"The {what} cannot be built from its configuration: it has {depth!r:.20} layers.")
    kind = config.get("model_type")
    if kind == "t5":
        return T5EncoderModel(T5Config.from_dict(config))
    if kind == "clip_text_model":
        return CLIPTextModel(CLIPTextConfig.from_dict(config))
    raise CheckpointError(f"The {what} is neither a T5 nor a CLIP text encoder ({str(kind)[:40]}).")


_BUILDERS: dict[str, Callable[[dict[str, Any], str], nn.Module]] = {"unet": _unet, "vae": _vae, "text": _text}


def load(part: Part, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A part with its weights, which go from the file to the device one by one. Raises CheckpointError, which names
    what the file lacks."""
    quantised = how_quantised(part.weights.heads)
    if quantised is not None:
        raise CheckpointError(
            f"The weights of {part.name}/ in {part.folder.name} are stored {quantised}. Get its fp16 or fp32 version."
        )
    with torch.device("meta"):
        module = skeleton(part)
    names = _names(part, module)
    for file in part.weights.files:
        _assign(
            part, module, {name: own for name, own in names.items() if part.weights.places[own] == file}, device, dtype
        )
    inner: Any = module
    if part.config.get("model_type") == "t5":
        inner.set_input_embeddings(inner.shared)  # one table under two names
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # position_ids, which files leave out
            parent = module.get_submodule(name.rpartition(".")[0])
            numbers = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            parent.register_buffer(name.rpartition(".")[2], numbers, persistent=False)
    return module


def _names(part: Part, module: nn.Module) -> dict[str, str]:
    """The names of a network's weights, and theirs in the file. Raises CheckpointError where one is missing or has
    another shape."""
    heads = part.weights.heads
    found: dict[str, str] = {}
    for name, tensor in module.state_dict().items():
        # transformers has renamed CLIP's; T5 keeps one table under two names
        others = [name, f"text_model.{name}", name.removeprefix("text_model.")]
        if part.config.get("model_type") == "t5" and name in ("shared.weight", "encoder.embed_tokens.weight"):
            others = ["shared.weight", "encoder.embed_tokens.weight"]
        own = next((other for other in others if other in heads), None)
        if own is None:
            if name.endswith("position_ids"):
                continue
            raise CheckpointError(
                f"The weights of {part.name}/ in the folder {part.folder.name} lack '{name}', which its config.json "
                "asks for. Download both again."
            )
        if heads[own].shape != tuple(tensor.shape):
            raise CheckpointError(
                f"'{own}' of {part.name}/ in the folder {part.folder.name} has the shape {list(heads[own].shape)}, but "
                f"its config.json asks for {list(tensor.shape)}. Download both again."
            )
        found[name] = own
    return found


def _assign(part: Part, module: nn.Module, names: dict[str, str], device: torch.device, dtype: torch.dtype) -> None:
    """The weights of one file, by the network's names and the file's."""
    if not names:
        return
    file = part.weights.places[next(iter(names.values()))]
    t5_half = dtype == torch.float16 and part.config.get("model_type") == "t5"
    try:
        # safetensors does not know every device that torch has
        with safe_open(str(file), framework="pt", device=str(device) if device.type == "cuda" else "cpu") as opened:
            for name, own in names.items():
                kept = torch.float32 if t5_half and name.split(".")[-2] in _FP32 else dtype
                put(module, name, opened.get_tensor(own).to(device, kept))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{part.name}/{file.name} in the folder {part.folder.name} is damaged.") from error
    except OSError as error:
        raise CheckpointError(f"{part.name}/{file.name} cannot be read. {reason(error)}") from error


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Sets a weight or buffer of a network by its name."""
    path, _, last = name.rpartition(".")
    parent = module.get_submodule(path)
    if last in parent._buffers:
        parent._buffers[last] = tensor
    else:
        setattr(parent, last, nn.Parameter(tensor, requires_grad=False))


@dataclass
class Parts:
    """Which parts are loaded. keep_all: they stay until `close`; else each goes when its block ends.

    most: the largest number that were loaded at once. watch: told the names of those that are, at each change.
    """

    keep_all: bool = False
    watch: Callable[[tuple[str, ...]], None] = lambda names: None
    most: int = 0
    _loaded: dict[tuple[str, ...], nn.Module] = field(default_factory=dict)

    @contextmanager
    def use(
        self,
        part: Part,
        device: torch.device,
        dtype: torch.dtype,
        loader: Callable[[Part, torch.device, torch.dtype], nn.Module] = load,
    ) -> Iterator[nn.Module]:
        """The part on the device within the block. loader: for a part that is loaded in another way."""
        key = (str(part.folder), part.name, str(device), str(dtype), loader.__name__)
        if key not in self._loaded:
            self._loaded[key] = loader(part, device, dtype)
            self.most = max(self.most, len(self._loaded))
            self._tell()
        try:
            yield self._loaded[key]
        finally:
            if not self.keep_all:
                del self._loaded[key]
                self._free(device)

    def close(self) -> None:
        """All parts go."""
        devices = {torch.device(key[2]) for key in self._loaded}
        self._loaded.clear()
        for device in devices:
            self._free(device)

    def _free(self, device: torch.device) -> None:
        if device.type != "cpu":
            gc.collect()  # hooks of 8-bit layers make circles
        release_memory(device)
        self._tell()

    def _tell(self) -> None:
        self.watch(tuple(f"{key[0]}/{key[1]}" for key in self._loaded))
