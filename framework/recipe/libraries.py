"""The ranges of numbers that components of libraries take, which declare none themselves."""

from __future__ import annotations

import ast
from typing import Any

from framework.recipe.annotation import is_number, misfit
from framework.recipe.signature import Located, read_module

RANGES = "framework.recipe.ranges"
"""The module in which the tables' ranges are looked up."""

OPTIMIZERS = {
    "lr": "LearningRate",
    "betas": "Decay",
    "eps": "Share",
    "weight_decay": "WeightDecay",
    "momentum": "Decay",
    "dampening": "Share",
    "alpha": "Decay",
    "rho": "Decay",
    "momentum_decay": "Share",
    "lr_decay": "Share",
    "initial_accumulator_value": "Weight",
    "lambd": "Weight",
    "t0": "Weight",
    "d": "PositiveWeight",
    "beta2_decay": "Finite",
    "etas": "PositiveWeight",
    "step_sizes": "PositiveWeight",
    "max_iter": "PositiveCount",
    "max_eval": "PositiveCount",
    "history_size": "PositiveCount",
    "tolerance_grad": "Weight",
    "tolerance_change": "Weight",
    "ns_coefficients": "Finite",
    "ns_steps": "PositiveCount",
}
SCHEDULES = {
    "num_warmup_steps": "Count",
    "num_training_steps": "PositiveCount",
    "num_decay_steps": "Count",
    "num_stable_steps": "Count",
    "num_cycles": "Weight",
    "power": "Weight",
    "timescale": "PositiveCount",
    "lr_end": "Share",
    "min_lr": "Share",
    "min_lr_rate": "Share",
    "min_lr_ratio": "Share",
    "last_epoch": "Count",
}
ARGUMENTS = {"torch.optim": OPTIMIZERS, "transformers.optimization": SCHEDULES}
"""The range of each argument, by the package that defines its component."""


def range_of(located: Located, argument: str) -> str | None:
    """The name of the range of a library's argument; None where no table has it."""
    for package, ranges in ARGUMENTS.items():
        if located.module == package or located.module.startswith(f"{package}."):
            return ranges.get(argument)
    return None


def library_misfit(located: Located, argument: str, value: Any) -> str | None:
    """Why a number in `value` is out of the range that the tables give the argument; None where none is."""
    name, source = range_of(located, argument), read_module(RANGES)
    if name is None or source is None:
        return None
    numbers = [each for each in (value if isinstance(value, list) else [value]) if is_number(each)]
    return next((wrong for each in numbers if (wrong := misfit(each, ast.Name(name), source))), None)
