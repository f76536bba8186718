"""Checkpoint headers and configurations: one reader for the loader, the trainer and its plan."""
