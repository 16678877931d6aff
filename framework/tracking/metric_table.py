"""The metrics that a node exports to Prometheus, for the exporter, the dashboard and the alert rules alike.

Names follow Prometheus's conventions: base units as the suffix, `_total` for counters. All metrics carry the labels
`run`, `attempt` and `node`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

LABELS = ("run", "attempt", "node")


@dataclass(frozen=True)
class Metric:
    """One metric, from its source to its panel."""

    name: str
    """The name in Prometheus."""
    kind: Literal["gauge", "counter"]
    """The type in Prometheus."""
    text: str
    """The description."""
    unit: str
    """The unit of its panel, in Grafana's notation."""
    section: Literal["Training", "GPU", "Network"]
    """The dashboard's section."""
    shown: Literal["value", "rate", "age"] = "value"
    """What the panel shows: the value, its rate per second or, of a point in time, its age."""
    labels: tuple[str, ...] = ()
    """Labels in addition to those of all metrics."""
    logged: str | None = None
    """The name under which a step logs it; None for what no step logs."""
    source: str | None = None
    """The kernel's name of the counter; None for what is no counter of a device."""


def _step(name: str, text: str, unit: str = "none", logged: str | None = None) -> Metric:
    return Metric(f"framework_{name}", "gauge", text, unit, "Training", logged=logged)


def _moment(name: str, text: str) -> Metric:
    return Metric(f"framework_{name}_timestamp_seconds", "gauge", text, "s", "Training", shown="age")


def _gpu(name: str, text: str, unit: str) -> Metric:
    return Metric(f"framework_gpu_{name}", "gauge", text, unit, "GPU", labels=("gpu",))


def _counter(name: str, text: str, source: str, *labels: str) -> Metric:
    unit = "Bps" if name.endswith("bytes") else "pps"
    return Metric(f"framework_{name}_total", "counter", text, unit, "Network", "rate", labels, source=source)


METRICS: Mapping[str, Metric] = {
    "step": _step("step", "Optimizer steps of the run so far"),
    "training": _step("training", "1 while steps are trained, 0 in evals and between stages"),
    "heartbeat": _moment("heartbeat", "When the last step ended (Unix time)"),
    "checkpoint": _moment("checkpoint", "When the newest checkpoint was committed (Unix time)"),
    "loss": _step("loss", "Loss of the last step", logged="loss"),
    "gradient_norm": _step("gradient_norm", "Norm of the last step's gradient", logged="gradient_norm"),
    "step_seconds": _step("step_seconds", "Time of the last step, waiting for data included", "s", "step_s"),
    "wait_seconds": _step("data_wait_seconds", "Time that the last step waited for data", "s", "data/wait_s"),
    "tokens": _step("tokens_per_second", "Tokens that the whole run processed per second", logged="tokens_per_s"),
    "mfu": _step("mfu_ratio", "Model FLOPs utilisation", "percentunit", "throughput/mfu"),
    "gpu_utilisation": _gpu("utilisation_ratio", "Share of time in which a kernel ran", "percentunit"),
    "gpu_tensor": _gpu("tensor_active_ratio", "Share of cycles with tensor cores active (DCGM)", "percentunit"),
    "gpu_memory": _gpu("memory_used_bytes", "Memory in use", "bytes"),
    "gpu_memory_total": _gpu("memory_bytes", "Memory in total", "bytes"),
    "gpu_power": _gpu("power_watts", "Power drawn", "watt"),
    "gpu_temperature": _gpu("temperature_celsius", "Temperature", "celsius"),
    "gpu_xid": Metric(
        "framework_gpu_xid_errors_total", "counter", "XID errors of this attempt", "none", "GPU", labels=("gpu", "xid")
    ),
    "dropped": Metric(
        "framework_coordinator_dropped_total",
        "counter",
        "Foreign or malformed messages and connections dropped",
        "none",
        "Training",
        labels=("reason",),
    ),
    "efa_received": _counter("efa_receive_bytes", "EFA: received", "rx_bytes", "device", "port"),
    "efa_sent": _counter("efa_transmit_bytes", "EFA: sent", "tx_bytes", "device", "port"),
    "efa_read": _counter("efa_rdma_read_bytes", "EFA: read by RDMA", "rdma_read_bytes", "device", "port"),
    "efa_written": _counter("efa_rdma_write_bytes", "EFA: written by RDMA", "rdma_write_bytes", "device", "port"),
    "efa_dropped": _counter("efa_receive_drops", "EFA: packets dropped", "rx_drops", "device", "port"),
    "efa_resent": _counter("efa_retransmitted_packets", "EFA: packets retransmitted", "retrans_pkts", "device", "port"),
    "net_received": _counter("network_receive_bytes", "Interfaces: received", "rx_bytes", "device"),
    "net_sent": _counter("network_transmit_bytes", "Interfaces: sent", "tx_bytes", "device"),
    "net_errors": _counter("network_receive_errors", "Interfaces: faulty packets", "rx_errors", "device"),
    "net_dropped": _counter("network_receive_drops", "Interfaces: packets dropped", "rx_dropped", "device"),
}
"""The metrics by the key that alert rules and the exporter use."""


@dataclass(frozen=True)
class MetricSample:
    """One value of a metric."""

    key: str
    """The metric's key in `METRICS`."""
    value: float
    """The value, in the metric's unit."""
    labels: tuple[str, ...] = ()
    """The values of the metric's own labels."""
