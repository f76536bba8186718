"""Adds LoRAs to a model's weights and takes them off again, to the last bit.

Every change is computed in single precision, one LoRA after the other, and rounded once to the weight's own. The
original of every weight that is changed is kept on the CPU and copied back, since subtracting what was added would
leave rounding behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib_methods.errors import UserError

from ..model import StableDiffusionModel
from ..names import shown
from ..text import CHUNK, TextEncoder
from .family import another_family
from .file import LoraContent, LoraOnDisk, read_lora
from .kinds import OTHER_SIZE, DoesNotFit
from .layer import NOT_FINITE, LoraLayer
from .names import Layer, layers_by_name

_STATE = "_loras"
_NO_PLACE = "not in this model"
_WIDTHS = {768: "SD1", 1024: "SD2", 2048: "SDXL"}
_CROSS_ATTENTION = ("_attn2_to_k", "_attn2_to_v")
_LISTED = 3
_SINGLE = ("string_to_param", "emb_params", "*")
_ENCODERS = ("clip_l", "clip_g")


@dataclass(frozen=True)
class LoadedLora:
    """A LoRA with its strengths in text encoders and UNet. The names of the fields are those of the WebUI's own."""

    network_on_disk: LoraOnDisk
    te_multiplier: float = 1.0
    unet_multiplier: float = 1.0
    dyn_dim: int | None = None
    mentioned_name: str = ""

    @property
    def name(self) -> str:
        return self.network_on_disk.name

    @property
    def mtime(self) -> float:
        return self.network_on_disk.mtime


@dataclass
class _Merged:
    """What is added to a model: the request, what to tell the user about it, the weights without it."""

    asked: tuple[LoadedLora, ...] = ()
    problems: list[str] = field(default_factory=list)
    originals: list[tuple[nn.Module, str, Tensor | None]] = field(default_factory=list)


@dataclass
class _Use:
    """One LoRA while it is added: its layers, and why some were left out."""

    lora: LoadedLora
    content: LoraContent
    left_out: dict[str, list[str]] = field(default_factory=dict)
    fitting: int = 0
    words: int = 0
    notes: list[str] = field(default_factory=list)

    def leave_out(self, layer: LoraLayer, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(layer.name)

    def problems(self) -> Iterator[str]:
        """Sentences about what was left out."""
        name, total = self.lora.name, len(self.content.layers)
        count = sum(map(len, self.left_out.values()))
        reasons = "; ".join(f"{reason} ({_quoted(layers)})" for reason, layers in self.left_out.items())
        if total and count == total and not self.words:
            yield f"LoRA {name} was left out: none of its {total} layers can be used with this checkpoint: {reasons}."
        elif count:
            yield f"LoRA {name}: {count} of its {total} layers {'was' if count == 1 else 'were'} left out: {reasons}."
        yield from (f"LoRA {name}: {note}." for note in self.notes)


def _quoted(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    listed = ", ".join(f"'{shown(name)}'" for name in names[:_LISTED])
    return listed + (f" and {more} more" if more > 0 else "")


_Share = tuple[_Use, LoraLayer, float]


def loaded_loras(model: StableDiffusionModel) -> tuple[LoadedLora, ...]:
    """The LoRAs whose weights are in `model` now, in the order in which they were added."""
    return model.loaded_networks


def apply_loras(model: StableDiffusionModel, loras: Sequence[LoadedLora]) -> list[str]:
    """Makes `model` the checkpoint with exactly these LoRAs added; with none, the checkpoint itself.

    A file that cannot be used, that is for another family, or that fits no layer is left out. Returns a sentence for
    each such file and for each of which a part was left out. After an exception the model is the bare checkpoint.
    """
    state = _state(model)
    if state.asked == tuple(loras):
        return state.problems
    _take_off(model)
    state = model.__dict__[_STATE] = _Merged(asked=tuple(loras))
    try:
        with torch.no_grad():
            model.loaded_networks = _merge(model, state)
    except BaseException:
        _take_off(model)
        raise
    return state.problems


@contextmanager
def loras_restored(model: StableDiffusionModel) -> Iterator[None]:
    """Within the block LoRAs may come and go; afterwards `model` has those that it had before."""
    before = _state(model).asked
    try:
        yield
    finally:
        apply_loras(model, before)


def _state(model: StableDiffusionModel) -> _Merged:
    state: _Merged = model.__dict__.get(_STATE) or _Merged()
    return state


def _take_off(model: StableDiffusionModel) -> None:
    with torch.no_grad():
        for module, name, original in _state(model).originals:
            if original is None:
                setattr(module, name, None)
            else:
                module.get_parameter(name).copy_(original)
    model.__dict__.pop(_STATE, None)
    model.loaded_networks = ()
    _read_words(model, {})


def _merge(model: StableDiffusionModel, state: _Merged) -> tuple[LoadedLora, ...]:
    """Adds `state.asked`; the LoRAs of which something fits."""
    known = layers_by_name(model) if state.asked else {}
    uses: list[_Use] = []
    shares: dict[Layer, list[_Share]] = {}
    for lora in state.asked:
        try:
            use = _Use(lora, read_lora(lora.network_on_disk, model))
            fitting = _fitting(model, known, use)
        except UserError as error:
            state.problems.append(f"LoRA {lora.name} was left out: {error}")
            continue
        uses.append(use)
        for name, layer in fitting.items():
            strength = lora.unet_multiplier if name.startswith("unet_") else lora.te_multiplier
            shares.setdefault(known[name], []).append((use, layer, strength))
    for module, parts in shares.items():
        _add(module, parts, state)
    _teach(model, uses)
    state.problems += [problem for use in uses for problem in use.problems()]
    return tuple(use.lora for use in uses if use.fitting or use.words)


def _fitting(model: StableDiffusionModel, known: dict[str, Layer], use: _Use) -> dict[str, LoraLayer]:
    """The layers that the model can take. Raises UserError where the file was made for another family."""
    fitting: dict[str, LoraLayer] = {}
    foreign = 0
    for name, layer in use.content.layers.items():
        module = known.get(name)
        try:
            if module is None:
                raise DoesNotFit(_NO_PLACE)
            layer.check(module.weight.shape)
        except DoesNotFit as error:
            use.leave_out(layer, str(error))
            foreign += str(error) in (_NO_PLACE, OTHER_SIZE)
            width = layer.inputs
            if module is not None and str(error) == OTHER_SIZE and name.endswith(_CROSS_ATTENTION) and width:
                if width != module.weight.shape[1]:
                    raise another_family(model, _WIDTHS.get(width, "another kind of model")) from None
        else:
            fitting[name] = layer
    if fitting and foreign > len(fitting):
        raise another_family(model, "another kind of model")
    unknown = {part for layer in fitting.values() for part in layer.left_out}
    if unknown:
        use.notes.append(f"parts of an unknown kind were left out: {', '.join(map(shown, sorted(unknown)[:_LISTED]))}")
    off = sum(layer.switched_off for layer in fitting.values())
    if off:
        use.notes.append(f"alpha is 0 in {off} of its {len(use.content.layers)} layers, so they change nothing")
    return fitting


def _add(module: Layer, parts: Sequence[_Share], state: _Merged) -> None:
    """Adds all parts to the layer's weight and bias, one after another."""
    weight: Tensor | None = None
    bias: Tensor | None = None
    for use, layer, strength in parts:
        base = module.weight.float() if weight is None else weight
        own = module.bias.float() if bias is None and module.bias is not None else bias
        try:
            change, more = layer.change(base, use.lora.dyn_dim)
            changed = base + change * strength
            shifted = None if more is None else more * strength + (0 if own is None else own)
            if not (_holds(changed, module.weight.dtype) and _holds(shifted, module.weight.dtype)):
                raise DoesNotFit("too large at this strength")
        except DoesNotFit as error:
            use.leave_out(layer, str(error))
            continue
        use.fitting += 1
        if strength:
            weight = changed
            bias = bias if shifted is None else shifted
    for name, merged in (("weight", weight), ("bias", bias)):
        if merged is None:
            continue
        parameter = getattr(module, name)
        state.originals.append((module, name, None if parameter is None else parameter.to("cpu", copy=True)))
        if parameter is None:
            setattr(module, name, nn.Parameter(merged.to(module.weight.dtype), requires_grad=False))
        else:
            parameter.copy_(merged)


def _holds(tensor: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether `dtype` can hold all numbers of the tensor, if there is one."""
    return tensor is None or bool(tensor.to(dtype).isfinite().all())


def _teach(model: StableDiffusionModel, uses: Sequence[_Use]) -> None:
    """The words that the LoRAs bring along; of one word that two bring, the first counts."""
    taught: dict[str, list[Tensor]] = {}
    for use in uses:
        for word, parts in use.content.words.items():
            vectors = _vectors_for(model, parts)
            if isinstance(vectors, str):
                use.notes.append(f"its embedding '{shown(word)}' {vectors} and was left out")
            elif use.fitting or not use.content.layers:
                taught.setdefault(word, vectors)
                use.words += 1
    _read_words(model, taught)


def _vectors_for(model: StableDiffusionModel, parts: Mapping[str, Tensor]) -> list[Tensor] | str:
    """The vectors (n, D) for each of the model's text encoders, or why it cannot have them."""
    encoders = list(_encoders(model))
    if len(encoders) == 2:
        given = [parts.get(part) for part in _ENCODERS]
    else:
        given = [next((parts[part] for part in (*_SINGLE, *parts) if part in parts), None)] if len(parts) == 1 else []
    vectors = [each for each in given if each is not None and each.is_floating_point() and each.ndim == 2]
    if len(vectors) != len(encoders) or len({len(each) for each in vectors}) != 1 or not 1 <= len(vectors[0]) <= CHUNK:
        return "does not fit this checkpoint"
    if any(each.shape[1] != encoder.width for each, encoder in zip(vectors, encoders)):
        return "does not fit this checkpoint"
    return vectors if all(bool(each.float().isfinite().all()) for each in vectors) else f"has {NOT_FINITE}"


def _read_words(model: StableDiffusionModel, words: Mapping[str, list[Tensor]]) -> None:
    """Makes `model` read exactly these words as their vectors, and no others."""
    for number, encoder in enumerate(_encoders(model)):
        encoder.words = {word: vectors[number] for word, vectors in words.items()}


def _encoders(model: StableDiffusionModel) -> Iterable[TextEncoder]:
    return (encoder for encoder in model.text_encoders if isinstance(encoder, TextEncoder))
