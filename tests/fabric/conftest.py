"""The standalone host with the pack's scripts and tiny models of every family."""

from tests.standalone.conftest import checkpoints, start_host

__all__ = ["checkpoints", "start_host"]
