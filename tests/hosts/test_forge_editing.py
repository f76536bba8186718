"""Editing through Forge's interface: where latents are moved, how the model is run, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lib_methods import hosts
from lib_methods.attention import checkpointed, differentiable
from lib_methods.checkpoints.schedule import SMALLEST_ABAR, NoiseSchedule
from lib_methods.denoiser import Conditioning, DenoiserCall, Unsupported, editing_of
from lib_methods.denoiser.levels import Levels
from lib_methods.hosts.forge.sampling import ForgeSampling

SIGMAS = torch.linspace(0.03, 14.6, 1000)


def attention_function(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """As SageAttention: it computes in its own kernel, without gradients."""
    split = (part.detach().unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        attended = attention_function(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)
        return self.to_out(attended)


class BasicTransformerBlock(nn.Module):
    """As Forge's: writes into its own input, and into what its norms have seen. draws: as token merging does."""

    draws = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = Attention(width), Attention(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x += self.attn1(self.norm1(x)).sin()
        if self.draws:
            x *= torch.rand(x.shape[1], 1, dtype=x.dtype)
        x += self.attn2(self.norm2(x), context).tanh()
        return x


class Unet(nn.Module):
    config = {"in_channels": 4}

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BasicTransformerBlock(4) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        hidden = x.flatten(2).transpose(1, 2) * 1.5
        for block in self.blocks:
            hidden = block(hidden, context=context)
        return hidden.transpose(1, 2).unflatten(2, x.shape[2:])


class KModel:
    """Forge's wrapper of a UNet; it predicts the clean latents from latents of unit variance."""

    def __init__(self, unet: nn.Module) -> None:
        self.diffusion_model, self.predictor = unet, SimpleNamespace(sigmas=SIGMAS)

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Tensor, transformer_options: Any) -> Tensor:
        scale = (t**2 + 1)[:, None, None, None] ** 0.5
        return self.diffusion_model((x / scale).to(c_crossattn.dtype), c_crossattn)


class Denoiser(nn.Module):
    """The host's `CFGDenoiser`: in sigma space, or for a sampler that keeps the variance at one."""

    def __init__(self, in_timesteps: bool) -> None:
        super().__init__()
        self.classic_ddim_eps_estimation = in_timesteps
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(alphas_cumprod=1 / (SIGMAS**2 + 1)))
        self.steps, self.total_steps, self.step = 4, 4, 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.seen.append(x.clone())
        self.step += 1
        return x * 0


def sample_euler(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma in sigmas[:-1]:
        model(x, sigma.expand(len(x)))
    return x


def ddim(model: Any, x: Tensor, timesteps: Tensor) -> Tensor:
    for timestep in timesteps.flip(0):
        model(x, timestep.expand(len(x)))
    return x


def sample_unipc(model: Any, x: Tensor, sigmas: Tensor) -> Tensor:
    return x


class Sampler:
    config = SimpleNamespace(name="Some", options={})

    def __init__(self, function: Any) -> None:
        self.func, self.funcname = function, function.__name__
        self.model_wrap_cfg = Denoiser(function is ddim)

    def sample(self, p: Any, x: Tensor, c: Any, uc: Any, image_conditioning: Any = None) -> Any:
        levels = torch.tensor([10.0, 5.0, 1.0, 0.1, 0.0])
        start = x if self.funcname == "ddim" else x * levels[0]
        given = torch.tensor([100, 400, 700, 900]) if self.funcname == "ddim" else levels
        return self.launch_sampling(4, lambda: self.func(self.model_wrap_cfg, start, given))

    def launch_sampling(self, steps: int, run: Any) -> Any:
        return run()


class Forge:
    """loading: around the loading of the model; Forge Classic's is nothing."""

    def __init__(
        self,
        function: Any = sample_euler,
        dtype: torch.dtype = torch.float32,
        loading: Callable[[], Any] = torch.inference_mode,
    ) -> None:
        torch.manual_seed(1)
        with loading():
            self.unet = Unet().to(dtype)
        patcher = SimpleNamespace(model=KModel(self.unet), model_options={})
        model = SimpleNamespace(forge_objects=SimpleNamespace(unet=patcher))
        self.p = SimpleNamespace(sd_model=model, width=64, height=64, batch_size=1, is_hr_pass=False, steps=4)
        self.p.sampler, self.p.extra_generation_params = Sampler(function), {}
        self.x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))

    def sampling(self, monkeypatch: pytest.MonkeyPatch) -> ForgeSampling:
        monkeypatch.setattr(ForgeSampling, "load_unet", lambda self: None)
        monkeypatch.setattr("lib_methods.hosts.a1111.editing.is_stopped", lambda: False)  # of jobs before this one
        sampling = hosts.sampling_of(self.p, self.x, self.x)
        assert isinstance(sampling, ForgeSampling)
        return sampling


class Mover:
    """An editor that adds 0.3 in the second step, or fails there."""

    def __init__(self, sampling: ForgeSampling, error: Exception | None = None) -> None:
        self.editing, self.error = sampling.editing, error
        self.sigmas: list[float] = []

    def before(self, call: DenoiserCall, latents: Tensor) -> Tensor:
        position = self.editing.position(call)
        self.sigmas.append(position.sigma)
        if position.step == 1 and self.error is not None:
            raise self.error
        return latents + 0.3 if position.step == 1 else latents


@pytest.mark.parametrize("function", [sample_euler, ddim])
def test_latents_are_moved_in_the_samplers_own_tensor(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forge = Forge(function)
    sampler, denoiser = forge.p.sampler, forge.p.sampler.model_wrap_cfg
    before = dict(vars(denoiser))
    sampling = forge.sampling(monkeypatch)
    editor, editing = Mover(sampling), sampling.editing
    start = editing.start_latent() + 1
    editing.start_from(start)
    editing.add_editor(editor)
    end = sampler.sample(forge.p, forge.x.clone(), None, None)
    sigmas = editing.sigmas.tolist()
    wanted = Levels(1 / (SIGMAS**2 + 1)).sigma(900) if function is ddim else 10.0
    assert sigmas[0] == pytest.approx(wanted, rel=1e-4)
    assert editor.sigmas == pytest.approx(sigmas[: len(editor.sigmas)])
    scales = [(1 + sigma**2) ** 0.5 if function is ddim else 1.0 for sigma in sigmas]
    assert torch.allclose(denoiser.seen[0] * scales[0], start, atol=1e-4)
    assert torch.allclose((denoiser.seen[1] - denoiser.seen[0]) * scales[1], torch.tensor(0.3), atol=1e-4)
    assert torch.equal(end, denoiser.seen[-1])
    assert dict(vars(denoiser)).keys() == before.keys()  # nothing is left behind
    forge.p.sampler = None  # as after Hires.fix, when the comparison is made
    assert torch.isfinite(editing.at_end(end)).all()


def test_a_samplers_timesteps_stand_for_what_the_host_takes_them_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With zero terminal SNR, Classic's DDIM has a rescaled schedule, and its predictor the model's old one."""
    rescaled = NoiseSchedule(zero_terminal_snr=True).alphas_cumprod()
    rescaled[-1] = SMALLEST_ABAR
    forge = Forge(ddim)
    forge.p.sampler.model_wrap_cfg.inner_model.inner_model.alphas_cumprod = torch.from_numpy(rescaled)
    editing = forge.sampling(monkeypatch).editing
    sigmas = ((1 / rescaled - 1) ** 0.5)[[900, 700, 400, 100]].tolist()
    assert editing.sigmas.tolist() == pytest.approx(sigmas, rel=1e-4)
    assert torch.allclose(editing.start_latent(), forge.x * (1 + sigmas[0] ** 2) ** 0.5, rtol=1e-4)


def test_what_an_inpainting_mask_keeps_has_the_noise_of_the_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host puts fresh noise there, which the reference has never seen."""
    forge, given = Forge(), []
    sampler, denoiser = forge.p.sampler, forge.p.sampler.model_wrap_cfg
    sampling = forge.sampling(monkeypatch)
    denoiser.mask, forward = torch.ones(1), denoiser.forward

    def blending(x: Tensor, sigma: Tensor) -> Tensor:
        rest: list[Any] = [sigma, None, [{}], 5.0, {}, None]
        given.append((x, sampling.seam.begin(None, torch.randn_like(x), *rest)[1]))
        return forward(x, sigma)

    denoiser.forward = blending
    sampling.editing.add_editor(Mover(sampling))
    sampler.sample(forge.p, forge.x.clone(), None, None)
    assert len(given) == 4
    assert all(torch.equal(shown, own) for own, shown in given)
    assert sampling.seam.edited is None


def test_an_editor_that_fails_ends_its_method_and_not_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part(Mover):
        """A method's part, which is a hook as well."""

        acted, missed, idle = True, "", ""

        def around(self, call: DenoiserCall) -> AbstractContextManager[None]:
            return nullcontext()

    forge = Forge()
    sampler, denoiser = forge.p.sampler, forge.p.sampler.model_wrap_cfg
    monkeypatch.setattr(ForgeSampling, "patched", lambda self: None)
    before, sampling = dict(vars(denoiser)), forge.sampling(monkeypatch)
    part = Part(sampling, torch.OutOfMemoryError("no"))
    sampling.add_hook(part)
    sampling.editing.add_editor(part)
    sampler.sample(forge.p, forge.x.clone(), None, None)
    assert len(denoiser.seen) == 4
    assert all(torch.equal(x, denoiser.seen[0]) for x in denoiser.seen)
    assert sampling.failure(part).startswith("Out of memory.")
    assert dict(vars(denoiser)).keys() == before.keys()


def test_a_sampler_that_hands_the_model_other_latents_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match='"Some".*Choose Euler'):
        _ = editing_of(Forge(sample_unipc).sampling(monkeypatch)).sigmas


@pytest.mark.parametrize(
    ("told", "refused"),
    [
        ({"predictor": SimpleNamespace(prediction_type="const", sigmas=SIGMAS)}, True),  # Neo's Mugen
        ({"predictor": None, "model_type": SimpleNamespace(name="FLOW")}, True),  # reForge
        ({"predictor": SimpleNamespace(prediction_type="v_prediction", sigmas=SIGMAS)}, False),
        (
            {
                "predictor": None,
                "model_type": SimpleNamespace(name="EPS"),
                "model_sampling": SimpleNamespace(sigmas=SIGMAS),
            },
            False,
        ),
    ],
)
def test_a_model_of_flow_matching_is_refused(
    told: dict[str, Any], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its latents are not the image plus noise, which the inversion goes by."""
    forge = Forge(sample_euler)
    for name, value in told.items():
        setattr(forge.p.sd_model.forge_objects.unet.model, name, value)
    editing = forge.sampling(monkeypatch).editing
    with pytest.raises(Unsupported, match="flow matching") if refused else nullcontext():
        assert len(editing.sigmas) == 5


@pytest.mark.parametrize(("channels", "latent", "extra"), [(4, 4, 0), (9, 4, 5), (8, 4, 4), (32, 32, 0)])
def test_channels_beside_the_latents_are_counted_from_the_latents_own(channels: int, latent: int, extra: int) -> None:
    forge = Forge()
    forge.unet.config = {"in_channels": channels}
    sampling = hosts.sampling_of(forge.p, torch.zeros(1, latent, 8, 8))
    assert isinstance(sampling, ForgeSampling)
    assert sampling.extra_channels() == extra


def test_an_inpainting_model_is_shown_the_jobs_own_image_and_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    forge, shown = Forge(), []
    forge.unet.config = {"in_channels": 9}
    forge.p.init_latent = forge.x
    with torch.inference_mode():
        forge.p.image_conditioning = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(4))

    def apply_model(x: Tensor, t: Tensor, c_concat: Tensor, **_: Any) -> Tensor:
        shown.append(c_concat)
        return x

    monkeypatch.setattr(forge.p.sd_model.forge_objects.unet.model, "apply_model", apply_model)
    editing = forge.sampling(monkeypatch).editing
    image = editing.own_image()
    assert image is not None and not image.is_inference()
    editing.predict(forge.x.expand(2, -1, -1, -1), 2.0, Conditioning(torch.zeros(2, 77, 4), image=image))
    assert torch.equal(shown[0], forge.p.image_conditioning.expand(2, -1, -1, -1))


@pytest.mark.parametrize("loading", [torch.inference_mode, nullcontext], ids=["inference tensors", "ordinary ones"])
@pytest.mark.parametrize("memory", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("draws", [False, True], ids=["", "token merging"])
def test_gradients_through_inference_tensors_blocks_that_write_into_their_input_and_attention_without(
    draws: bool, memory: bool, loading: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = attention_function
    monkeypatch.setattr(BasicTransformerBlock, "draws", draws)
    forge = Forge(dtype=torch.float64, loading=loading)
    weights = [*forge.unet.parameters()]
    with torch.inference_mode():  # as in the middle of a job
        editing = forge.sampling(monkeypatch).editing
        cond = Conditioning(torch.randn(1, 77, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
        x, coming = forge.x.double(), torch.get_rng_state()
        with differentiable(forge.unet), checkpointed(forge.unet) if memory else nullcontext():
            leaf = x.clone().requires_grad_()
            found = editing.predict(leaf, 2.0, cond, gradients=True)
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
        assert torch.equal(torch.get_rng_state(), coming)
        along, h = torch.randn_like(x), 1e-5
        ends = [editing.predict(x + sign * h * along, 2.0, cond).sum() for sign in (1, -1)]
    assert float((gradient * along).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-6)
    assert all(now is before for now, before in zip(forge.unet.parameters(), weights))
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in forge.unet.modules())
    assert attention_function is own
