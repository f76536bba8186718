"""Which layer of a model a name in a LoRA file means."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .ldm_keys import ldm_unet_names
from .model import StableDiffusionModel


def layers_by_name(model: StableDiffusionModel) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear and convolution layers of UNet and text encoders, by all names that kohya's files use for them.

    For the UNet these are diffusers' (`lora_unet_down_blocks_...`) and LDM's (`lora_unet_input_blocks_...`), both in
    use; for text encoders `lora_te_` or `lora_te1_` with one of them, `lora_te1_` and `lora_te2_` with two.
    """
    unet = model.model.diffusion_model
    ldm = ldm_unet_names(unet)
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, layer in _layers(unet):
        for known in (name, ldm[f"{name}.weight"].removesuffix(".weight")):
            found[f"lora_unet_{_flat(known)}"] = layer
    for number, encoder in enumerate(model.text_encoders, 1):
        prefixes = [f"lora_te{number}"] if len(model.text_encoders) > 1 else ["lora_te", "lora_te1"]
        body = getattr(encoder, "body")  # noqa: B009 - ModuleList does not know the kind of its modules
        for name, layer in _layers(body):
            for prefix in prefixes:
                found[f"{prefix}_text_model_{_flat(name)}"] = layer
    return found


def _layers(root: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for name, module in root.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            yield name, module


def _flat(name: str) -> str:
    return name.replace(".", "_")
