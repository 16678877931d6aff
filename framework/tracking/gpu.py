"""Samples of the node's GPUs from NVML, and of their tensor cores from a DCGM exporter."""

from __future__ import annotations

import logging
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from framework.tracking.metric_table import MetricSample

log = logging.getLogger(__name__)

TENSOR_ACTIVE = "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"
DCGM_WAIT_S = 2.0


class Gpus:
    """The node's GPUs from NVML. Without a driver or `pynvml` there are none, which is logged once.

    XID errors are counted from the construction of this object.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._devices: list[Any] = []
        self._events: Any = None
        self._xids: Counter[tuple[str, str]] = Counter()
        try:
            import pynvml

            pynvml.nvmlInit()
        except ImportError:
            log.warning("no GPU metrics: the package nvidia-ml-py is not installed (pip install 'framework[observe]')")
            return
        except pynvml.NVMLError as error:
            log.info("no GPU metrics: %s", error)
            return
        self._nvml = pynvml
        self._devices = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        self._events = self._watch_for_xids()

    def samples(self) -> Iterator[MetricSample]:
        """The present samples of every GPU, without those that it does not support."""
        for number, device in enumerate(self._devices):
            for key, read in self._readings().items():
                with suppress(self._nvml.NVMLError):
                    yield MetricSample(key, float(read(device)), (str(number),))
        self._count_xids()
        for (gpu, xid), count in self._xids.items():
            yield MetricSample("gpu_xid", count, (gpu, xid))

    def _readings(self) -> dict[str, Any]:
        nvml = self._nvml
        return {
            "gpu_utilisation": lambda device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
            "gpu_memory": lambda device: nvml.nvmlDeviceGetMemoryInfo(device).used,
            "gpu_memory_total": lambda device: nvml.nvmlDeviceGetMemoryInfo(device).total,
            "gpu_power": lambda device: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
            "gpu_temperature": lambda device: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
        }

    def _watch_for_xids(self) -> Any:
        """A queue of the XID errors of all GPUs; None where the driver has none (as in some containers)."""
        try:
            events = self._nvml.nvmlEventSetCreate()
            for device in self._devices:
                self._nvml.nvmlDeviceRegisterEvents(device, self._nvml.nvmlEventTypeXidCriticalError, events)
        except self._nvml.NVMLError as error:
            log.warning("XID errors are not counted: %s", error)
            return None
        return events

    def _count_xids(self) -> None:
        """Empty the queue, without waiting."""
        while self._events is not None:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError:  # a timeout: the queue is empty
                return
            gpu = self._nvml.nvmlDeviceGetIndex(event.device)
            self._xids[str(gpu), str(event.eventData)] += 1


class Dcgm:
    """A DCGM exporter, for what NVML does not report.

    Args:
        address: Its URL, such as "http://localhost:9400/metrics".
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._warned = False

    def samples(self) -> Iterator[MetricSample]:
        """The tensor-core activity of each GPU; nothing while the exporter does not answer, which is logged once."""
        try:
            with urllib.request.urlopen(self.address, timeout=DCGM_WAIT_S) as answer:
                text = answer.read().decode()
        except OSError as error:
            if not self._warned:
                log.warning("tracking.prometheus.dcgm: %s does not answer (%s)", self.address, error)
            self._warned = True
            return
        for family in text_string_to_metric_families(text):
            if family.name == TENSOR_ACTIVE:
                for sample in family.samples:
                    yield MetricSample("gpu_tensor", sample.value, (sample.labels["gpu"],))
