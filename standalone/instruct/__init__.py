"""Make an InstructPix2Pix checkpoint: pairs of images with an instruction, and the training on them.

Source: Brooks et al. 2023, "InstructPix2Pix", arXiv 2211.09800, sections 3.1 and 3.2.
"""
