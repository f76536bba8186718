"""What a model predicts, and its noise schedule, are read from every mark there is, and sampled as diffusers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_methods.checkpoints.schedule import NoiseSchedule, of_scheduler
from lib_methods.dreambooth.model.base import read_base
from lib_methods.dreambooth.model.lora import LoraSet
from lib_methods.dreambooth.output.lora_file import lora_metadata
from lib_methods.dreambooth.output.result import save_checkpoint
from lib_methods.dreambooth.settings import TrainingSettings
from lib_methods.errors import CheckpointError, UserError
from standalone.dreambooth import load_training_model
from standalone.engine import samplers
from standalone.engine.checkpoint import load_checkpoint
from standalone.engine.denoiser import SigmaDenoiser
from standalone.engine.model import alpha_schedule
from standalone.engine.timestep_samplers import sample_ddim, sample_unipc
from tests.standalone import tiny
from tests.standalone.engine.toy import BETAS, Guided, Toy, by_diffusers, noise

MARKS = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
ZERO = {**BETAS, "rescale_betas_zero_snr": True}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_file(tiny.build("sdxl"), tmp_path_factory.mktemp("sdxl") / "model.safetensors", with_yaml=False)


def marked(source: Path, path: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> Path:
    save_file({**load_file(source), **tensors}, path, metadata=metadata)
    return path


# -- the schedules themselves


@pytest.mark.parametrize(
    "config",
    [
        BETAS,
        ZERO,
        {**BETAS, "beta_schedule": "linear"},
        {**BETAS, "beta_schedule": "squaredcos_cap_v2"},
        {**BETAS, "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 250},
        {**BETAS, "trained_betas": [0.001 * i for i in range(1, 101)]},
        {**ZERO, "beta_schedule": "linear"},
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_folders_schedule_is_what_diffusers_computes(tmp_path: Path, config: dict[str, Any], prediction: str) -> None:
    scheduler = diffusers.DDIMScheduler(**config, prediction_type=prediction)
    scheduler.save_pretrained(tmp_path)
    found = of_scheduler(json.loads((tmp_path / "scheduler_config.json").read_text(encoding="utf-8")))
    assert torch.allclose(torch.from_numpy(found.alphas_cumprod()).float(), scheduler.alphas_cumprod, atol=1e-5)
    assert found.prediction == ("v" if prediction == "v_prediction" else "eps")
    assert bool(found.alphas_cumprod()[-1] == 0) == bool(config.get("rescale_betas_zero_snr"))


@pytest.mark.parametrize("name", ["PNDM", "EulerDiscrete", "DPMSolverMultistep", "LCM", "UniPCMultistep"])
def test_every_usual_scheduler_is_read(tmp_path: Path, name: str) -> None:
    folder = tiny.write_folder(tiny.build("sd1"), tmp_path / "model")
    getattr(diffusers, f"{name}Scheduler")(**{**BETAS, "beta_schedule": "linear"}).save_pretrained(folder / "scheduler")
    expected = alpha_schedule(NoiseSchedule(curve="linear"))
    assert torch.equal(load_checkpoint(folder).alphas_cumprod, expected)


# -- zero terminal SNR and v-prediction


@pytest.mark.parametrize(
    ("metadata", "tensors", "told"),
    [
        (None, {}, ("eps", False)),
        (None, MARKS, ("v", True)),
        (None, {"v_pred": torch.empty(0)}, ("v", False)),
        ({"modelspec.prediction_type": "v"}, {}, ("v", False)),
        ({"modelspec.prediction_type": " V-Prediction"}, {}, ("v", False)),
        ({"modelspec.prediction_type": "epsilon"}, {}, ("eps", False)),
        ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, {}, ("v", True)),
        ({"ss_v_parameterization": "False", "ss_zero_terminal_snr": "None"}, {}, ("eps", False)),
        ({"modelspec.prediction_type": "epsilon"}, MARKS, ("v", True)),
    ],
)
def test_the_marks_of_sdxl_files_are_read(
    tmp_path: Path, sdxl: Path, metadata: dict[str, str] | None, tensors: dict[str, Any], told: tuple[str, bool]
) -> None:
    path = marked(sdxl, tmp_path / "model.safetensors", metadata, **tensors)
    model = load_checkpoint(path)
    assert (model.parameterization, model.ztsnr) == told
    assert float(model.alphas_cumprod[-1]) == pytest.approx(4.8973e-08 if told[1] else 0.0046598, rel=1e-3)
    trained = load_training_model(path)
    assert (trained.parameterization, trained.zero_terminal_snr) == told
    assert (trained.alphas_cumprod[-1] == 0) == told[1]


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"parameterization": "v"}, ("v", False)),
        ({"parameterization": "v", "ztsnr": True}, ("v", True)),
        ({"parameterization": "V"}, ("v", False)),
        ({"denoiser_config": {"params": {"scaling_config": {"target": "sgm.x.VScaling"}}}}, ("v", False)),
        ({"denoiser_config": {"params": {"scaling_config": {"target": "sgm.x.EpsScaling"}}}}, ("eps", False)),
        ({"denoiser_config": {"params": {"scaling_config": {"target": "sgm.x.VScalingWithEDMcNoise"}}}}, None),
        ({"denoiser_config": {"params": {"discretization_config": {"target": "sgm.x.EDMDiscretization"}}}}, None),
        ({"parameterization": "x0"}, None),
        ({"beta_schedule": "sqrt"}, None),
        ({"timesteps": "many"}, None),
    ],
)
def test_the_yaml_is_followed_or_refused(
    tmp_path: Path, sdxl: Path, params: dict[str, Any], told: tuple[str, bool] | None
) -> None:
    path = marked(sdxl, tmp_path / "model.safetensors")
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": {"params": params}}), encoding="utf-8")
    if told is None:
        with pytest.raises(CheckpointError, match="trained with|cannot be read"):
            load_checkpoint(path)
    else:
        model = load_checkpoint(path)
        assert (model.parameterization, model.ztsnr) == told


class ZeroToy(Toy):
    """A smooth made-up model that predicts v under a schedule that ends in pure noise."""

    def __init__(self) -> None:
        super().__init__("v")
        self.alphas_cumprod = alpha_schedule(NoiseSchedule("v", zero_terminal_snr=True))

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return 0.5 * torch.sin(2 * x + t.reshape(-1, 1, 1, 1) / 300) - 0.3 * x


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-3) -> None:
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_euler_from_pure_noise_is_diffusers_euler() -> None:
    toy, denoiser = ZeroToy(), SigmaDenoiser(ZeroToy())
    scheduler = diffusers.EulerDiscreteScheduler(**ZERO, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    sigmas = denoiser.get_sigmas(10)
    assert sigmas[0] > 4000 and torch.allclose(sigmas[1:], scheduler.sigmas[1:], rtol=1e-3)
    near(samplers.sample_euler(denoiser, noise() * sigmas[0], sigmas), by_diffusers(scheduler, toy, noise()))


def test_ddim_from_pure_noise_is_diffusers_ddim() -> None:
    scheduler = diffusers.DDIMScheduler(
        **ZERO, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    scheduler.timesteps = scheduler.timesteps[:-1]
    found = sample_ddim(Guided(ZeroToy()), noise(), torch.arange(99, 1000, 100))
    near(found, by_diffusers(scheduler, ZeroToy(), noise()))


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_every_sampler_and_schedule_begins_at_pure_noise(steps: int) -> None:
    """The first prediction of v is minus the image itself, however large sigma is."""
    from modules import sd_schedulers

    denoiser = SigmaDenoiser(ZeroToy())
    low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
    for scheduler in sd_schedulers.schedulers:
        if scheduler.function is None:
            continue
        extra = {"inner_model": denoiser} if scheduler.need_inner_model else {}
        sigmas = scheduler.function(n=steps, sigma_min=low, sigma_max=high, device="cpu", **extra)
        for name in ("euler", "heun", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde"):
            kwargs = {"noise": lambda a, b: noise(3)} if "sde" in name or "ancestral" in name else {}
            found = getattr(samplers, f"sample_{name}")(denoiser, noise() * sigmas[0], sigmas, **kwargs)
            assert bool(found.isfinite().all()), (scheduler.name, name)
            if name in ("euler", "euler_ancestral", "dpmpp_2m"):  # a second call far below overshoots, with any host
                assert float(found.abs().max()) < 50, (scheduler.name, name)
    for variant in ("bh1", "bh2"):
        found = sample_unipc(Guided(ZeroToy()), noise(), torch.arange(steps) + 1, variant=variant)
        assert bool(found.isfinite().all()) and float(found.abs().max()) < 50, variant


# -- what training makes of it


def test_a_trained_checkpoint_and_a_lora_carry_the_marks(tmp_path: Path, sdxl: Path) -> None:
    told = {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}
    source = marked(sdxl, tmp_path / "source.safetensors", told)
    model = load_training_model(source)
    with torch.no_grad():
        model.unet.get_parameter("conv_in.bias").add_(1)
    save_checkpoint(tmp_path / "result.safetensors", source, model)
    with safe_open(tmp_path / "result.safetensors", "pt") as file:
        assert {"v_pred", "ztsnr"} <= set(file.keys())
        assert file.metadata()["modelspec.prediction_type"] == "v"
    again = load_training_model(tmp_path / "result.safetensors")
    assert (again.parameterization, again.zero_terminal_snr) == ("v", True)
    settings = TrainingSettings(tmp_path, source, tmp_path / "out", "name", "dog", identifier="ohwx", steps=1)
    metadata = lora_metadata(LoraSet(model, 4), model, settings, "lora")
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["ss_zero_terminal_snr"] == metadata["ss_v_parameterization"] == "True"


def test_a_plain_models_result_has_no_marks(tmp_path: Path, sdxl: Path) -> None:
    model = load_training_model(sdxl)
    save_checkpoint(tmp_path / "result.safetensors", sdxl, model)
    assert load_file(tmp_path / "result.safetensors").keys() == load_file(sdxl).keys()


def test_a_schedule_that_no_file_can_carry_is_not_trained(tmp_path: Path) -> None:
    folder = tiny.write_folder(tiny.build("sd1"), tmp_path / "model")
    diffusers.DDIMScheduler(**{**BETAS, "beta_schedule": "linear"}).save_pretrained(folder / "scheduler")
    for refused in (load_training_model, read_base):
        with pytest.raises(UserError, match="unusual noise schedule"):
            refused(folder)
