"""One rank of the closed-loop test: the tiny model drives three scenes, cut by tensor parallelism if there are more."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from framework.data.sources.world import WorldShards
from framework.evaluation.results import MODEL, SIMULATION
from framework.parallel.sharding import unsharded
from framework.simulation.simulator import Simulator
from framework.training.build_model import build_model
from framework.training.evaluators.closed_loop import ClosedLoopEvaluator
from tests.parallel.ranks import make_task


def drive(folder: str, tensor: int, out: Path) -> None:
    """Drive, and write down what was measured."""
    torch.manual_seed(0)
    task = make_task([], {"replicate": 1, "shard": 1, "tensor": tensor}, tensor)
    model = build_model(task.model, task.data.special_tokens, task.parallel)
    model.init_weights()
    source = WorldShards(f"{folder}/cache", 3, seed=4_000_000_000, workers=1)
    dp_rank = task.parallel.data_rank()
    with unsharded(model), task.parallel.as_trained():
        results, _ = ClosedLoopEvaluator(Simulator(), source, steps=8).evaluate(model, task.data, dp_rank)
    if dp_rank.is_writer:
        out.write_text(json.dumps(results[SIMULATION][MODEL]))
