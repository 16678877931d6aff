"""How many examples a fuzzer draws."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def fuzz(examples: int) -> settings:
    """`examples` in each run of the tests; HYPOTHESIS_PROFILE=campaign, wide or large draws 20, 40 or 100 times it."""
    share = settings().max_examples / settings.get_profile("shared machine").max_examples
    return settings(max_examples=round(examples * share), deadline=None, suppress_health_check=list(HealthCheck))
