"""FABRIC: liked and disliked images steer generation through the UNet's self-attention (arXiv 2307.10159)."""
