"""LoRAs and their relatives: files, names, kinds, and adding them to a model's weights."""

from .apply import LoadedLora, apply_loras, loaded_loras, loras_restored

__all__ = ["LoadedLora", "apply_loras", "loaded_loras", "loras_restored"]
