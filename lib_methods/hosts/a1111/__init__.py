"""The seam for AUTOMATIC1111's WebUI, and for the standalone host, which keeps the same names."""
