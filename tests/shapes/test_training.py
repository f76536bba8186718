"""Training resumes where it stopped, and what it exports is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from standalone.shapes import export, networks, train
from standalone.shapes.networks import MatrixOptimizer, tokenize
from standalone.shapes.train_vae import normalise_latents, pictures


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
    target = export.export(folder, folder / "out")
    assert target.stat().st_size < 25 * 2**20

    from standalone.engine.checkpoint import load_checkpoint

    model = load_checkpoint(target, device=torch.device("cpu"), dtype=torch.float32)
    unet, text, _ = export.load_networks(folder)
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
    target = export.export(folder, folder / "out")
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
