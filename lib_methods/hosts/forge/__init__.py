"""Forge and the forks that share its backend: reForge, Forge Classic, Forge Neo."""
