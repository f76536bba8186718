"""Pictures are encoded once, and what is kept of them is never trusted blindly."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib_methods.dreambooth.model.model import Parts
from lib_methods.dreambooth.photos.folder import find_photos
from lib_methods.dreambooth.photos.image import fit, micro_conditioning, photos_digest, read_photo
from lib_methods.dreambooth.training import data as module
from lib_methods.dreambooth.training.batches import Example
from lib_methods.dreambooth.training.data import Item, class_items, encode_images, photo_items
from lib_methods.errors import Cancelled, UserError
from tests.dreambooth.models import asked, put


class Toy:
    """The part of a model that encodes. It is not symmetric, and counts what it is asked."""

    name, sha256, family, parameterization = "toy", "0" * 64, "sd1", "eps"
    zero_terminal_snr, resolution, pixels_per_latent, latent_channels = False, 64, 8, 4

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.vae = nn.Conv2d(3, 8, 8, stride=8)
        self.unet, self.encoders = nn.Linear(1, 1), ()
        self.encoded: list[tuple[int, ...]] = []
        self.broken_in: torch.dtype | None = None
        self.stop_after = 10**9

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.encoded) >= self.stop_after:
            raise KeyboardInterrupt
        self.encoded.append(tuple(pixels.shape))
        mean, log_variance = self.vae(pixels).chunk(2, 1)
        if self.broken_in in (mean.dtype, "all"):
            mean = mean * torch.nan
        return mean, (0.5 * log_variance).exp()


def encode(model: Any, items: list[Item], batch: int = 2, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    parts = more.pop("parts", None) or Parts(model)
    with tempfile.TemporaryDirectory() as own:
        return encode_images(model, items, batch, parts, dtype, more.pop("folder", Path(own)), **more)


def items_in(folder: Path, count: int = 5, **settings: Any) -> list[Item]:
    for index in range(count):
        put(folder, f"{index}.png", *((96, 64) if index % 2 else (64, 64)), seed=index)
    return photo_items(find_photos(folder)[0], asked(resolution=64, **settings))


def same(first: list[Example], second: list[Example]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std) and torch.equal(a.sizes, b.sizes) and a.text == b.text
        for a, b in zip(first, second)
    )


def test_examples_are_what_the_autoencoder_says_of_each_picture(tmp_path: Path) -> None:
    items, model = items_in(tmp_path), Toy()
    examples, notes = encode(model, items)
    assert notes == [] and len(examples) == 5
    for item, example in zip(items, examples):
        image = read_photo(item.photo)
        pixels, sizes = fit(image, item.size), micro_conditioning(*image.size, item.size)
        with torch.no_grad():
            mean, std = model.moments(pixels[None])
        assert torch.allclose(example.mean, mean[0], atol=1e-6) and torch.allclose(example.std, std[0], atol=1e-6)
        assert example.shape == (item.size[1] // 8, item.size[0] // 8)
        assert torch.equal(example.sizes, sizes) and example.text == "a ohwx dog" and example.mask is None


def test_no_batch_mixes_sizes_or_is_too_large(tmp_path: Path) -> None:
    model = Toy()
    encode(model, items_in(tmp_path), batch=2)
    assert sorted(shape[0] for shape in model.encoded) == [1, 2, 2]


def test_without_buckets_everything_is_square(tmp_path: Path) -> None:
    assert {item.size for item in items_in(tmp_path, buckets=False)} == {(64, 64)}
    assert len({item.size for item in items_in(tmp_path)}) == 2


def test_mirrored_photos_are_encoded_and_not_mirrored_latents(tmp_path: Path) -> None:
    items, model = items_in(tmp_path, 1, flip=True), Toy()
    assert [item.flipped for item in items] == [False, True]
    (plain, mirrored), _ = encode(model, items)
    pixels = fit(read_photo(items[0].photo), items[0].size)
    with torch.no_grad():
        expected = model.moments(pixels.flip(-1)[None])[0][0]
    assert torch.allclose(mirrored.mean, expected, atol=1e-6)
    assert not torch.allclose(mirrored.mean, plain.mean.flip(-1), atol=1e-3)


def test_masks_are_shares_of_white_at_each_latent_and_mirror_too(tmp_path: Path) -> None:
    put(tmp_path, "a.png", 64, 64)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 20, 64))
    mask.save(tmp_path / "a.mask.png")
    photos = find_photos(tmp_path)[0]
    (plain, mirrored), _ = encode(Toy(), photo_items(photos, asked(flip=True, resolution=64)))
    assert plain.mask is not None and plain.mask.shape == (1, 8, 8)
    assert torch.allclose(plain.mask[0, 3], torch.tensor([1, 1, 0.5, 0, 0, 0, 0, 0]), atol=1e-5)
    assert torch.equal(mirrored.mask, plain.mask.flip(-1))
    (unmasked,), _ = encode(Toy(), photo_items(photos, asked(masks=False, resolution=64)))
    assert unmasked.mask is None


def test_a_photo_with_a_caption_has_two_texts_and_is_encoded_once(tmp_path: Path) -> None:
    put(tmp_path, "a.png", 64, 64)
    put(tmp_path, "b.png", 64, 64, seed=2)
    (tmp_path / "a.txt").write_text("a ohwx dog in the snow", encoding="utf-8")
    photos, model = find_photos(tmp_path)[0], Toy()
    examples, _ = encode(model, photo_items(photos, asked(resolution=64)))
    assert [example.text for example in examples] == ["a ohwx dog in the snow", "a ohwx dog", "a ohwx dog"]
    assert torch.equal(examples[0].mean, examples[1].mean) and not torch.equal(examples[0].mean, examples[2].mean)
    assert sum(shape[0] for shape in model.encoded) == 2
    alone = photo_items(photos, asked(resolution=64, also_plain=False))
    assert [item.text for item in alone] == ["a ohwx dog in the snow", "a ohwx dog"]


def test_the_second_time_nothing_is_encoded(tmp_path: Path) -> None:
    items, cache = items_in(tmp_path, flip=True), tmp_path / "cache"
    first, _ = encode(Toy(), items, folder=cache)
    model = Toy()
    second, notes = encode(model, items, folder=cache)
    assert model.encoded == [] and notes == [] and same(first, second)
    assert not [file for file in cache.iterdir() if file.suffix != ".safetensors"]


def test_other_pictures_models_autoencoders_and_precisions_do_not_share_a_cache(tmp_path: Path) -> None:
    items, cache = items_in(tmp_path, 1), tmp_path / "cache"
    encode(Toy(), items, folder=cache)
    renamed = Toy()
    renamed.sha256 = "1" * 64
    for model, dtype in ((renamed, torch.float32), (Toy(seed=1), torch.float32), (Toy(), torch.bfloat16)):
        encode(model, items, folder=cache, dtype=dtype)
        assert len(model.encoded) == 1
    put(tmp_path, "0.png", 64, 64, seed=9)
    model = Toy()
    encode(model, photo_items(find_photos(tmp_path)[0], asked(resolution=64)), folder=cache)
    assert len(model.encoded) == 1


def test_a_renamed_photo_is_known_again(tmp_path: Path) -> None:
    items_in(tmp_path, 1)
    encode(Toy(), items_in(tmp_path, 1), folder=tmp_path / "cache")
    (tmp_path / "0.png").rename(tmp_path / "z.png")
    model = Toy()
    encode(model, photo_items(find_photos(tmp_path)[0], asked(resolution=64)), folder=tmp_path / "cache")
    assert model.encoded == []


@pytest.mark.parametrize("damage", ["empty", "junk", "short", "nan", "shape", "half", "other", "folder"])
def test_bad_cache_files_are_made_again(tmp_path: Path, damage: str) -> None:
    items, cache = items_in(tmp_path, 1), tmp_path / "cache"
    expected, _ = encode(Toy(), items, folder=cache)
    (file,) = cache.iterdir()
    tensors = load_file(file)
    if damage in ("empty", "junk", "short"):
        file.write_bytes({"empty": b"", "junk": os.urandom(200), "short": file.read_bytes()[:-7]}[damage])
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        changed = {
            "nan": {**tensors, "std": tensors["std"] * torch.nan},
            "shape": {name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()},
            "half": {name: tensor.half() for name, tensor in tensors.items()},
            "other": {"mean": tensors["mean"]},
        }
        save_file(changed[damage], file)
    model = Toy()
    again, _ = encode(model, items, folder=cache)
    assert len(model.encoded) == 1 and same(expected, again)


@pytest.mark.parametrize("stop", range(3))
def test_an_interrupted_encoding_goes_on_with_the_same_numbers(tmp_path: Path, stop: int) -> None:
    items = items_in(tmp_path)
    expected, _ = encode(Toy(), items, folder=tmp_path / "whole")
    model = Toy()
    model.stop_after = stop
    with pytest.raises(KeyboardInterrupt):
        encode(model, items, folder=tmp_path / "cache")
    again = Toy()
    examples, _ = encode(again, items, folder=tmp_path / "cache")
    assert same(expected, examples)
    assert len(again.encoded) == 3 - stop


def test_a_batch_that_was_half_written_is_encoded_as_a_whole(tmp_path: Path) -> None:
    items, cache = items_in(tmp_path, 3, buckets=False), tmp_path / "cache"
    expected, _ = encode(Toy(), items, batch=3, folder=cache)
    min(cache.iterdir()).unlink()
    model = Toy()
    again, _ = encode(model, items, batch=3, folder=cache)
    assert model.encoded == [(3, 3, 64, 64)] and same(expected, again)


def test_cancelling_stops_between_two_batches_and_keeps_what_is_done(tmp_path: Path) -> None:
    items, done = items_in(tmp_path), []
    with pytest.raises(Cancelled):
        encode(
            Toy(),
            items,
            folder=tmp_path / "cache",
            progress=lambda now, total: done.append((now, total)),
            cancelled=lambda: len(done) == 1,
        )
    assert len(done) == 1 and done[0][1] == 5
    assert len(list((tmp_path / "cache").iterdir())) == done[0][0]


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    encode(Toy(), items_in(tmp_path), progress=lambda now, total: seen.append((now, total)))
    assert seen[-1] == (5, 5) and [now for now, _ in seen] == sorted(now for now, _ in seen)


def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    examples, notes = encode(Toy(), items_in(tmp_path), folder=tmp_path / "cache")
    assert len(examples) == 5
    assert len(notes) == 1 and "disk" in notes[0] and str(tmp_path) not in notes[0]


def test_photos_that_break_meanwhile_are_left_out(tmp_path: Path) -> None:
    items = items_in(tmp_path, 4)
    (tmp_path / "1.png").write_bytes(b"junk")
    (tmp_path / "2.png").unlink()
    examples, notes = encode(Toy(), items)
    assert len(examples) == 2
    assert len(notes) == 2 and {'"1.png"' in notes[0] + notes[1], '"2.png"' in notes[0] + notes[1]} == {True}
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match="None of the images"):
        encode(Toy(), items)


def test_half_precision_that_gives_no_numbers_is_done_again_in_full(tmp_path: Path) -> None:
    items, model = items_in(tmp_path, 1), Toy()
    model.broken_in = torch.bfloat16
    examples, _ = encode(model, items, dtype=torch.bfloat16)
    assert len(model.encoded) == 2 and same(examples, encode(Toy(), items)[0])


def test_an_autoencoder_without_numbers_is_a_clear_error(tmp_path: Path) -> None:
    model = Toy()
    model.broken_in = "all"  # type: ignore[assignment]
    with pytest.raises(UserError, match="autoencoder"):
        encode(model, items_in(tmp_path, 1), folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_autoencoder_comes_back_as_it_was(tmp_path: Path) -> None:
    model = Toy()
    weights = model.vae.weight.detach().clone()
    encode(model, items_in(tmp_path), dtype=torch.bfloat16)
    assert model.vae.weight.dtype == torch.float32 and torch.equal(model.vae.weight, weights)
    assert not any(example.mean.requires_grad for example in encode(model, items_in(tmp_path))[0])


def test_class_pictures_are_encoded_at_the_sizes_that_they_were_drawn_at(tmp_path: Path) -> None:
    sizes = [(64, 64), (80, 48), (48, 80)]
    files = [put(tmp_path, f"class{width}.png", width, height, seed=width) for width, height in sizes]
    items = class_items(files, sizes, asked())
    assert [item.size for item in items] == sizes and {item.text for item in items} == {"a dog"}
    model = Toy()
    examples, _ = encode(model, items)
    assert [example.shape for example in examples] == [(8, 8), (6, 10), (10, 6)]
    for file, (width, height), example in zip(files, sizes, examples):
        # neither cut nor enlarged
        assert example.sizes.tolist() == [height, width, 0, 0, height, width]
        with torch.no_grad(), Image.open(file) as picture:
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None] / 127.5 - 1
            assert torch.allclose(example.mean, model.moments(pixels)[0][0], atol=1e-5)


def test_a_damaged_class_picture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "class.png").write_bytes(b"junk")
    with pytest.raises(UserError, match="class.png"):
        class_items([tmp_path / "class.png"], [(64, 64)], asked())


@pytest.mark.parametrize("fits", [1, 2, 3])
def test_a_batch_that_memory_does_not_suffice_for_is_encoded_in_halves(tmp_path: Path, fits: int) -> None:
    items, model = items_in(tmp_path, 4, buckets=False), Toy()
    expected, _ = encode(model, items, batch=4)
    moments = model.moments

    def short(pixels: Tensor) -> tuple[Tensor, Tensor]:
        if len(pixels) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return moments(pixels)

    model.moments = short  # type: ignore[method-assign]
    found, notes = encode(model, items, batch=4)
    assert notes == []
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one.mean, other.mean, atol=1e-6) and torch.allclose(one.std, other.std, atol=1e-6)


def test_a_single_picture_that_memory_does_not_suffice_for_is_an_error(tmp_path: Path) -> None:
    model = Toy()

    def none(pixels: Tensor) -> tuple[Tensor, Tensor]:
        raise MemoryError

    model.moments = none  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        encode(model, items_in(tmp_path, 2))


def test_the_autoencoder_is_not_brought_when_all_is_there(tmp_path: Path) -> None:
    items, brought = items_in(tmp_path), []

    @contextmanager
    def only(*modules: nn.Module) -> Iterator[None]:
        brought.append(1)
        yield

    model: Any = Toy()
    parts = Parts(model)
    parts.only = only  # type: ignore[method-assign]
    for _ in range(2):
        encode(model, items, folder=tmp_path / "cache", parts=parts)
    assert len(brought) == 1


def test_the_digest_of_photos_is_that_of_bytes_captions_and_masks(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    before = photos_digest(find_photos(tmp_path)[0])
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert photos_digest(find_photos(tmp_path)[0]) == before
    (tmp_path / "b.txt").write_text("a dog")
    captioned = photos_digest(find_photos(tmp_path)[0])
    Image.fromarray(np.full((48, 64), 255, np.uint8)).save(tmp_path / "b.mask.png")
    masked = photos_digest(find_photos(tmp_path)[0])
    put(tmp_path, "b.png", seed=4)
    assert len({before, captioned, masked, photos_digest(find_photos(tmp_path)[0])}) == 4
