"""Images as latents, encoded once: mean and standard deviation are kept, so the VAE is not needed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from lib_methods.dreambooth.model.model import Parts, TrainingModel
from lib_methods.dreambooth.photos.image import Photo, Size, fit, fit_mask, micro_conditioning, read_mask, read_photo
from lib_methods.dreambooth.training.batches import Example
from lib_methods.errors import Cancelled, CheckpointError, UserError, out_of_memory
from lib_methods.safetensors import read_tensors, write_tensors

_VERSION = 1  # of what is done to an image before it is encoded
_Moments = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Item:
    """An image to encode: brought to `size` (width, height) in pixels, mirrored or not, with its text.

    masked: its mask goes along, if it has one. origin: what generated it, "" for a file that counts by its bytes.
    group, repeats: see `Example`.
    """

    photo: Photo
    size: Size
    text: str
    flipped: bool = False
    masked: bool = True
    origin: str = ""
    group: int = 0
    repeats: int = 1


def encode_images(
    model: TrainingModel,
    items: Sequence[Item],
    batch: int,
    parts: Parts,
    dtype: torch.dtype,
    folder: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[list[Example], list[str]]:
    """The items as examples in their order, on the CPU in fp32, and warnings.

    batch: images of one size encoded together, in halves where memory runs out. parts: how the autoencoder comes to the
    device. dtype: what is computed in; where half precision overflows (SDXL's autoencoder), fp32 takes its place.
    folder: where the latents of each image are kept, so that an interrupted encoding continues with the same numbers:
    a batch is encoded as a whole or not at all.

    An image that can no longer be read is left out with a warning; `UserError` where none is left, `Cancelled` between
    two batches when `cancelled`.
    """
    notes: list[str] = []
    kept: list[_Moments | None] = [None] * len(items)
    sources = _sources(items, notes)
    cache = _Cache(folder, model, dtype, notes)
    groups = _groups([item.size if sources[i] else None for i, item in enumerate(items)], batch)
    names = {i: cache.name(source, items[i]) for i, source in enumerate(sources) if source is not None}
    for index, name in names.items():
        kept[index] = cache.read(name, items[index].size)
    missing = [group for group in groups if any(kept[index] is None for index in group)]
    done = len(items) - sum(map(len, missing))
    if done:
        progress(done, len(items))
    with parts.only(model.vae) if missing else nullcontext():
        for group in missing:
            if cancelled():
                raise Cancelled("Stopped while the photos were encoded.")
            for index, moments in _encode(model, items, group, parts.device, dtype, notes):
                if kept[index] is None:
                    kept[index] = moments
                    cache.write(names[index], moments)
            done += len(group)
            progress(done, len(items))
    examples = [
        _example(model, item, moments, notes, cache.origin(sources[index], item))
        for index, (item, moments) in enumerate(zip(items, kept))
        if moments is not None
    ]
    if items and not examples:
        raise UserError("None of the images can be read any more.")
    return examples, list(dict.fromkeys(notes))


def _sources(items: Sequence[Item], notes: list[str]) -> list[str | None]:
    """The hash of each item's file, None where it cannot be read."""
    found: list[str | None] = []
    for item in items:
        try:
            found.append(item.photo.sha256)
        except UserError as error:
            found.append(None)
            notes.append(f"{error} It is left out.")
    return found


def _groups(sizes: Sequence[Size | None], batch: int) -> list[list[int]]:
    """Indices in groups of one size, at most `batch` each, in the order of the sizes' first appearance."""
    by_size: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        if size is not None:
            by_size.setdefault(size, []).append(index)
    count = max(1, batch)
    return [members[i : i + count] for members in by_size.values() for i in range(0, len(members), count)]


def _encode(
    model: TrainingModel,
    items: Sequence[Item],
    group: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    notes: list[str],
) -> Iterator[tuple[int, _Moments]]:
    """The moments of a group's images, each with its index."""
    read: list[tuple[int, Tensor]] = []
    for index in group:
        try:
            image = _turned(read_photo(items[index].photo), items[index].flipped)
        except UserError as error:
            notes.append(f"{error} It is left out.")
            continue
        read.append((index, fit(image, None, items[index].size)[0]))
    if not read:
        return
    pixels = torch.stack([image for _, image in read]).to(device)
    mean, std = _moments(model, pixels, dtype)
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
        mean, std = _moments(model, pixels, torch.float32)
    for row, (index, _) in enumerate(read):
        if not (torch.isfinite(mean[row]).all() and torch.isfinite(std[row]).all()):
            raise UserError(
                f'The model\'s autoencoder (VAE) returns NaN or infinite values for "{items[index].photo.path.name}". '
                "The base model may be damaged."
            )
        yield index, (mean[row].clone(), std[row].clone())


def _moments(model: TrainingModel, pixels: Tensor, dtype: torch.dtype) -> _Moments:
    half = dtype in (torch.float16, torch.bfloat16)
    try:
        # autocast leaves the weights as they are; casting them there and back would lose digits
        with torch.no_grad(), torch.autocast(pixels.device.type, dtype if half else torch.bfloat16, enabled=half):
            mean, std = model.moments(pixels)
        return mean.float().cpu(), std.float().cpu()
    except (RuntimeError, MemoryError) as error:
        if len(pixels) == 1 or not out_of_memory(error):
            raise
    means, stds = zip(*(_moments(model, part, dtype) for part in pixels.chunk(2)))
    return torch.cat(means), torch.cat(stds)


def _turned(image: Image.Image, flipped: bool) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image


def _example(model: TrainingModel, item: Item, moments: _Moments, notes: list[str], origin: str) -> Example:
    photo, mask = item.photo, None
    if item.masked and photo.mask_path is not None:
        try:
            grey = read_mask(photo)
        except UserError as error:
            notes.append(f"{error} The photo is used without its mask.")
            grey = None
        if grey is not None:
            shown = fit_mask(_turned(grey, item.flipped), photo.width, photo.height, item.size)
            height, width = moments[0].shape[-2:]
            mask = nn.functional.adaptive_avg_pool2d(shown, (height, width))
    if mask is not None:
        origin += f" {photo.mask_sha256}"
    sizes = micro_conditioning(photo.width, photo.height, item.size)
    return Example(*moments, mask, sizes, item.text, origin, item.group, item.repeats)


class _Cache:
    """Latents by image, size and autoencoder, each in a file. What cannot be read is as if it were not there, and
    what cannot be written is done without."""

    def __init__(self, folder: Path, model: TrainingModel, dtype: torch.dtype, notes: list[str]) -> None:
        self._folder, self._model, self._notes = folder, model, notes
        digest = hashlib.sha256()  # of the weights, as there may be another autoencoder over the same checkpoint
        for name, tensor in sorted(model.vae.state_dict().items()):
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(plain.view(torch.uint8).numpy().tobytes())
        self._identity = f"{_VERSION} {model.sha256} {digest.hexdigest()} {dtype}"

    def name(self, source: str, item: Item) -> str:
        text = f"{self._identity} {source} {item.size[0]}x{item.size[1]} {item.flipped}"
        return hashlib.sha256(text.encode()).hexdigest()

    def origin(self, source: str | None, item: Item) -> str:
        """What the latents are made from."""
        return self.name(item.origin or str(source), item)

    def read(self, name: str, size: Size) -> _Moments | None:
        file = self._folder / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            tensors, _ = read_tensors(file)
        except CheckpointError:
            return None
        side = self._model.pixels_per_latent
        shape = (self._model.latent_channels, size[1] // side, size[0] // side)
        found = [t for t in (tensors.get("mean"), tensors.get("std")) if t is not None and tuple(t.shape) == shape]
        if len(found) < 2 or any(t.dtype != torch.float32 or not torch.isfinite(t).all() for t in found):
            return None
        return found[0], found[1]

    def write(self, name: str, moments: _Moments) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_tensors(self._folder / f"{name}.safetensors", {"mean": moments[0], "std": moments[1]}, finite=False)
        except OSError:
            self._notes.append("Encoded images cannot be cached: the disk is full or the folder is read-only.")
