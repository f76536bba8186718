"""What the verbs of run.py do once everything is installed. Each module has `run(options) -> int`."""
