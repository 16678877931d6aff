"""One rank of the closed-loop test: the tiny model drives three scenes, cut by tensor parallelism where there are more.

torchrun ... tests/training/closed_loop_ranks.py told.json      {"folder": "...", "tensor": 2, "out": "..."}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from framework.data.world_shards import WorldShards
from framework.evaluation.suite import MODEL, SIMULATION
from framework.parallel.sharding import whole
from framework.rollout.simulator import Simulator
from framework.training.closed_loop import ClosedLoop
from framework.training.placing import placed
from tests.parallel.ranks import make_task

if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(0)
    task = make_task(told["folder"], [], {"replicate": 1, "shard": 1, "tensor": told["tensor"]}, told["tensor"])
    model = placed(task.model, task.data.special_tokens, task.placement)
    model.fill()
    source = WorldShards(f"{told['folder']}/cache", 3, seed=4_000_000_000, workers=1)
    place = task.placement.data_rank()
    with whole(model), task.placement.as_trained():
        results, _ = ClosedLoop(Simulator(), source, steps=8).examine(model, task.data, place)
    if place.writes:
        Path(told["out"]).write_text(json.dumps(results[SIMULATION][MODEL]))
