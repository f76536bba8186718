"""Prompts to conditioning: schedules over the steps, AND with weights, and the objects that samplers take them from."""

from . import lead
from standalone.host.sampling.prompt_parser import ComposableScheduledPromptConditioning, DictWithShape
from standalone.host.sampling.prompt_parser import MulticondLearnedConditioning, ScheduledPromptConditioning
from standalone.host.sampling.prompt_parser import SdConditioning, get_learned_conditioning
from standalone.host.sampling.prompt_parser import get_learned_conditioning_prompt_schedules
from standalone.host.sampling.prompt_parser import get_multicond_learned_conditioning, get_multicond_prompt_list
from standalone.host.sampling.prompt_parser import parse_prompt_attention, re_AND, reconstruct_cond_batch
from standalone.host.sampling.prompt_parser import reconstruct_multicond_batch, stack_conds

lead(__name__, "host.sampling.prompt_parser")
