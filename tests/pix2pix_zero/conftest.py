"""The standalone host with tiny models of every family."""

from tests.standalone.conftest import _settings_stay, checkpoints, start_host

__all__ = ["_settings_stay", "checkpoints", "start_host"]
