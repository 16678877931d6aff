"""One Prometheus endpoint per node, served by the process of local rank 0 while it trains."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from framework.recipe.component import component
from framework.recipe.ranges import Port
from framework.run.drops import read_drop_counts
from framework.run.layout import CHECKPOINTS, COMMIT, committed_steps
from framework.run.step_output import StepOutput
from framework.run.worker import node
from framework.tracking.endpoint import default_address, serve
from framework.tracking.gpu import Dcgm, Gpus
from framework.tracking.metric_table import LABELS, METRICS, MetricSample
from framework.tracking.network import network_samples

log = logging.getLogger(__name__)


@component
class Prometheus:
    """Serves `http://<address>:<port>/metrics`: the last step, the heartbeat, GPUs and network, read at each scrape.

    If the port is in use, a warning is logged and training continues without an endpoint.

    Args:
        port: The port on each node.
        address: The address to bind. None: in a job the node's own, by its name; outside of a job this machine alone.
        dcgm: Address of a DCGM exporter on the node ("http://localhost:9400/metrics"), for tensor-core activity; None
            for none.
    """

    def __init__(self, port: Port = 9410, address: str | None = None, dcgm: str | None = None) -> None:
        self.port = port
        self.address = address
        self.dcgm = dcgm
        self._node: Node | None = None

    def callback(self, run: str, attempt: int, folder: Path) -> Callback | None:
        """The callback that reports a stage's steps to the endpoint; None on all but local rank 0. The first call
        starts the endpoint.
        """
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) != "0":
            return None
        if self._node is None:
            self._node = Node(run, attempt, folder, self.dcgm)
            registry = CollectorRegistry()
            registry.register(self._node)
            try:
                address = self.address or default_address(dict(os.environ))
                serve(registry, address, self.port)
                log.info("metrics for Prometheus at http://%s:%d/metrics", address, self.port)
            except OSError as error:
                log.warning(
                    "tracking.prometheus.port: %d cannot be bound (%s); this node has no endpoint", self.port, error
                )
        return Reporter(self._node)


class Node(Collector):
    """The node's current samples, as metric families of `METRICS`."""

    def __init__(self, run: str, attempt: int, folder: Path, dcgm: str | None = None) -> None:
        self.labels = (run, str(attempt), socket.gethostname())
        self.folder = folder
        self.training: dict[str, float] = {"training": 0.0}
        self._devices: tuple[Gpus | Dcgm, ...] = (Gpus(), *([Dcgm(dcgm)] if dcgm else []))

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The families of a scrape. The endpoint's thread calls this."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for sample in self._samples():
            if sample.key not in families:
                metric = METRICS[sample.key]
                family = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
                families[sample.key] = family(metric.name, metric.text, labels=(*LABELS, *metric.labels))
            families[sample.key].add_metric((*self.labels, *sample.labels), sample.value)
        yield from families.values()

    def _samples(self) -> Iterator[MetricSample]:
        yield from (MetricSample(key, value) for key, value in dict(self.training).items())
        commits = [(saved.folder / COMMIT).stat().st_mtime for saved in committed_steps(self.folder / CHECKPOINTS)]
        if commits:
            yield MetricSample("checkpoint", max(commits))
        for device in self._devices:
            yield from device.samples()
        yield from network_samples()
        if node() == 0:  # where the coordinator is
            yield from (MetricSample("dropped", count, (why,)) for why, count in read_drop_counts(self.folder).items())

    def describe(self) -> Iterable[Any]:
        """Nothing, so that registering does not query the devices."""
        return ()


class Reporter(Callback):
    """Reports each step to the node's endpoint, at the cost of one dictionary."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the start, so that a hang in the first step shows, too."""
        self.node.training |= {"training": 1.0, "step": trainer.global_step, "heartbeat": time.time()}

    def on_step_read(self, step: int, output: StepOutput) -> None:
        """Report the step."""
        metrics = output["metrics"]
        names = {key: metric.logged for key, metric in METRICS.items() if metric.logged in metrics}
        values = {key: float(metrics[name]) for key, name in names.items()}
        self.node.training |= {**values, "loss": metrics["loss"], "step": step, "heartbeat": time.time()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report that no steps are trained from now on."""
        self.node.training["training"] = 0.0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report that no steps are trained from now on."""
        self.node.training["training"] = 0.0
