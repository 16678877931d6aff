"""Which rank writes what. Names, shapes and meshes alone decide it, so that it is agreed on once, not at each save."""

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
class Share:
    """What `rank` of `size` writes of every checkpoint of the same tensors; the first rank keeps the `metadata` of the
    whole.
    """

    rank: int
    size: int
    plan: SavePlan
    metadata: Metadata | None

    @property
    def names(self) -> list[str]:
        """Tensors of which this rank writes its part."""
        return list(dict.fromkeys(item.index.fqn for item in self.plan.items))


def share_out(ranks: RankGroup, tensors: Mapping[str, Tensor]) -> Share:
    """Agree on who writes what of `tensors` (collective): of what several ranks hold, one writes it."""
    planner = _planner()
    planner.set_up_planner(dict(tensors), is_coordinator=ranks.first)
    wishes = ranks.gather(planner.create_local_plan)
    metadata: Metadata | None = None

    def merge() -> Sequence[SavePlan]:
        nonlocal metadata
        plans, metadata = planner.create_global_plan(wishes)
        return FileSystemWriter("").prepare_global_plan(plans)

    plan = ranks.scatter(merge)
    return Share(ranks.rank, ranks.size, plan, metadata)


def signature(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """What the plan of `tensors` depends on."""
    return {
        name: (tensor.shape, tensor.dtype)
        + ((tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else ())
        for name, tensor in tensors.items()
    }


def _planner() -> DefaultSavePlanner:
    return DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


class HeldTensors(DefaultSavePlanner):
    """Finds the data of a plan among `tensors` by name, each the part that this rank holds."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.tensors = tensors

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The local part of the tensor at `index`."""
        return local(self.tensors[index.fqn])
