"""What Prometheus scrapes of the server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Limits of the histogram of a request's time."""


class Metrics:
    """The server's own registry.

    Args:
        waiting: The prompts that wait now.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "serving_requests", "Requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "serving_request_seconds", "Time of a request, waiting included.", ["route"],
            registry=self.registry, buckets=SECONDS,
        )  # fmt: skip
        self.batch = Histogram(
            "serving_batch_prompts", "Prompts of a batch.", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.tokens = Counter("serving_tokens", "Generated tokens.", registry=self.registry)
        gauge = Gauge("serving_waiting_prompts", "Prompts that wait.", registry=self.registry)
        gauge.set_function(waiting)

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self.registry)
