"""What comes out of a training run: samples on the way, and the file that a WebUI loads."""
