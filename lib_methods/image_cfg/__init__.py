"""Image conditioning with two guidance scales: InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800)."""
