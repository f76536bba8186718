"""Shared by all samplers: the base class, latents to images and back, previews."""

from . import lead
from standalone.host.sampling.base import InterruptedException, Sampler, SamplerData, approximation_indexes
from standalone.host.sampling.base import decode_first_stage, images_tensor_to_samples, opts, sample_to_image
from standalone.host.sampling.base import samples_to_image_grid, samples_to_images_tensor, setup_img2img_steps
from standalone.host.sampling.base import single_sample_to_image, state, store_latent
from standalone.host.sampling.refiner import apply_refiner
from standalone.host.sampling.registry import is_sampler_using_eta_noise_seed_delta

lead(__name__, "host.sampling.base", "host.sampling.registry", "host.sampling.refiner")
