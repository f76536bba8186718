"""Checkpoints as their files' headers and configurations tell: one reader for the loader, the trainer and its plan."""
