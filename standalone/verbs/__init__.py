"""The commands of run.py, once everything is installed. Each module has `run(options) -> int`."""
