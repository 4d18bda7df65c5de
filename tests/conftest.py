"""For all tests: how hypothesis looks for examples on a machine that does other things as well."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A slow machine is no fault of what is tested; each test bounds its examples instead.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("patient")
