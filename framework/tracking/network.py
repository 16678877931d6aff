"""Counters of the node's network devices from the kernel: EFA's ports, and every interface except the loopback.

EFA's driver documents them at /sys/class/infiniband/<device>/ports/<port>/hw_counters (names as in `node_amazonefa_*`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from framework.tracking.metric_table import METRICS, MetricSample

SYSTEM = Path("/sys/class")


def network_samples(system: Path = SYSTEM) -> Iterator[MetricSample]:
    """A sample for every counter that a device has."""
    for port in sorted(system.glob("infiniband/*/ports/*/hw_counters")):
        yield from _counters("efa_", port, (port.parents[2].name, port.parent.name))
    for device in sorted(system.glob("net/*/statistics")):
        if device.parent.name != "lo":
            yield from _counters("net_", device, (device.parent.name,))


def _counters(prefix: str, folder: Path, labels: tuple[str, ...]) -> Iterator[MetricSample]:
    for key, metric in METRICS.items():
        if key.startswith(prefix) and metric.source is not None:
            try:
                yield MetricSample(key, float((folder / metric.source).read_text()), labels)
            except (OSError, ValueError):  # this kind of device has no such counter
                continue
