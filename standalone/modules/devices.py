"""Devices and precisions. `configure` sets them when the checkpoint is loaded."""

from standalone.host.devices import NansException, autocast, cond_cast_float, cond_cast_unet, cpu, device, dtype
from standalone.host.devices import dtype_inference, dtype_unet, dtype_vae, force_fp16, fp8, get_optimal_device
from standalone.host.devices import get_optimal_device_name, has_mps, test_for_nans, torch_gc, unet_needs_upcast
from standalone.host.devices import without_autocast
from . import lead
from standalone.host.sampling.rng import manual_seed, randn, randn_like, randn_local, randn_without_seed

lead(__name__, "host.devices", "host.sampling.rng")
