"""Text to image with a pixel cascade: DeepFloyd IF and its kin (Imagen, arXiv 2205.11487), one part at a time."""
