"""Seconds of a step's phases on the device, which works behind the host."""

from __future__ import annotations

import itertools
import time

import torch


class DeviceClock:
    """Times phases that follow each other, from the device's reaching one end to its reaching the next.

    The host hands work to a GPU and goes on: its own clock gives a phase the time that handing over takes, and the work
    to whichever later phase waits. Here events in the device's queue mark the ends. They are read when the device is
    done, so that nothing waits for them. A CPU computes in place, and its marks are readings of the host's clock.

    Args:
        device: The device of the phases. The first phase begins here.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phases: list[str] = []
        self.marks = [self._mark()]

    def end(self, phase: str) -> None:
        """End `phase`; the next one begins here."""
        self.phases.append(phase)
        self.marks.append(self._mark())

    def times(self) -> dict[str, float]:
        """Seconds by metric name, `time/<phase>_s`. To be called once the device is past the last mark."""
        seconds = [_between(*pair) for pair in itertools.pairwise(self.marks)]
        return {f"time/{phase}_s": each for phase, each in zip(self.phases, seconds, strict=True)}

    def _mark(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Seconds from one mark to the next."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
    return float(start.elapsed_time(end)) / 1e3  # CUDA counts milliseconds
