"""Sampling: the CFG denoiser, the samplers with their settings, prompts and noise."""
