"""Zero-shot image-to-image translation: pix2pix-zero (Parmar et al. 2023, arXiv 2302.03027)."""
