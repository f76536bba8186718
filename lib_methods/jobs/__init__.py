"""Work that runs as a process of its own: its files, log and packages, and the host's way to start and stop it."""
