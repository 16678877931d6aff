"""Measures the speed of a step, inside the step: its output is complete before any callback reads it."""

from __future__ import annotations

import time

import torch

from framework.run.step_output import StepOutput
from framework.tracking.throughput import Throughput


class StepMeter:
    """Adds the speed of each step to its metrics.

    The clock runs from the end of one step to the end of the next, so that waiting for data and saving count. A GPU is
    still busy with a step when it ends for the host, which has waited for the step before. The metrics are `step_s`,
    `tokens_per_s` and `samples_per_s`; where the step counted its FLOPs, those of `Throughput`; and on steps that are
    logged, the peak of memory since the last of these.

    Args:
        every: Optimizer steps between two that are logged.
        throughput: Relates FLOPs to the device's peak; None leaves `throughput/...` out.
    """

    def __init__(self, every: int, throughput: Throughput | None = None) -> None:
        self.every = every
        self.throughput = throughput
        self.last = 0.0
        self.window_ended = True

    def start(self, device: torch.device, devices: int) -> None:
        """Start the clock. The stage trains on `devices` of the kind of `device`."""
        if self.throughput is not None:
            self.throughput.start(device, devices)
        self.last = time.perf_counter()

    def is_logged(self, step: int) -> bool:
        """Whether the metrics of optimizer step `step` go to the loggers."""
        return step % self.every == 0

    def start_step(self) -> None:
        """Begin a new window of peak memory, where the last one was logged."""
        if self.throughput is not None and self.window_ended:
            self.throughput.begin_window()
            self.window_ended = False

    def end_step(self, step: int, output: StepOutput) -> None:
        """Add the speed of optimizer step `step`, which ends now, to the metrics of its output."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        metrics = output["metrics"]
        metrics["step_s"] = seconds
        metrics["tokens_per_s"] = output["tokens"] / seconds
        metrics["samples_per_s"] = output["samples"] / seconds
        if self.throughput is None:
            return
        if "flops" in output:
            metrics |= self.throughput.of_step(output["flops"], seconds)
        if self.is_logged(step):
            metrics |= self.throughput.memory()
            self.window_ended = True
