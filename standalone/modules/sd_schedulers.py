"""The sigma schedules that can be chosen beside the sampler ("Schedule type")."""

from . import lead
from standalone.host.sampling.schedulers import Scheduler, schedulers, schedulers_map

lead(__name__, "host.sampling.schedulers")
