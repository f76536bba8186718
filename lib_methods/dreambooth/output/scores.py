"""Subject and prompt fidelity scores by DINO and CLIP, if their weights are on this machine.

The three figures of the paper (arXiv 2208.12242, section 4.2): DINO, the mean cosine of ViT-S/16 embeddings of images
and photos, tells the subject from others of its class; CLIP-I, the same with CLIP's, is content with the class; CLIP-T
is the cosine of an image and its prompt. Nothing is ever fetched: weights are taken from a folder that the environment
variable DREAMBOOTH_JUDGES names (`clip` and `dino` in it, as `save_pretrained` writes them), else from Hugging Face's
cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib_methods.device import CPU
from lib_methods.dreambooth.model.model import brought
from lib_methods.dreambooth.photos.image import Photo, read_photo
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.errors import UserError
from lib_methods.pictures.fit import to_tensor

JUDGES_DIR = "DREAMBOOTH_JUDGES"
CLIP_NAMES = ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14", "openai/clip-vit-base-patch16")
DINO_NAMES = ("facebook/dino-vits16",)
WEIGHTS = "model.safetensors"
# with the subject, at places and in looks that no photo has: some of the paper's prompts
TEMPLATES = (
    "a {subject}",
    "a {subject} in the jungle",
    "a {subject} in the snow",
    "a {subject} on the beach",
    "a {subject} on top of pink fabric",
    "a red {subject}",
)
_CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DINO_COLOURS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 8


class Embedder:
    """A vision transformer: images in, unit vectors out.

    vectors: pixels (B, 3, S, S) as the network wants them to embeddings (B, D). mean, spread: the colours' mean and
    standard deviation in its training.
    """

    def __init__(
        self,
        network: nn.Module,
        vectors: Callable[[Tensor], Tensor],
        side: int,
        colours: tuple[tuple[float, ...], tuple[float, ...]],
        device: torch.device = CPU,
    ) -> None:
        self.network, self.side, self.device, self._vectors = network, side, device, vectors
        self._mean, self._spread = (torch.tensor(values).view(1, 3, 1, 1) for values in colours)

    def __call__(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) on the CPU of images (B, 3, H, W) in [-1, 1]."""
        found = []
        with torch.no_grad(), brought(self.device, self.network):
            for part in images.split(_BATCH):
                vectors = self._vectors(self.prepared(part).to(self.device))
                found.append(functional.normalize(vectors.float(), dim=-1).cpu())
        return torch.cat(found)

    def prepared(self, images: Tensor) -> Tensor:
        """The middle square in the network's size and colours."""
        height, width = images.shape[-2:]
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        square = images.float().cpu()[..., top : top + short, left : left + short]
        sized = functional.interpolate(
            square, (self.side, self.side), mode="bicubic", align_corners=False, antialias=True
        )
        return (sized.clamp(-1, 1) / 2 + 0.5 - self._mean) / self._spread


class ClipAndDino:
    """The paper's judge. Subject fidelity is DINO's where it is there, else CLIP's; prompt fidelity is CLIP-T."""

    def __init__(self, clip: Embedder, words: Callable[[Sequence[str]], Tensor], dino: Embedder | None) -> None:
        self.clip, self.dino, self._words = clip, dino, words

    def subject_fidelity(self, images: Tensor, photos: Tensor) -> float:
        embed = self.dino or self.clip
        return float((embed(images) @ embed(photos).T).mean())

    def prompt_fidelity(self, images: Tensor, prompts: Sequence[str]) -> float:
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
        return float((self.clip(images) * self._words(prompts)).sum(-1).mean())


class JudgeOfPhotos:
    """A judge bound to one run's photos, as the trainer asks it.

    The identifier is a word without a meaning, so prompts are judged without it.
    """

    templates: Sequence[str] = TEMPLATES

    def __init__(self, judge: ClipAndDino, photos: Tensor, identifier: str) -> None:
        self.judge, self.photos, self.identifier = judge, photos, identifier

    def score(self, images: Tensor, prompts: Sequence[str]) -> tuple[float, float]:
        """Subject and prompt fidelity, neither below 0."""
        plain = [" ".join(word for word in prompt.split() if word != self.identifier) for prompt in prompts]
        subject = self.judge.subject_fidelity(images, self.photos)
        return max(0.0, subject), max(0.0, self.judge.prompt_fidelity(images, plain))


def load_judge(device: torch.device = CPU, folder: Path | None = None) -> ClipAndDino:
    """The judge whose weights are on this machine.

    folder: with `clip` and `dino` in it; None for the environment's. The networks stay on the CPU and are on `device`
    while they look. Raises UserError with what is missing.
    """
    try:
        from transformers import CLIPModel, CLIPTokenizer, ViTModel
    except ImportError as error:
        raise UserError("CLIP and DINO need the package transformers, which is not installed.") from error
    if folder is None and os.environ.get(JUDGES_DIR):
        folder = Path(os.environ[JUDGES_DIR])
    own = None if folder is None else [folder / "clip"]
    for place in own or CLIP_NAMES:
        clip: Any = _loaded(CLIPModel, place)
        tokenizer: Any = _loaded(CLIPTokenizer, place)
        if clip is not None and tokenizer is not None:
            break
    else:
        where = f"in the folder that {JUDGES_DIR} names" if own else "in Hugging Face's cache"
        raise UserError(
            f"There is no CLIP to judge images by {where}: {CLIP_NAMES[0]} with model.safetensors and its tokenizer "
            "is required, and facebook/dino-vits16."
        )
    dino: Any = None
    for name in DINO_NAMES if folder is None else [folder / "dino"]:
        dino = dino or _loaded(ViTModel, name, add_pooling_layer=False)

    def seen(pixels: Tensor) -> Tensor:
        return clip.visual_projection(clip.vision_model(pixel_values=pixels)[1])

    def told(prompts: Sequence[str]) -> Tensor:
        length = clip.config.text_config.max_position_embeddings
        tokens = tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad(), brought(device, clip):
            told = clip.text_model(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
            vectors = clip.text_projection(told[1])
        return functional.normalize(vectors.float(), dim=-1).cpu()

    eyes = Embedder(clip, seen, clip.config.vision_config.image_size, _CLIP_COLOURS, device)
    if dino is None:
        return ClipAndDino(eyes, told, None)
    first = Embedder(
        dino, lambda pixels: dino(pixel_values=pixels)[0][:, 0], dino.config.image_size, _DINO_COLOURS, device
    )
    return ClipAndDino(eyes, told, first)


def find_judge(photos: Sequence[Photo], settings: TrainingSettings, device: torch.device) -> JudgeOfPhotos | None:
    """The judge of a run's samples, None where there are no weights to judge with."""
    try:
        judge = load_judge(device)
    except UserError:
        return None
    return JudgeOfPhotos(judge, as_squares([read_photo(photo) for photo in photos], 224), settings.identifier)


def as_squares(images: Sequence[Any], side: int) -> Tensor:
    """PIL images of any size as (B, 3, side, side) in [-1, 1]: their middle squares."""
    found = []
    for image in images:
        whole = to_tensor(image.convert("RGB"))[None]
        short = min(image.size)
        top, left = (image.height - short) // 2, (image.width - short) // 2
        square = whole[..., top : top + short, left : left + short]
        found.append(functional.interpolate(square, (side, side), mode="bicubic", antialias=True).clamp(-1, 1))
    return torch.cat(found)


def _loaded(kind: Any, place: str | Path, **options: Any) -> Any:
    """A model or tokenizer of transformers; None where it is not on this machine or its weights are a pickle."""
    folder = place if isinstance(place, Path) else None
    if folder is None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(str(place), WEIGHTS)
        folder = Path(found).parent if isinstance(found, str) else None
    # older versions of transformers open a pickle, too, whatever they are told, where there is nothing else
    if folder is None or not (folder / WEIGHTS).is_file():
        return None
    with suppress(OSError, ValueError):
        loaded = kind.from_pretrained(folder, local_files_only=True, **options)
        return loaded.eval().requires_grad_(False) if isinstance(loaded, nn.Module) else loaded
    return None
