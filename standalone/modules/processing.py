"""Jobs: what to make (`StableDiffusionProcessing...`), how it is made (`process_images`), the result (`Processed`)."""

from . import lead
from standalone.host.jobs.img2img import StableDiffusionProcessingImg2Img
from standalone.host.jobs.job import StableDiffusionProcessing
from standalone.host.jobs.latents import DecodedSamples, create_random_tensors, decode_latent_batch, fix_seed
from standalone.host.jobs.latents import get_fixed_seed, txt2img_image_conditioning
from standalone.host.jobs.masks import apply_overlay, create_binary_mask
from standalone.host.jobs.result import Processed, create_infotext, program_version
from standalone.host.jobs.run import opt_C, opt_f, process_images, process_images_inner
from standalone.host.jobs.txt2img import StableDiffusionProcessingTxt2Img
from standalone.host.sampling.base import decode_first_stage, images_tensor_to_samples
from standalone.host.sampling.rng import slerp

lead(
    __name__,
    "host.jobs.run",
    "host.jobs.job",
    "host.jobs.txt2img",
    "host.jobs.img2img",
    "host.jobs.result",
    "host.jobs.latents",
    "host.jobs.masks",
    "host.sampling.base",
    "host.sampling.rng",
)
