"""What a training run prints before its first step: model, hardware, length, and the time that it will take."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from framework.model.language_action import LanguageActionModel
from framework.model.quantized_base import count_weights
from framework.parallel.parallelism import Parallelism, nodes, world_size
from framework.run.console import duration, show_rows
from framework.run.folder import is_first_rank
from framework.run.layout import METRICS_FILE
from framework.tracking.metrics_file import read_series
from framework.training.stages import StageRange


def show_header(
    model: LanguageActionModel, parallel: Parallelism, stages: Sequence[StageRange], evals: Sequence[str],
    folder: Path, step: int,
) -> None:  # fmt: skip
    """Print what will be trained and where, on the first rank.

    Args:
        model: The model, on its mesh.
        parallel: Devices, mesh and precision.
        stages: The curriculum.
        evals: Names of the evaluators.
        folder: The run's folder.
        step: Steps that earlier attempts trained.
    """
    if not is_first_rank():
        return
    end = stages[-1].end
    lengths = ", ".join(f"{each.name} {each.end - each.start}" for each in stages)
    show_rows(
        {
            "model": f"{type(model.backbone).__name__}, {_count(count_weights(model))} parameters",
            "hardware": f"{_devices(parallel)}, {parallel.precision.arithmetic} arithmetic",
            "length": f"{end} steps ({lengths})" + (f", continued at step {step}" if step else ""),
            "evals": ", ".join(evals) or "none",
            "time": _time(folder, end - step),
        }
    )


def _time(folder: Path, steps: int) -> str:
    """The time of the remaining steps at the median speed of earlier attempts, where there is one."""
    seconds = [value for _, value in read_series(folder / METRICS_FILE, "step_s")]
    if not seconds:
        return "known once each stage's first steps are measured"
    return f"about {duration(statistics.median(seconds) * steps)} of training, at the median speed of earlier attempts"


def _devices(parallel: Parallelism) -> str:
    if parallel.device.type == "cuda":
        kind = torch.cuda.get_device_name(parallel.device)
    else:
        kind = f"{platform.machine()} CPU, {_counted(torch.get_num_threads(), 'compute thread')} a rank"
    return f"{_counted(world_size(), 'rank')} on {_counted(nodes(), 'node')}, {kind}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _count(number: int) -> str:
    """2.1 M, 8.8 B."""
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
