"""Profiles of a few steps: a trace, a table and a snapshot of GPU memory."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import MinLen
from lightning.pytorch.profilers import Profiler
from torch.profiler import ProfilerActivity, profile, record_function

from framework.recipe.component import component
from framework.recipe.ranges import Count, PositiveCount
from framework.run.layout import file_stem

log = logging.getLogger(__name__)

STEP = "run_training_batch"
NAMES = {"train_dataloader_next": "data wait", "batch_to_device": "copy to device", STEP: "step"}
"""Names in the trace for Lightning's actions, by the last part of the action. The module itself adds `forward`,
`backward` and `optimizer`.
"""
RANGES = ("data wait", "copy to device", "step", "forward", "backward", "optimizer")
EVENTS = 1_000_000
"""The most allocations in a memory snapshot; older ones are dropped."""


@component
@dataclass(frozen=True)
class Profile:
    """The steps of every stage to profile, and how."""

    skip: Count = 5
    """Steps of an attempt before the profile: the first compile and warm up."""
    steps: PositiveCount = 3
    """Steps in the profile."""
    ranks: Annotated[Sequence[Count], MinLen(1)] = (0,)
    """Ranks that write a profile."""
    trace: bool = True
    """Write a Chrome trace (for perfetto.dev) and a table of where the time went."""
    memory: bool = False
    """Write a snapshot of CUDA memory (for pytorch.org/memory_viz), also when memory runs out in these steps."""
    shapes: bool = False
    """Record the shapes of operands in the trace. Costs time."""
    stacks: bool = False
    """Record lines of code in the trace. Costs time."""

    def __post_init__(self) -> None:
        if self.skip < 0 or self.steps < 1:
            raise ValueError(
                f"tracking.profile: skip {self.skip}, steps {self.steps}; skip must be at least 0, steps at least 1"
            )

    def profiler(self, folder: Path, stage: str, attempt: int) -> StepProfiler | None:
        """The profiler of a stage, which writes below `folder`; None on ranks that are not profiled."""
        rank = int(os.environ.get("RANK", "0"))
        if rank not in self.ranks:
            return None
        return StepProfiler(self, folder / f"{file_stem(stage)}.attempt-{attempt}.rank-{rank}")


class StepProfiler(Profiler):
    """Names the actions of Lightning and the module in the profiled steps. Afterwards it writes `path`.trace.json.gz,
    `path`.txt and `path`.memory.pickle.
    """

    def __init__(self, options: Profile, path: Path) -> None:
        super().__init__()
        self.options = options
        self.path = path
        self.done = 0
        self.open: dict[str, record_function] = {}
        self.trace: profile | None = None
        self.profiling = False

    def start(self, action_name: str) -> None:
        """Start an action. Fetching a batch starts a step."""
        name = NAMES.get(action_name.rpartition(".")[2], action_name)
        if name == "data wait":
            if self.done == self.options.skip and not self.profiling:
                self._begin()
            elif self.done >= self.options.skip + self.options.steps:
                self._end()
        if self.profiling:
            self.open[action_name] = record_function(name)
            self.open[action_name].__enter__()

    def stop(self, action_name: str) -> None:
        """End an action, perhaps because memory ran out."""
        named = self.open.pop(action_name, None)
        if named is not None:
            named.__exit__(None, None, None)
        if action_name == STEP:
            self.done += 1
            if isinstance(sys.exception(), torch.OutOfMemoryError):
                self._end()

    def teardown(self, stage: str | None) -> None:
        """Write the profile if the stage ends within the profiled steps."""
        self._end()

    def _begin(self) -> None:
        self.profiling = True
        if self.options.memory and torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(max_entries=EVENTS)
        elif self.options.memory:
            log.warning("tracking.profile.memory: there is no CUDA device, hence no snapshot")
        if self.options.trace:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.trace = profile(
                activities=[ProfilerActivity.CPU, *cuda],
                record_shapes=self.options.shapes,
                with_stack=self.options.stacks,
            )
            self.trace.start()

    def _end(self) -> None:
        if not self.profiling:
            return
        self.profiling = False
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
        log.info("wrote the profile of %d steps to %s.*", self.done - self.options.skip, self.path)


def _table(trace: profile) -> str:
    """The time of the named ranges, and the most expensive operations."""
    averages = trace.key_averages()
    ranges = {event.key: event for event in averages if event.key in RANGES}
    lines = [f"{'range':<16}{'calls':>8}{'total ms':>12}{'mean ms':>12}"]
    for name in (name for name in RANGES if name in ranges):
        count, total = ranges[name].count, ranges[name].cpu_time_total / 1e3
        lines.append(f"{name:<16}{count:>8}{total:>12.2f}{total / count:>12.2f}")
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return "\n".join([*lines, "", averages.table(sort_by=order, row_limit=30, max_name_column_width=60)])
