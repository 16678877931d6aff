"""The memory planner compared with what ranks really held, mesh by mesh, and with torch's own tracker at the peak."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.model.freeze import set_trainable
from framework.model.language_action import LanguageActionModel
from framework.parallel.communication import bytes_sent
from framework.parallel.fake_mesh import fake_mesh
from framework.parallel.tensor_plan import apply_tensor_plan
from framework.training.planner.memory import RankState, Root, fsdp_units, model_state, moments
from framework.training.planner.trace import MicroBatchShape, trace_micro_batch
from framework.training.stages import Stage
from framework.training.tasks.train import Train
from tests.parallel.ranks import make_task
from tests.processes import run_ranks
from tests.training.planner import memory_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MESHES = {
    "single": {"replicate": 1, "shard": 1, "tensor": 1},
    "DDP 4": {"replicate": 4, "shard": 1, "tensor": 1},
    "FSDP 4": {"replicate": 1, "shard": 4, "tensor": 1},
    "HSDP 2 x 2": {"replicate": 2, "shard": 2, "tensor": 1},
    "TP 2": {"replicate": 1, "shard": 1, "tensor": 2},
    "FSDP 2 x TP 2": {"replicate": 1, "shard": 2, "tensor": 2},
}
VARIANTS = {
    "plain": ["data.micro_batch=8"],
    "recomputation": ["data.micro_batch=8", "parallel/recompute=full"],
    "accumulation": ["data.micro_batch=1"],
    "adapters": ["data.micro_batch=8", "model/adapters=lora"],
    "adapters alone": ["data.micro_batch=8", "model/adapters=lora", "curriculum.stages.broad.trainable=[]"],
}


MEASURED = [
    *((mesh, "plain") for mesh in MESHES),
    ("FSDP 2 x TP 2", "recomputation"),
    ("HSDP 2 x 2", "accumulation"),
    ("HSDP 2 x 2", "adapters"),
    ("FSDP 4", "adapters alone"),
    ("single", "adapters"),
]
SHARDED = [(mesh, variant) for mesh, variant in MEASURED if mesh != "single"]
HELD = [case for case in MEASURED if case[1] in ("plain", "adapters", "adapters alone")]
TRACKED = [case for case in SHARDED if case[1] != "accumulation"]  # the tracker bears one forward pass


def measure(folder: Path, ranks: int) -> None:
    """Have `ranks` processes take three steps on each mesh of theirs."""
    jobs = [
        {"mesh": sizes, "variant": VARIANTS[variant], "out": str(folder / f"{mesh}-{variant}")}
        for mesh, sizes in MESHES.items()
        if math.prod(sizes.values()) == ranks
        for variant in VARIANTS
        if (mesh, variant) in MEASURED
    ]
    run_ranks(ranks, functools.partial(memory_ranks.step_all, jobs))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks wrote what they held."""
    folder = tmp_path_factory.mktemp("memory")
    for ranks in (1, 2, 4):
        measure(folder, ranks)
    return folder


class Planned:
    """What the planner says of a mesh and variant, for the micro-batch that the ranks had."""

    def __init__(self, mesh: str, variant: str, found: dict[str, Any]) -> None:
        self.sizes = MESHES[mesh]
        self.world = math.prod(self.sizes.values())
        self.task: Train = make_task(VARIANTS[variant], self.sizes, self.world)
        self.stage: Stage = next(self.task.curriculum.stage_ranges()).stage
        self.shape, *self.shapes = map(_shape, (found["shape"], *found["shapes"]))

    def model(self) -> LanguageActionModel:
        """The model without data, as it is about to be distributed."""
        with torch.device("meta"):
            model: LanguageActionModel = self.task.model(special_tokens=self.task.data.special_tokens)
        set_trainable(model, self.stage.trainable)
        self.task.parallel.prepare(model, model.blocks())
        return model

    def state(self, model: LanguageActionModel) -> RankState:
        """What a rank holds between steps."""
        return model_state(model, self.stage, None if self.world == 1 else self.sizes["shard"], foreach=False)

    def peak(self) -> float:
        """Bytes at the moment that needs most, the batch's own tensors left out, as the tracker leaves them out."""
        model = self.model()
        cut = functools.partial(apply_tensor_plan, model, model.family.tensor_plan)
        with fake_mesh((1, 1, self.sizes["tensor"])) as mesh:
            if self.sizes["tensor"] > 1:
                cut(mesh["tensor"])
            held, root = self.state(model), Root.of(model, width=4)
            passes = trace_micro_batch(model, self.stage.traced_loss(), self.shape, bf16=False, autocast=False)
        most = max(sum(parts.values()) for _, parts in moments(held, passes, root, micro_batches=1))
        return held.parameters + held.optimizer + most

    def sent(self) -> dict[str, float]:
        """Bytes that the rank sends in the step whose micro-batches have `shapes`."""
        micro_batches, tensor = len(self.shapes), 0
        with fake_mesh((1, 1, self.sizes["tensor"])) as mesh:
            for shape in self.shapes:
                model = self.model()
                if self.sizes["tensor"] > 1:
                    apply_tensor_plan(model, model.family.tensor_plan, mesh["tensor"])
                units = fsdp_units(model, self.sizes["shard"], micro_batches)
                passes = trace_micro_batch(model, self.stage.traced_loss(), shape, bf16=False, autocast=False)
                tensor += sum(part.sent for part in passes)
        sizes = (self.sizes["replicate"], self.sizes["shard"], self.sizes["tensor"])
        return bytes_sent(units, sizes, micro_batches, width=4, tensor=tensor / micro_batches)


def _shape(found: dict[str, Any]) -> MicroBatchShape:
    return MicroBatchShape(**found | {"sensors": {k: tuple(v) for k, v in found["sensors"].items()}})


def ranks_of(folder: Path, mesh: str, variant: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{mesh}-{variant}.*.json"))]


@pytest.mark.guarantee(
    "Predicted memory is what ranks held, and predicted communication the bytes that collectives moved"
)
@pytest.mark.parametrize(("mesh", "variant"), HELD)
def test_parameters_gradients_and_optimizer_are_what_the_ranks_held(measured: Path, mesh: str, variant: str) -> None:
    ranks = ranks_of(measured, mesh, variant)
    assert len(ranks) == math.prod(MESHES[mesh].values())
    planned = Planned(mesh, variant, ranks[0])
    model = planned.model()
    with fake_mesh((1, 1, MESHES[mesh]["tensor"])) as device_mesh:
        if MESHES[mesh]["tensor"] > 1:
            apply_tensor_plan(model, model.family.tensor_plan, device_mesh["tensor"])
        held = planned.state(model)
    most = {name: max(rank[name] for rank in ranks) for name in ("parameters", "gradients", "optimizer")}
    assert held.parameters == pytest.approx(most["parameters"], rel=0.1)
    assert held.gradients == pytest.approx(most["gradients"], rel=0.1)
    assert held.optimizer == pytest.approx(most["optimizer"], rel=0.1)


@pytest.mark.parametrize(("mesh", "variant"), TRACKED)
def test_the_peak_is_that_of_torchs_own_tracker(measured: Path, mesh: str, variant: str) -> None:
    first = ranks_of(measured, mesh, variant)[0]  # uneven batches: each rank's peak follows from its own
    assert Planned(mesh, variant, first).peak() == pytest.approx(first["peak"], rel=0.1)


@pytest.mark.guarantee(
    "Predicted memory is what ranks held, and predicted communication the bytes that collectives moved"
)
@pytest.mark.parametrize(("mesh", "variant"), SHARDED)
def test_what_is_sent_is_what_the_ranks_collectives_moved(measured: Path, mesh: str, variant: str) -> None:
    first = ranks_of(measured, mesh, variant)[0]
    planned = Planned(mesh, variant, first).sent()
    assert planned == pytest.approx(first["sent"], rel=0.01, abs=2000), "token counts and norms are left out"
