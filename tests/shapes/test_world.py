"""The procedural world and the parser agree; training resumes where it stopped, and exports what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from standalone.shapes import networks, release, train
from standalone.shapes.networks import MatrixOptimizer, tokenize
from standalone.shapes.parser import parse
from standalone.shapes.train_vae import normalise_latents, pictures
from standalone.shapes.world import ATTRIBUTES, BACKGROUNDS, VALUES, Scene, caption, random_named, random_scene, render


def test_the_parser_reads_rendered_pictures_back() -> None:
    """At least 99 % of every attribute, over every combination of kind, texture and size with random rest."""
    rng = np.random.default_rng(3)
    hits: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for _ in range(600):
        scene = random_scene(rng)
        for name, hit in parse(render(scene, rng)).matches(scene, ATTRIBUTES).items():
            hits[name].append(hit)
    assert {name: np.mean(found) >= 0.99 for name, found in hits.items()} == dict.fromkeys(ATTRIBUTES, True)


@pytest.mark.parametrize(("width", "height"), [(128, 128), (96, 64), (64, 96), (192, 128)])
def test_the_parser_reads_other_sizes(width: int, height: int) -> None:
    rng = np.random.default_rng(4)
    names = ("kind", "colour", "texture", "background", "size")
    hits: list[bool] = []
    for _ in range(60):
        scene = random_scene(rng)
        hits += parse(render(scene, rng, width, height)).matches(scene, names).values()
    assert np.mean(hits) >= 0.99


def test_the_parser_tells_wrong_pictures_from_right_ones() -> None:
    """A parser that always agrees would pass the test above: change one attribute and it must disagree."""
    rng = np.random.default_rng(5)
    for name in ATTRIBUTES:
        for _ in range(20):
            scene = random_scene(rng)
            others = [value for value in VALUES[name] if value != getattr(scene, name)]
            changed = Scene(**{**scene.as_dict(), name: others[rng.integers(len(others))]})
            assert not parse(render(changed, rng)).matches(scene, (name,))[name]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_picture_shows_two_to_five_objects_that_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = parse(render(random_scene(rng), rng)).objects
    assert 2 <= len(found) <= 5
    assert len({o.colour for o in found}) == len({o.kind for o in found}) == 1


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_parser_takes_any_picture(width: int, height: int, seed: int, noisy: bool) -> None:
    rng = np.random.default_rng(seed)
    if noisy:
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    else:
        picture = np.full((height, width, 3), rng.integers(0, 256), dtype=np.uint8)
    result = parse(picture)
    assert result.attributes["background"] in BACKGROUNDS
    if not noisy:
        assert result.objects == ()
        assert result.attributes["kind"] is None


def test_the_parser_refuses_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        parse(np.zeros((4, 4)))


def test_a_scene_draws_the_same_picture_from_the_same_seed() -> None:
    scene = random_scene(np.random.default_rng(1))
    one, two = (render(scene, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, render(scene, np.random.default_rng(3)))


@given(st.integers(0, 2**32 - 1))
def test_captions_name_what_they_are_asked_to_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene, named = random_scene(rng), random_named(rng)
    text = caption(scene, named, rng)
    assert (text == "") == (named == ())
    for name in ATTRIBUTES:
        for value in VALUES[name]:
            said = value in text.replace("crosses", "cross").replace("shapes", "")
            assert said == (name in named and value == getattr(scene, name)), (text, name, value)


def test_a_recompressed_picture_is_still_read(tmp_path) -> None:
    """People like images that went through JPEG."""
    rng = np.random.default_rng(8)
    hits: list[bool] = []
    for number in range(20):
        scene = random_scene(rng)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(render(scene, rng)).save(path, quality=92)
        with Image.open(path) as image:
            hits += parse(np.asarray(image)).matches(scene, ATTRIBUTES).values()
    assert np.mean(hits) >= 0.9


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training folder with an untrained autoencoder, and a stock small enough for a test."""
    torch.manual_seed(0)
    save_file(networks.vae().state_dict(), tmp_path / "vae.safetensors")
    monkeypatch.setattr(train, "STOCK", 64)
    return tmp_path


def test_training_goes_on_from_its_last_state(folder: Path) -> None:
    trainer = train.Trainer(folder, batch=4, rate=1e-3, minutes=1)
    vae = networks.vae()
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    stock = train.Stock(vae, train.np.random.default_rng(0), 64)
    first = [trainer.train_step(stock, torch.Generator().manual_seed(1)) for _ in range(2)]
    trainer.save()
    resumed = train.Trainer(folder, batch=4, rate=1e-3, minutes=1)
    assert resumed.step == 2
    for (name, one), (_, two) in zip(trainer.unet.state_dict().items(), resumed.unet.state_dict().items()):
        assert torch.equal(one, two), name
    again = resumed.train_step(stock, torch.Generator().manual_seed(2))
    assert all(0 < loss < 10 for loss in [*first, again])


def test_the_export_loads_in_the_host_and_computes_the_same(folder: Path) -> None:
    trainer = train.Trainer(folder, batch=4, rate=1e-3, minutes=1)
    trainer.save()
    target = release.export(folder, folder / "out")
    assert target.stat().st_size < 25 * 2**20

    from standalone.engine.checkpoint import load_checkpoint

    model = load_checkpoint(target, device=torch.device("cpu"), dtype=torch.float32)
    unet, text, _ = release.load_networks(folder)
    ids = tokenize(["red circles"])
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        context = text(ids).last_hidden_state
        wanted = unet(x, t, context).sample
        got = model.apply_model(x, t, {"c_crossattn": [model.get_learned_conditioning(["red circles"])]})
    assert (wanted - got).abs().max() < 5e-3  # the file holds half precision


def test_training_goes_on_from_an_exported_checkpoint(folder: Path) -> None:
    trainer = train.Trainer(folder, batch=4, rate=1e-3, minutes=1)
    trainer.save()
    target = release.export(folder, folder / "out")
    resumed = train.Trainer(folder / "again", batch=4, rate=1e-3, minutes=1, start=target)
    for one, two in ((trainer.unet, resumed.unet), (trainer.text, resumed.text)):
        for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items()):
            assert torch.allclose(a.float(), b.float(), atol=2e-3), name
    assert (folder / "again" / "vae.safetensors").exists()


def test_normalising_the_latents_changes_their_scale_and_no_picture() -> None:
    torch.manual_seed(0)
    model = networks.vae().eval()
    sample = pictures(train.np.random.default_rng(0), 24)
    with torch.no_grad():
        before = model.decode(model.encode(sample).latent_dist.mean).sample
        spread = model.encode(sample).latent_dist.std
        normalise_latents(model, sample)
        latents = model.encode(sample).latent_dist
        assert torch.allclose(before, model.decode(latents.mean).sample, atol=1e-4)
    scaled = latents.mean * networks.SCALE_FACTOR
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-2)
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-2)
    assert (latents.std / spread).std((0, 2, 3)).max() < 1e-2 * (latents.std / spread).mean()


def test_the_optimizer_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.Flatten(), torch.nn.Linear(8, 4)
    )
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = MatrixOptimizer([model], 1e-2, 1e-2)
    model(torch.randn(2, 3, 3, 3)).pow(2).sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())
