"""What holds for every base model, whether it was loaded or only its header was read."""

from __future__ import annotations

from lib_methods.dreambooth.errors import DreamBoothError

_RESOLUTIONS = {"sd1": 512, "sd2": 512, "sdxl": 1024}
_V_RESOLUTION = 768  # of the SD2 models that predict v
_USUAL_IMAGE_SIZE = 64  # in latents; what LDM's configurations say, those of 768 pixels, too


def resolution_of(family: str, predicts_v: bool, image_size: object, pixels_per_latent: int) -> int:
    """The side in pixels that a single file's model was trained for. image_size: of its yaml, None without one."""
    if isinstance(image_size, int) and image_size > 0 and image_size != _USUAL_IMAGE_SIZE:
        return image_size * pixels_per_latent
    return _V_RESOLUTION if family == "sd2" and predicts_v else _RESOLUTIONS[family]


def check_input(name: str, channels: int, latent_channels: int) -> None:
    """Raises DreamBoothError for a UNet that takes more than latents. name: the file's or the folder's."""
    if channels == latent_channels:
        return
    kind = {8: "an InstructPix2Pix", 9: "an inpainting"}.get(channels, "a special")
    raise DreamBoothError(
        f"The base model {name} is {kind} checkpoint ({channels} input channels). DreamBooth trains plain "
        "text-to-image checkpoints: choose the one that it was made from."
    )
