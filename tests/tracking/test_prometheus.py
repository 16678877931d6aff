"""What a node offers to Prometheus is what its devices and the last step say."""

from __future__ import annotations

import logging
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from framework.launch.host import free_port
from framework.tracking.gpu import TENSOR_ACTIVE, Dcgm, Gpus
from framework.tracking.metric_table import LABELS, METRICS, MetricSample
from framework.tracking.network import network_samples
from framework.tracking.prometheus import Node, Prometheus, Reporter
from framework.tracking.tracking import Tracking

NOBODY = cast(LightningModule, None)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Counters of one EFA port and two interfaces, as the kernel lays them out."""
    for folder, counters in {
        "infiniband/rdmap0s6/ports/1/hw_counters": {"rx_bytes": 1000, "retrans_pkts": 7, "lifespan": 12},
        "net/eth0/statistics": {"rx_bytes": 5, "tx_bytes": 6, "rx_errors": 1, "rx_dropped": 2},
        "net/lo/statistics": {"rx_bytes": 99},
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        for name, value in counters.items():
            (tmp_path / folder / name).write_text(f"{value}\n")
    return tmp_path


def step(reporter: Callback, number: int, loss: float, **metrics: float) -> None:
    output: Any = {"metrics": {"loss": loss, "lr": 0.1, **metrics}}
    cast(Reporter, reporter).on_step_read(number, output)


def scraped(node: Node) -> dict[str, float]:
    """By name, the value of each metric that has no labels of its own."""
    registry = CollectorRegistry()
    registry.register(node)
    text = generate_latest(registry).decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if set(sample.labels) == set(LABELS)
    }


def test_counters_of_efa_and_interfaces(system: Path) -> None:
    assert list(network_samples(system)) == [
        MetricSample("efa_received", 1000, ("rdmap0s6", "1")),
        MetricSample("efa_resent", 7, ("rdmap0s6", "1")),
        MetricSample("net_received", 5, ("eth0",)),
        MetricSample("net_sent", 6, ("eth0",)),
        MetricSample("net_errors", 1, ("eth0",)),
        MetricSample("net_dropped", 2, ("eth0",)),
    ]


def test_the_last_step_and_whether_there_are_steps(tmp_path: Path) -> None:
    node = Node("demo", 2, tmp_path)
    assert scraped(node)["framework_training"] == 0
    reporter = Reporter(node)
    before = time.time()
    reporter.on_train_start(cast(Trainer, SimpleNamespace(global_step=40)), NOBODY)
    started = scraped(node)
    assert (started["framework_training"], started["framework_step"]) == (1, 40)
    assert "framework_loss" not in started
    step(reporter, 41, 1.5, **{"step_s": 0.5, "tokens_per_s": 700.0, "data/wait_s": 0.1, "throughput/mfu": 0.4})
    found = scraped(node)
    assert found["framework_step"] == 41
    assert found["framework_loss"] == 1.5
    assert found["framework_step_seconds"] == 0.5
    assert found["framework_tokens_per_second"] == 700
    assert found["framework_data_wait_seconds"] == 0.1
    assert found["framework_mfu_ratio"] == 0.4
    assert before <= found["framework_heartbeat_timestamp_seconds"] <= time.time()
    assert "framework_checkpoint_timestamp_seconds" not in found
    reporter.on_train_end(cast(Trainer, None), NOBODY)
    assert scraped(node)["framework_training"] == 0


def test_the_newest_checkpoint_is_one_with_a_commit(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000005.attempt-1").mkdir(parents=True)
    assert "framework_checkpoint_timestamp_seconds" not in scraped(Node("demo", 1, tmp_path))
    (tmp_path / "checkpoints" / "step-00000005.attempt-1" / "COMMIT").touch()
    found = scraped(Node("demo", 1, tmp_path))["framework_checkpoint_timestamp_seconds"]
    assert found == pytest.approx(time.time(), abs=60)


def test_everything_offered_is_labelled_and_in_the_table(tmp_path: Path, system: Path) -> None:
    node = Node("demo", 3, tmp_path)
    step(Reporter(node), 1, 2.0, step_s=0.1)
    known = {metric.name.removesuffix("_total"): metric for metric in METRICS.values()}
    families = list(node.collect())
    assert {"framework_step", "framework_loss"} <= {family.name for family in families}
    for family in families:
        metric = known[family.name]
        assert (family.type, family.documentation) == (metric.kind, metric.text)
        for sample in family.samples:
            assert tuple(sample.labels) == (*LABELS, *metric.labels)
            assert (sample.labels["run"], sample.labels["attempt"]) == ("demo", "3")


class NVMLError(Exception):
    """What NVIDIA's library raises."""


def fails(*arguments: Any) -> Any:
    raise NVMLError("not supported")


def nvml(xids: list[tuple[int, int]], **other: Any) -> Any:
    """NVIDIA's library, with two GPUs of which the second gives no power, and a queue of XID errors."""

    def wait(events: str, timeout: int) -> Any:
        if not xids:
            raise NVMLError("timeout")
        device, xid = xids.pop(0)
        return SimpleNamespace(device=device, eventData=xid)

    library = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlEventTypeXidCriticalError": 8,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetIndex": lambda device: device,
        "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=90 - device),
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(used=5, total=10),
        "nvmlDeviceGetTemperature": lambda device, kind: 60,
        "nvmlDeviceGetPowerUsage": lambda device: 350_000 if device == 0 else fails(),
        "nvmlEventSetCreate": lambda: "events",
        "nvmlDeviceRegisterEvents": lambda device, kinds, events: None,
        "nvmlEventSetWait_v2": wait,
    }
    return SimpleNamespace(**{**library, **other})


def test_gpus_say_what_they_do_and_xids_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    xids = [(1, 79), (1, 79)]
    monkeypatch.setitem(sys.modules, "pynvml", nvml(xids))
    gpus = Gpus()
    found = {(sample.key, *sample.labels): sample.value for sample in gpus.samples()}
    assert found["gpu_utilisation", "0"] == 0.9
    assert found["gpu_utilisation", "1"] == 0.89
    assert found["gpu_power", "0"] == 350
    assert ("gpu_power", "1") not in found
    assert found["gpu_memory_total", "1"] == 10
    assert found["gpu_xid", "1", "79"] == 2
    xids.append((1, 79))
    assert MetricSample("gpu_xid", 3, ("1", "79")) in list(gpus.samples())


def test_a_driver_without_events_still_gives_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], nvmlEventSetCreate=fails))
    assert len(list(Gpus().samples())) == 9
    assert "XID errors are not counted" in caplog.text


def test_without_a_driver_it_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml([], nvmlInit=fails))
    with caplog.at_level(logging.INFO):
        gpus = Gpus()
        assert [*gpus.samples(), *gpus.samples()] == []
    assert caplog.text.count("no GPU metrics") == 1


@pytest.fixture
def dcgm() -> Iterator[str]:
    """The address of a DCGM exporter with two GPUs."""
    text = "".join(f'{TENSOR_ACTIVE}{{gpu="{gpu}",UUID="GPU-{gpu}"}} 0.{gpu}5\n' for gpu in (0, 1))

    class Exporter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"# TYPE {TENSOR_ACTIVE} gauge\n{text}".encode())

        def log_message(self, *arguments: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Exporter) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()


def test_tensor_cores_by_dcgm(dcgm: str) -> None:
    assert list(Dcgm(dcgm).samples()) == [
        MetricSample("gpu_tensor", 0.05, ("0",)),
        MetricSample("gpu_tensor", 0.15, ("1",)),
    ]


def test_a_dcgm_exporter_that_is_not_there_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    absent = Dcgm(f"http://127.0.0.1:{free_port()}/metrics")
    assert [*absent.samples(), *absent.samples()] == []
    assert caplog.text.count("does not answer") == 1


def test_the_endpoint_is_the_nodes_and_outlives_a_stage(tmp_path: Path) -> None:
    endpoint = Prometheus(port=free_port(), address="127.0.0.1")
    for stage in ("broad", "quality"):
        callbacks = Tracking(prometheus=endpoint).callbacks("demo", 1, stage, folder=tmp_path)
        assert [type(each).__name__ for each in callbacks] == ["StepLogger", "StepProgressBar", "Reporter"]
    step(callbacks[-1], 7, 1.0, step_s=0.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    (line,) = [line for line in text.splitlines() if line.startswith("framework_step{")]
    assert line.endswith(" 7.0")


def test_other_processes_of_the_node_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Prometheus(port=free_port()).callback("demo", 1, tmp_path) is None


def test_a_port_that_is_taken_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        reporter = Prometheus(port=port, address="127.0.0.1").callback("demo", 1, tmp_path)
    assert f"tracking.prometheus.port: {port} cannot be bound" in caplog.text
    assert reporter is not None
    step(reporter, 1, 1.0)
