"""FABRIC: liked and disliked pictures steer generation through the UNet's self-attention (arXiv 2307.10159)."""
