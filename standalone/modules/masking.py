"""Masks: the region to crop to, and filling what is masked."""

from . import lead
from standalone.host.jobs.masks import expand_crop_region, fill, get_crop_region, get_crop_region_v2

lead(__name__, "host.jobs.masks")
