"""The standalone host's engine: checkpoints, text conditioning, sampling and the job queue.

Nothing in this package imports the host's `modules` package: `modules` builds on the engine, never the other way round.
"""
