"""The image beside the latents in Forge: how it is encoded, and a method's rows for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import RowPlanner, Unsupported, sees_picture
from lib_methods.errors import UserError
from lib_methods.hosts.forge.rows import NegativePrompt
from lib_methods.hosts.passes import Pass

if TYPE_CHECKING:
    from lib_methods.hosts.forge.sampling import ForgeSampling


_SOURCE, _CONDITIONING = "steer_source_image", "img2img_image_conditioning"
_NEEDS_METHOD = (
    "This is an InstructPix2Pix checkpoint, which this WebUI cannot run by itself. "
    "Turn on InstructPix2Pix, or choose another checkpoint."
)


class ForgePicture:
    """Implements `lib_methods.denoiser.Picture`."""

    def __init__(self, sampling: ForgeSampling) -> None:
        self.sampling, self.p = sampling, sampling.p

    @property
    def has_channels(self) -> bool:
        return sees_picture(self.sampling.unet)

    @property
    def scale(self) -> float:
        ends = self._format.process_in(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
        return float(ends[1].mean() - ends[0].mean())

    @property
    def _format(self) -> Any:
        """What brings the VAE's latents to the UNet's scale and back; the forks keep it in different places."""
        objects = self.p.sd_model.forge_objects
        model = objects.unet.model
        places = (objects.vae.first_stage_model, getattr(getattr(model, "model_config", None), "latent_format", None))
        found = next((place for place in places if hasattr(place, "process_in")), None)
        if found is None:
            raise Unsupported("This WebUI does not report the scale of the VAE's latents.")
        return found

    @property
    def is_scaled(self) -> bool:
        model = self.p.sd_model
        return bool(getattr(model, "is_sdxl", False)) and predicts_v(model.forge_objects.unet.model)

    def encode(self, images: Tensor) -> Tensor:
        quant = getattr(self.p.sd_model.forge_objects.vae.first_stage_model, "quant_conv", None)
        if quant is None:
            raise Unsupported("This model's VAE does not show the mode of its latents.")
        no_spread = quant.register_forward_hook(_mode)  # these hosts draw from the posterior and hand over no other way
        try:
            scaled = self.sampling.encode(images, [0] * len(images))  # always with the same little noise
        finally:
            no_spread.remove()
        mode: Tensor = self._format.process_out(scaled.float())
        return mode.to(self.sampling.device)

    def own(self) -> Tensor | None:
        if not getattr(self.p, "init_images", None):
            return None
        source: Tensor | None = getattr(self.p, _SOURCE, None)
        if source is None:
            raise Unsupported("This WebUI does not hand over the image that it starts from.")
        own = self.encode(source)
        size = self.sampling.latent_size
        return own if tuple(own.shape[2:]) == size else nn.functional.interpolate(own, size=size, mode="bilinear")

    def first_pass(self) -> Tensor:
        assert self.sampling.latent is not None
        with torch.no_grad():
            made = [self.p.sd_model.decode_first_stage(z[None]).float() for z in self.sampling.latent]
        return self.encode(torch.cat(made).clamp(-1, 1))

    def add_planner(self, planner: RowPlanner) -> None:
        self.sampling.patched()
        current = self.sampling.current
        before, current.planner = current.planner, planner
        current.needed.add(type(planner))
        current.taken_back_by(lambda: setattr(current, "planner", before))
        self.sampling.seam.negative = NegativePrompt.of(self.p, self.sampling.pixels)


def keep_source(p: Any) -> None:
    """Have a job keep the image that it will start from as it is encoded: cut out, resized and with its mask filled."""
    original = getattr(p, _CONDITIONING, None)
    if original is None:
        return

    def kept(source: Tensor, latent: Tensor, *args: Any, **kwargs: Any) -> Any:
        vars(p).pop(_CONDITIONING, None)
        setattr(p, _SOURCE, source)
        if sees_picture(p.sd_model.forge_objects.unet.model.diffusion_model):  # which the host takes for inpainting
            return latent.new_zeros(len(latent), 5, 1, 1)
        return original(source, latent, *args, **kwargs)

    setattr(p, _CONDITIONING, kept)


def end_without_picture(p: Any) -> None:
    """Stop the coming pass with a message if its model needs an image and no method provides one."""
    if not sees_picture(p.sd_model.forge_objects.unet.model.diffusion_model):
        return
    current = Pass.of(p)
    if current.planner is not None:
        return

    def refuse(*_: Any, **__: Any) -> None:
        current.end()
        raise UserError(_NEEDS_METHOD)

    p.sampler.launch_sampling = refuse


def predicts_v(model: Any) -> bool:
    """Whether Forge's wrapper of a UNet predicts v."""
    return "v_prediction" in _prediction(model)


def predicts_flow(model: Any) -> bool:
    """Whether Forge's wrapper of a UNet is of flow matching."""
    return any(word in _prediction(model) for word in ("const", "flow"))


def _prediction(model: Any) -> str:
    """What it predicts, in the words of the fork: "epsilon", "v_prediction", "const" or "flow"."""
    kind = getattr(getattr(model, "predictor", None), "prediction_type", None) or getattr(model, "model_type", "")
    return str(getattr(kind, "name", kind)).lower()


def _mode(_: nn.Module, inputs: Any, moments: Tensor) -> Tensor:
    """The posterior's moments, (N, 8, h, w), with hardly any variance."""
    mean, log_variance = moments.chunk(2, 1)
    return torch.cat([mean, torch.full_like(log_variance, -30.0)], 1)
