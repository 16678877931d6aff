"""Which rank writes which tensors. Names, shapes and meshes alone decide it, so it is agreed on once, not per save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.tensor import DTensor

from framework.checkpoint.rank_group import RankGroup
from framework.checkpoint.tensors import local


@dataclass(frozen=True)
class RankPlan:
    """What one rank writes of every checkpoint of the same tensors."""

    rank: int
    """This rank."""
    size: int
    """Number of ranks."""
    plan: SavePlan
    """The items that this rank writes."""
    metadata: Metadata | None
    """Metadata of the whole checkpoint, on the first rank; None on the others."""

    @property
    def names(self) -> list[str]:
        """Names of the tensors of which this rank writes a part."""
        return list(dict.fromkeys(item.index.fqn for item in self.plan.items))


class PlanCache:
    """The plan of the tensors saved last; made again when names, shapes or meshes change."""

    def __init__(self) -> None:
        self._signature: dict[str, object] = {}
        self.rank_plan: RankPlan | None = None

    def update(self, ranks: RankGroup, tensors: Mapping[str, Tensor]) -> RankPlan:
        """The plan for `tensors`: the object returned last, where they have not changed (collective)."""
        signature = _signature(tensors)
        if self.rank_plan is None or signature != self._signature:
            self.rank_plan, self._signature = make_plan(ranks, tensors), signature
        return self.rank_plan


def make_plan(ranks: RankGroup, tensors: Mapping[str, Tensor]) -> RankPlan:
    """Agree on which rank writes what of `tensors` (collective). One rank writes what several hold."""
    planner = _planner()
    planner.set_up_planner(dict(tensors), is_coordinator=ranks.is_rank0)
    local_plans = ranks.gather(planner.create_local_plan)
    metadata: Metadata | None = None

    def merge() -> Sequence[SavePlan]:
        nonlocal metadata
        plans, metadata = planner.create_global_plan(local_plans)
        return FileSystemWriter("").prepare_global_plan(plans)

    plan = ranks.scatter(merge)
    return RankPlan(ranks.rank, ranks.size, plan, metadata)


def _signature(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Everything that the plan of `tensors` depends on."""
    return {
        name: (tensor.shape, tensor.dtype)
        + ((tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else ())
        for name, tensor in tensors.items()
    }


def _planner() -> DefaultSavePlanner:
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


class LocalTensorPlanner(DefaultSavePlanner):
    """Looks up the data of a plan by name among `tensors`: the part of each that this rank holds."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.tensors = tensors

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The local part of the tensor at `index`."""
        return local(self.tensors[index.fqn])
