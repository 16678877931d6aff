"""A profile of a few steps, where the recipe asks for one: a trace, a table and a snapshot of GPU memory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler
from torch.profiler import ProfilerActivity, profile, record_function

log = logging.getLogger(__name__)

STEP = "run_training_batch"
NAMES = {"train_dataloader_next": "data wait", "batch_to_device": "copy to device", STEP: "step"}
"""What Lightning's names of actions, or their last parts, are called in a trace. The module's own are `forward`,
`backward` and `optimizer`."""
RANGES = ("data wait", "copy to device", "step", "forward", "backward", "optimizer")
EVENTS = 1_000_000
"""Allocations of a memory snapshot, at most; older ones are forgotten."""


@dataclass(frozen=True)
class Profile:
    """Watch `steps` steps of every stage, after the first `skip` that an attempt trains, on `ranks`.

    `trace` writes a Chrome trace (for perfetto.dev) and a table of where the time went, with the shapes of operands
    where `shapes`, with lines of code where `stacks`; both cost time themselves. `memory` writes a snapshot of CUDA
    memory (for pytorch.org/memory_viz), also when it runs out in those steps; on a CPU there is none.
    """

    skip: int = 5
    steps: int = 3
    ranks: Sequence[int] = (0,)
    trace: bool = True
    memory: bool = False
    shapes: bool = False
    stacks: bool = False

    def __post_init__(self) -> None:
        if self.skip < 0 or self.steps < 1:
            raise ValueError(
                f"tracking.profile: skip {self.skip}, steps {self.steps}; skip at least 0, watch at least 1"
            )

    def profiler(self, folder: Path, stage: str, attempt: int) -> StepProfiler | None:
        """What Lightning's Trainer takes for `stage`, writing below `folder`; None on ranks that are not watched."""
        rank = int(os.environ.get("RANK", "0"))
        if rank not in self.ranks:
            return None
        return StepProfiler(self, folder / f"{stage}.attempt-{attempt}.rank-{rank}")


class StepProfiler(Profiler):
    """Names what Lightning and the module do in the watched steps, and writes `path`.trace.json.gz, `path`.txt and
    `path`.memory.pickle when they are over.
    """

    def __init__(self, options: Profile, path: Path) -> None:
        super().__init__()
        self.options = options
        self.path = path
        self.done = 0
        self.open: dict[str, record_function] = {}
        self.trace: profile | None = None
        self.watching = False

    def start(self, action_name: str) -> None:
        """An action begins; the fetching of its batch begins a step."""
        name = NAMES.get(action_name.rpartition(".")[2], action_name)
        if name == "data wait":
            if self.done == self.options.skip and not self.watching:
                self._begin()
            elif self.done >= self.options.skip + self.options.steps:
                self._end()
        if self.watching:
            self.open[action_name] = record_function(name)
            self.open[action_name].__enter__()

    def stop(self, action_name: str) -> None:
        """An action ends, maybe because memory ran out."""
        named = self.open.pop(action_name, None)
        if named is not None:
            named.__exit__(None, None, None)
        if action_name == STEP:
            self.done += 1
            if isinstance(sys.exception(), torch.OutOfMemoryError):
                self._end()

    def teardown(self, stage: str | None) -> None:
        """The stage is over, perhaps before the steps were."""
        self._end()

    def _begin(self) -> None:
        self.watching = True
        if self.options.memory and torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(max_entries=EVENTS)
        elif self.options.memory:
            log.warning("tracking.profile.memory: there is no CUDA device here, so there is no snapshot of its memory")
        if self.options.trace:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.trace = profile(
                activities=[ProfilerActivity.CPU, *cuda],
                record_shapes=self.options.shapes,
                with_stack=self.options.stacks,
            )
            self.trace.start()

    def _end(self) -> None:
        if not self.watching:
            return
        self.watching = False
        for named in reversed(self.open.values()):
            named.__exit__(None, None, None)
        self.open.clear()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.options.memory and torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(f"{self.path}.memory.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        if self.trace is not None:
            self.trace.stop()
            self.trace.export_chrome_trace(f"{self.path}.trace.json.gz")
            Path(f"{self.path}.txt").write_text(_table(self.trace))
            self.trace = None
        log.info("the profile of %d steps lies at %s.*", self.done - self.options.skip, self.path)


def _table(trace: profile) -> str:
    """Where the time of the named ranges went, and the operations that took most."""
    averages = trace.key_averages()
    ranges = {event.key: event for event in averages if event.key in RANGES}
    lines = [f"{'range':<16}{'times':>8}{'ms in all':>12}{'ms each':>12}"]
    for name in (name for name in RANGES if name in ranges):
        count, total = ranges[name].count, ranges[name].cpu_time_total / 1e3
        lines.append(f"{name:<16}{count:>8}{total:>12.2f}{total / count:>12.2f}")
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return "\n".join([*lines, "", averages.table(sort_by=order, row_limit=30, max_name_column_width=60)])
