"""Output of a training run: samples during it, and the file a WebUI loads."""
