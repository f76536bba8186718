"""Negative prompts inside cross-attention: NAG (Chen et al. 2025, arXiv 2505.21179)."""
