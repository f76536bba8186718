"""Jobs: what to make (`StableDiffusionProcessing...`), how it is made (`process_images`), the result (`Processed`)."""

from __future__ import annotations

from modules.processing_base import StableDiffusionProcessing
from modules.processing_img2img import StableDiffusionProcessingImg2Img
from modules.processing_infotext import create_infotext, program_version
from modules.processing_latents import (
    DecodedSamples,
    apply_overlay,
    create_binary_mask,
    create_random_tensors,
    decode_latent_batch,
    fix_seed,
    get_fixed_seed,
    opt_C,
    opt_f,
    txt2img_image_conditioning,
)
from modules.processing_result import Processed
from modules.processing_run import process_images, process_images_inner
from modules.processing_txt2img import StableDiffusionProcessingTxt2Img
from modules.rng import slerp
from modules.sd_samplers_common import decode_first_stage, images_tensor_to_samples

__all__ = [
    "DecodedSamples",
    "Processed",
    "StableDiffusionProcessing",
    "StableDiffusionProcessingImg2Img",
    "StableDiffusionProcessingTxt2Img",
    "apply_overlay",
    "create_binary_mask",
    "create_infotext",
    "create_random_tensors",
    "decode_first_stage",
    "decode_latent_batch",
    "fix_seed",
    "get_fixed_seed",
    "images_tensor_to_samples",
    "opt_C",
    "opt_f",
    "process_images",
    "process_images_inner",
    "program_version",
    "slerp",
    "txt2img_image_conditioning",
]
