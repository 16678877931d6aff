"""The ranges of the numbers that components take, as annotations: `steps: PositiveCount`.

`check` reads an argument's bounds from its annotation (`typing.Annotated`, with the `annotated-types` library) and
refuses every value outside of them, NaN and infinity always. The upper bounds lie far above any use: they catch slips,
such as a batch of 1e30. So do the lower bounds of what must be positive, such as a learning rate of 1e-30: no weight
moves by it. A range that a single component needs is written there.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

Count = Annotated[int, Interval(ge=0, le=1_000_000_000)]
"""A number of things, possibly none."""
PositiveCount = Annotated[int, Interval(ge=1, le=1_000_000_000)]
"""A number of things, at least one."""
Batch = Annotated[int, Interval(ge=1, le=1_000_000)]
"""Samples, scenes or prompts that are processed together."""
Tokens = Annotated[int, Interval(ge=1, le=1 << 20)]
"""A number of tokens in one sequence."""
Steps = Annotated[int, Interval(ge=1, le=10_000)]
"""States of a trajectory, or periods of an episode."""
Width = Annotated[int, Interval(ge=1, le=1 << 16)]
"""The features of a layer, or the cells of a grid along one side."""
Pixels = Annotated[int, Interval(ge=32, le=1 << 14)]
"""A side of an image; the backbone's smallest is 32."""
Decimals = Annotated[int, Interval(ge=0, le=9)]
"""Decimal places of a written number."""
Workers = Annotated[int, Interval(ge=0, le=1024)]
"""Processes that help another one; 0 for none."""
PerNode = Annotated[int, Interval(ge=1, le=1024)]
"""Devices, processes or threads of one node."""
Nodes = Annotated[int, Interval(ge=1, le=100_000)]
"""Nodes of a job."""
Minutes = Annotated[int, Interval(ge=1, le=525_600)]
"""A duration in minutes, up to a year."""
Port = Annotated[int, Interval(ge=1, le=65_535)]
"""A TCP port."""
Seed = Annotated[int, Interval(ge=0, le=(1 << 32) - 1)]
"""The seed of a random generator, in the range that NumPy and Lightning accept."""

Finite = Annotated[float, Interval(ge=-1e12, le=1e12)]
"""Any finite number."""
Share = Annotated[float, Interval(ge=0, le=1)]
"""A part of a whole."""
Weight = Annotated[float, Interval(ge=0, le=1e6)]
"""The weight of a term, or a factor; 0 switches it off."""
PositiveWeight = Annotated[float, Interval(ge=1e-9, le=1e6)]
"""The weight of a term, or a factor, that cannot be switched off."""
Deviation = Annotated[float, Interval(ge=0, le=1000)]
"""A standard deviation, in the unit of what varies; 0 for none."""
LearningRate = Annotated[float, Interval(ge=1e-12, le=10)]
"""The learning rate of an optimizer."""
WeightDecay = Annotated[float, Interval(ge=0, le=10)]
"""The decoupled weight decay of an optimizer; 0 for none."""
Decay = Annotated[float, Interval(ge=0, lt=1)]
"""The decay rate of a moving average."""

Seconds = Annotated[float, Interval(ge=1e-6, le=31_536_000)]
"""A duration in s, up to a year."""
Wait = Annotated[float, Interval(ge=0, le=31_536_000)]
"""A delay in s, up to a year; 0 for none."""
WholeSeconds = Annotated[int, Interval(ge=1, le=31_536_000)]
"""A duration in whole seconds, up to a year."""
Rate = Annotated[float, Interval(ge=1e-6, le=1000)]
"""A frequency in Hz."""
Metres = Annotated[float, Interval(ge=1e-6, le=10_000)]
"""A length in m."""
Gap = Annotated[float, Interval(ge=0, le=1000)]
"""A distance in m, possibly none."""
Coordinate = Annotated[float, Interval(ge=-1000, le=1000)]
"""A position in m along one axis of the ego frame."""
Speed = Annotated[float, Interval(ge=1e-6, le=1000)]
"""A speed in m/s."""
Acceleration = Annotated[float, Interval(ge=1e-6, le=100)]
"""The magnitude of an acceleration in m/s^2."""
Curvature = Annotated[float, Interval(ge=1e-9, le=10)]
"""The magnitude of a path's curvature in 1/m."""
