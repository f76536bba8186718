"""A pixel stage of a cascade as the trainer wants a model: images in place of latents, T5 only while it encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lib_methods.cascade.augmentation import augmented, enlarged, level_label, low_resolution
from lib_methods.cascade.folder import NAMES, Stage
from lib_methods.cascade.parts import Parts, load, put, skeleton
from lib_methods.cascade.plan import Counted, choose_encoder, one_pass
from lib_methods.cascade.settings import CascadeSettings
from lib_methods.cascade.text import embeddings, load_tokenizer
from lib_methods.cascade.thresholding import Threshold
from lib_methods.cascade.variance import KINDS
from lib_methods.checkpoints.schedule import NoiseSchedule
from lib_methods.device import LiveBytes, device_memory
from lib_methods.dreambooth.model.base import BaseModel, ModelSizes, Part
from lib_methods.dreambooth.model.identifier import RAREST_T5
from lib_methods.dreambooth.model.model import TextEmbedding, computing
from lib_methods.dreambooth.stages import prediction_of
from lib_methods.errors import UserError

FAMILY = "if"


class _NoVae(nn.Module):
    """In place of an autoencoder: pixels are what is trained on. Its weight has no numbers, only a device."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)


class StageModel:
    """`TrainingModel` over a pixel stage. small: the side of stage I's images, of stage II, whose condition they are.

    level: of the noise on the condition, 0 to 1 (see `cascade.augmentation.kept_signal`). texts: the folder that keeps
    text embeddings. UNet and text encoder are read from the configurations; nothing of IF is assumed.
    """

    family, zero_terminal_snr, pixels_per_latent, rare_from = FAMILY, False, 1, RAREST_T5
    encoders: Sequence[nn.Module] = ()  # T5 is not trained

    def __init__(
        self, stage: Stage, device: torch.device, dtype: torch.dtype, *, texts: Path, small: int = 0, level: float = 0.0
    ) -> None:
        self.stage, self.name, self.small, self.level, self._folder = stage, stage.folder.name, small, level, texts
        self.sha256 = stage.unet.digest + (stage.text.digest if stage.text is not None else "")
        self.parameterization, self.resolution, self.latent_channels = prediction_of(stage), stage.side, stage.channels
        self.alphas_cumprod = DDPMScheduler.from_config(dict(stage.scheduler)).alphas_cumprod.float()
        self.limit = Threshold.of(CascadeSettings(), stage.scheduler)
        self.unet, self.vae = load(stage.unet, device, dtype), _NoVae()
        self.expected: list[str] = []
        self.warn: Callable[[str], object] = lambda text: None
        self._known: dict[str, Tensor] = {}
        self._enlarged: Tensor | None = None
        noising = stage.noising or stage.scheduler
        self._noising = DDPMScheduler.from_config(dict(noising)).alphas_cumprod

    @property
    def variance(self) -> str:
        """Of which kind the learned variance is; "" where there is none, or none that the scheduler uses."""
        kind = str(self.stage.scheduler.get("variance_type"))
        return kind if kind in KINDS and self.stage.unet.config["out_channels"] > self.latent_channels else ""

    # -- text

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._text)

    @property
    def _text(self) -> Any:
        if self.stage.text is None:
            raise UserError(
                f"The folder {self.name} has no text_encoder, and no other stage has one that fits. Download the text "
                "encoder of stage I."
            )
        return self.stage.text

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text.lower(), add_special_tokens=False).input_ids)

    def token_words(self) -> Mapping[str, int]:
        words: Mapping[str, int] = self._tokenizer.get_vocab()
        return {f"{word[1:]}</w>": number for word, number in words.items() if word.startswith("▁")}

    def embed(self, texts: Sequence[str]) -> TextEmbedding:
        """On the CPU. T5 is loaded for texts that are not known from earlier runs, with all that are expected, and
        goes again."""
        if not set(texts) <= self._known.keys():
            place = next(self.unet.parameters()).device
            encoder = choose_encoder(self._text, CascadeSettings(), place, device_memory(place))
            with torch.autocast(encoder.device.type, enabled=False):  # kept ones are of the encoder's own precision
                self._known |= embeddings(encoder, [*texts, *self.expected], self._folder, Parts(), self.warn)
        return TextEmbedding(torch.cat([self._known[text] for text in texts]).float())

    # -- the UNet

    def condition(self, images: Tensor, noise: Tensor) -> Tensor:
        """What stage II is shown of images (B, C, H, W): small, enlarged again, with the level's noise."""
        size = int(images.shape[-2]), int(images.shape[-1])
        return augmented(enlarged(low_resolution(images, self.small), size), noise, self.level, self._noising)

    @property
    def noise_level(self) -> int:
        """The noise level of the condition that stage II's UNet gets, as a timestep."""
        return round(level_label(self.level, len(self._noising)))

    @contextmanager
    def enlarging(self, image: Tensor) -> Iterator[None]:
        """While inside, stage II enlarges the small copy of an image (1, C, H, W)."""
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        self._enlarged = self.condition(image, noise)
        try:
            yield
        finally:
            self._enlarged = None

    def predict(self, latents: Tensor, timesteps: Tensor, text: TextEmbedding, sizes: Tensor | None = None) -> Tensor:
        """latents: (B, C, H, W), in stage II with the condition behind them, (B, 2C, H, W)."""
        if self._enlarged is not None:
            latents = torch.cat([latents, self._enlarged.to(latents).expand_as(latents)], dim=1)
        unet: Any = self.unet
        weight = next(unet.parameters())
        options: dict[str, Any] = {}
        if self.stage.number == 2:
            label = level_label(self.level, len(self._noising))
            options["class_labels"] = torch.full(latents.shape[:1], label, device=weight.device)
        out: Tensor = unet(
            latents.to(weight.device, weight.dtype),
            timesteps.to(weight.device),
            encoder_hidden_states=text.hidden.to(weight.device, weight.dtype),
            return_dict=False,
            **options,
        )[0]
        return out.to(latents.dtype)

    # -- images

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return pixels.float(), torch.zeros_like(pixels, dtype=torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.float().clamp(-1, 1)

    # -- the folder

    def unet_names(self) -> Mapping[str, str]:
        return {name: name for name in self.unet.state_dict()}

    def file_weights(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.unet.state_dict().items()}

    def source_weights(self, source: Path) -> Mapping[str, Tensor]:
        raise NotImplementedError("a stage is written as a folder")


def stage_base(stage: Stage) -> BaseModel:
    """A stage by its headers, for the plan."""
    heads = stage.unet.weights.heads
    shapes = {name: head.shape for name, head in heads.items()}
    counted: Callable[[str, int], float] = lambda mode, kind: _cell_bytes(Counted(stage.unet), mode, kind)  # noqa: E731
    files = [file for part in (stage.unet, stage.text) if part is not None for file in part.weights.files]
    return BaseModel(
        sizes=ModelSizes.of(FAMILY, shapes, [], stage.side, 1, NAMES[stage.number], counted),
        unet=Part(stage.unet.numbers, sum(head.size for head in heads.values())),
        text=Part(0, 0),
        size=sum(file.stat().st_size for file in files),
        unet_shapes=shapes,
        schedule=NoiseSchedule(prediction_of(stage)),
    )


@lru_cache(maxsize=32)
def _cell_bytes(counted: Counted, mode: str, kind: int) -> float:
    """Bytes per pixel and image of a pass, as in `training.plan.CELL_BYTES`: counted on tensors without content."""
    part = counted.part
    side = part.config.get("sample_size") or 64
    side = max(side) if isinstance(side, list) else int(side)
    dtype = torch.bfloat16 if mode == "half" else torch.float32
    width = int(part.config.get("encoder_hid_dim") or part.config["cross_attention_dim"])
    peaks = []
    for rows in (1, 2):
        with torch.device("meta"):
            module: Any = skeleton(part)
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        with torch.set_grad_enabled(kind < 2), FakeTensorMode(), LiveBytes() as live:
            for name, shape in shapes.items():
                put(module, name, torch.empty(shape, dtype=dtype))
            module.train().requires_grad_(kind < 2)
            if kind == 1:
                module.enable_gradient_checkpointing()
            for weight in module.parameters() if kind < 2 else ():
                weight.register_post_accumulate_grad_hook(lambda it: setattr(it, "grad", None))
            live.peak = before = live.live
            with computing(torch.device("cpu"), torch.bfloat16 if mode == "mixed" else None):
                out = one_pass(module, part.config, (side, side), rows, dtype, width)
            if kind < 2:
                out.float().square().mean().backward()
            peaks.append(live.peak - before)
    return (peaks[1] - peaks[0]) / side**2
