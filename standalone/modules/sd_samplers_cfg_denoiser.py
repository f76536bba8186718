"""Classifier-free guidance: builds the rows of a batch, asks the model, combines the answers."""

from . import lead
from standalone.host.sampling.cfg_denoiser import AfterCFGCallbackParams, CFGDenoisedParams, CFGDenoiser
from standalone.host.sampling.cfg_denoiser import CFGDenoiserParams, catenate_conds, cfg_after_cfg_callback
from standalone.host.sampling.cfg_denoiser import cfg_denoised_callback, cfg_denoiser_callback, opts, pad_cond, state
from standalone.host.sampling.cfg_denoiser import subscript_cond

lead(__name__, "host.sampling.cfg_denoiser")
