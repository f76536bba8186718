"""Filters for pairs. A filter takes a triplet and its two images and returns a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from lib_methods.errors import UserError
from standalone.engine.text import clip_tokenizer
from standalone.instruct.triplets import Triplet
from standalone.shapes.parser import ParsedPicture, parse
from standalone.shapes.world import ATTRIBUTES

NEAR = 0.08  # of the image's side: an object this close to where one stood before is the same object


@dataclass(frozen=True)
class Verdict:
    """Whether a pair is kept, how good it is among the pairs of its triplet, and the numbers for the manifest."""

    keep: bool
    quality: float
    scores: Mapping[str, float] = field(default_factory=dict)


class Filter(Protocol):
    """Judges a pair of images, uint8 (height, width, 3) each."""

    def __call__(self, triplet: Triplet, before: np.ndarray, after: np.ndarray) -> Verdict: ...


def keep_all(triplet: Triplet, before: np.ndarray, after: np.ndarray) -> Verdict:
    """Every pair is good: for captions of which nothing is known, where there is no CLIP."""
    return Verdict(True, 0.0)


def layout_similarity(before: ParsedPicture, after: ParsedPicture) -> float:
    """How many of both images' objects have a counterpart at the same place in the other one, 0 to 1."""
    left = [(o.x, o.y) for o in after.objects]
    total, matched = len(before.objects) + len(after.objects), 0
    for found in before.objects:
        near = [(x, y) for x, y in left if np.hypot(x - found.x, y - found.y) < NEAR]
        if near:
            left.remove(min(near, key=lambda at: float(np.hypot(at[0] - found.x, at[1] - found.y))))
            matched += 1
    return 2 * matched / total if total else 0.0


@dataclass(frozen=True)
class AttributeFilter:
    """For the procedural world: both images show what their captions say, the changed attribute and all others, and
    enough objects stand where they stood (`least_similarity`, 0 to 1)."""

    least_similarity: float = 0.75

    def __call__(self, triplet: Triplet, before: np.ndarray, after: np.ndarray) -> Verdict:
        if triplet.scene_before is None or triplet.scene_after is None:
            raise UserError("The attribute filter is for the procedural world; other captions need --clip.")
        first, second = parse(before), parse(after)
        right = [
            *first.matches(triplet.scene_before, ATTRIBUTES).values(),
            *second.matches(triplet.scene_after, ATTRIBUTES).values(),
        ]
        similarity = layout_similarity(first, second)
        keep = all(right) and similarity >= self.least_similarity
        return Verdict(keep, similarity, {"image": round(similarity, 4), "attributes": round(float(np.mean(right)), 4)})


@dataclass(frozen=True)
class Thresholds:
    """The least CLIP similarities (cosines): image to image, change of image to change of caption, image to
    its caption. The values of Brooks et al. 2023, section 3.1.2."""

    image: float = 0.75
    direction: float = 0.2
    text: float = 0.2


class ClipFilter:
    """CLIP similarities by a transformers CLIP model in a local folder (safetensors; OpenAI's vocabulary)."""

    MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, folder: Path, thresholds: Thresholds, device: torch.device) -> None:
        """Raises UserError when there is no such model in the folder."""
        from transformers import CLIPModel

        if not (folder / "config.json").is_file():
            raise UserError(f"The folder {folder.name} has no CLIP model in it (config.json is missing).")
        try:
            self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"The CLIP model in {folder.name} cannot be loaded: is model.safetensors there?") from error
        self.model = self.model.eval().to(device)
        self.thresholds, self.device = thresholds, device

    def embed_pictures(self, pictures: np.ndarray) -> torch.Tensor:
        """Unit vectors (B, D) of square images, uint8 (B, H, W, 3)."""
        size = int(self.model.config.vision_config.image_size)
        pixels = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255
        pixels = functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (self.MEAN, self.STD))
        with torch.no_grad():
            found = self.model.get_image_features(pixel_values=(pixels - mean) / std)
        return functional.normalize(_features(found).float(), dim=-1)

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors (B, D) of captions."""
        tokens = clip_tokenizer()(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        with torch.no_grad():
            found = self.model.get_text_features(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            )
        return functional.normalize(_features(found).float(), dim=-1)

    def __call__(self, triplet: Triplet, before: np.ndarray, after: np.ndarray) -> Verdict:
        images = self.embed_pictures(np.stack([before, after]))
        texts = self.embed_texts([triplet.before, triplet.after])
        scores = {
            "image": float(images[0] @ images[1]),
            "direction": float(functional.cosine_similarity(images[1] - images[0], texts[1] - texts[0], dim=0)),
            "text_before": float(images[0] @ texts[0]),
            "text_after": float(images[1] @ texts[1]),
        }
        least = self.thresholds
        keep = (
            scores["image"] >= least.image
            and scores["direction"] >= least.direction
            and min(scores["text_before"], scores["text_after"]) >= least.text
        )
        return Verdict(keep, scores["direction"], {name: round(value, 4) for name, value in scores.items()})


def _features(found: Any) -> torch.Tensor:
    """transformers 5 returns an output object where version 4 returned the tensor."""
    features: torch.Tensor = getattr(found, "pooler_output", found)
    return features
