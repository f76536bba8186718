"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# a busy machine is no failure: neither the time of one example nor that of making them
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
