"""The list of samplers, and names: today's, and the old ones that carry a schedule ("DPM++ 2M Karras")."""

from . import lead
from standalone.host.sampling.base import sample_to_image, samples_to_image_grid
from standalone.host.sampling.registry import all_samplers, all_samplers_map, create_sampler, find_sampler_config
from standalone.host.sampling.registry import fix_p_invalid_sampler_and_scheduler, get_hr_sampler_and_scheduler
from standalone.host.sampling.registry import get_hr_sampler_from_infotext, get_hr_scheduler_from_infotext
from standalone.host.sampling.registry import get_sampler_and_scheduler, get_sampler_from_infotext
from standalone.host.sampling.registry import get_scheduler_from_infotext, samplers, samplers_for_img2img
from standalone.host.sampling.registry import samplers_hidden, samplers_map, set_samplers, visible_sampler_names
from standalone.host.sampling.registry import visible_samplers

lead(__name__, "host.sampling.registry", "host.sampling.base")
