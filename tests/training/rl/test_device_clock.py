"""A step's phases are timed on the device, which works behind the host."""

import time

import pytest
import torch

from framework.training.rl.device_clock import DeviceClock


class Queue:
    """A device that works off `seconds` of work, of which the host only hands over."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing, "an event that does not time cannot be read"
        return Event(self)


class Event:
    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def record(self) -> None:
        self.at = self.queue.seconds

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


def test_work_counts_in_the_phase_that_hands_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setattr(torch.cuda, "Event", queue.event)
    clock = DeviceClock(torch.device("cuda"))
    queue.seconds += 2.0  # the host is done at once
    clock.end("update")
    queue.seconds += 0.5
    clock.end("sync")
    assert clock.times() == {"time/update_s": 2.0, "time/sync_s": 0.5}


def test_a_cpu_is_timed_by_the_host() -> None:
    clock = DeviceClock(torch.device("cpu"))
    time.sleep(0.02)
    clock.end("update")
    clock.end("sync")
    times = clock.times()
    assert 0.02 <= times["time/update_s"] < 1.0
    assert 0.0 <= times["time/sync_s"] < 0.01
