"""The image beside the latents in Forge: how it is encoded, and a method's rows for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lib_methods.denoiser import RowPlanner, Unsupported, sees_picture
from lib_methods.hosts.forge.rows import NegativePrompt
from lib_methods.pictures.fit import to_tensor

if TYPE_CHECKING:
    from lib_methods.hosts.forge.sampling import ForgeSampling


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
        model = self.p.sd_model
        quant = getattr(model.forge_objects.vae.first_stage_model, "quant_conv", None)
        if quant is None:
            raise Unsupported("This model's VAE does not show the mode of its latents.")
        no_spread = quant.register_forward_hook(_mode)  # these hosts sample from the posterior and offer no other way
        pixels = images.to(self.sampling.device)
        try:
            with torch.random.fork_rng(devices=[pixels.device] if pixels.is_cuda else []), torch.no_grad():
                encoded = [model.encode_first_stage(image[None]) for image in pixels]
                scaled = torch.cat([model.get_first_stage_encoding(part) for part in encoded])
                mode: Tensor = self._format.process_out(scaled.float())
        finally:
            no_spread.remove()
        return mode.to(self.sampling.device)

    def own(self) -> Tensor | None:
        from modules import images, shared

        given = getattr(self.p, "init_images", None)
        if not given:
            return None
        found, (width, height) = [], self.sampling.pixels
        for image in given:  # as the host brings it to the job's size
            flat = images.flatten(image, shared.opts.img2img_background_color)
            mode, part = getattr(self.p, "resize_mode", 0), getattr(self.p, "paste_to", None)
            if part is not None:  # "only masked"
                x, y, across, down = part
                mode, flat = 2, flat.crop((x, y, x + across, y + down))
            found.append(to_tensor(images.resize_image(0 if mode == 3 else mode, flat, width, height)))
        encoded = self.encode(torch.stack(found))
        return encoded if len(encoded) > 1 else encoded.expand(self.sampling.batch[1], -1, -1, -1)

    def first_pass(self) -> Tensor:
        assert self.sampling.latent is not None
        with torch.no_grad():
            made = [self.p.sd_model.decode_first_stage(z[None]).float() for z in self.sampling.latent]
        return self.encode(torch.cat(made).clamp(-1, 1))

    def add_planner(self, planner: RowPlanner) -> None:
        self.sampling.patched()
        current = self.sampling.current
        before, current.planner = current.planner, planner
        current.taken_back_by(lambda: setattr(current, "planner", before))
        self.sampling.seam.negative = NegativePrompt.of(self.p, self.sampling.pixels)


def predicts_v(model: Any) -> bool:
    """Whether Forge's wrapper of a UNet predicts v; the forks' ways to say so differ."""
    kind = getattr(getattr(model, "predictor", None), "prediction_type", None) or getattr(model, "model_type", "")
    return "v_prediction" in str(getattr(kind, "name", kind)).lower()


def _mode(_: nn.Module, inputs: Any, moments: Tensor) -> Tensor:
    """The posterior's moments, (N, 8, h, w), with hardly any variance."""
    mean, log_variance = moments.chunk(2, 1)
    return torch.cat([mean, torch.full_like(log_variance, -30.0)], 1)
