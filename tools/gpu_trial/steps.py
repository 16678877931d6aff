"""The steps of the trial, the worthiest first."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """What the trial measures."""

    module: str
    """The module of this package that measures it, imported by the step's own process."""
    function: str
    """The function, which takes a `Setting` and returns figures: plain values by name."""
    limit_s: float
    """Seconds after which it is given up."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the function takes in addition."""

    def load(self) -> Callable[[Any], dict[str, Any]]:
        """The function."""
        measure = getattr(importlib.import_module(f"tools.gpu_trial.{self.module}"), self.function)
        return functools.partial(measure, **self.arguments)


STEPS: Mapping[str, Step] = {
    "device": Step("device", "device_facts", 20),
    "parity": Step("parity", "parity", 40),
    "attention": Step("attention", "attention_paths", 45),
    "sft_0.6b_equal": Step("training", "throughput", 45, {"size": "0.6b", "unequal": False}),
    "sft_2b_unequal": Step("training", "throughput", 60, {"size": "2b-vl", "unequal": True}),
    "syncs": Step("syncs", "host_syncs", 30),
    "variants": Step("training", "variants", 60, {"compiled": False}),
    "dapo": Step("policy", "dapo_step", 75),
    "compilation_cold": Step("training", "compilation", 90),
    "memory": Step("memory", "planned_memory", 60),
    "fp8": Step("training", "variants", 90, {"compiled": True}),
    "sft_2b_equal": Step("training", "throughput", 60, {"size": "2b-vl", "unequal": False}),
    "sft_0.6b_unequal": Step("training", "throughput", 45, {"size": "0.6b", "unequal": True}),
    "checkpoint_stall": Step("stall", "checkpoint_stall", 75),
    "compilation_warm": Step("training", "compilation", 60),
    "collectives": Step("device", "collectives", 30),
}
