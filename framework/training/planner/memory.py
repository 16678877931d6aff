"""A rank before a run: what it holds of the model, the moment of a step that needs most memory, and what it sends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.data.pipeline import DataPipeline
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from framework.model.tensor_plan import TENSOR_PLAN, refuse_adapters
from framework.parallel.communication import Unit, sent_in_step
from framework.parallel.fake_mesh import fake_mesh
from framework.parallel.parallelism import Parallelism
from framework.parallel.tensor_plan import apply_tensor_plan
from framework.tracking.devices import Device
from framework.training.planner.batches import SampleSize
from framework.training.planner.optimizer import optimizer_bytes
from framework.training.planner.trace import MicroBatchShape, Pass, rehearse
from framework.training.stages import Stage

CONTEXT = 1 << 30
"""Bytes that CUDA, its libraries' workspaces and NCCL's buffers take of a device before any tensor: about half each."""
FRAGMENTATION = 0.05
"""Share of what comes and goes within a step that the allocator cannot use."""
WORK, GATHERED, REDUCED = "at work: ", "gathered weights", "gradients being reduced"
WHOLE = "gradients of all micro-batches, whole"

Moment = tuple[str, dict[str, int]]
"""The part of the model that is at work, and bytes by what they are for."""


@dataclass(frozen=True, slots=True)
class Job:
    """Where a run is to be: `nodes` of `per_node` ranks, each with a device of this kind."""

    nodes: int
    per_node: int
    device: Device

    @property
    def world(self) -> int:
        """All ranks."""
        return self.nodes * self.per_node


@dataclass(frozen=True, slots=True)
class State:
    """Bytes that a rank holds of parameters, their gradients and the optimizer's state, the first rank's: where sizes
    do not divide, no other has more. `transient` is what the optimizer's step takes beside.
    """

    parameters: int
    gradients: int
    optimizer: int
    transient: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of a rank on a mesh of `sizes`, whose steps have `rounds` micro-batches of `shape` at most. `parts` are
    what is held at the `moment` that needs most, with the reserve. `sent` are bytes that it sends in a step, by
    dimension of the mesh, and `units` what FSDP gathers in turn.
    """

    sizes: tuple[int, int, int]
    rounds: int
    shape: MicroBatchShape
    state: State
    parts: Mapping[str, int]
    moment: str
    sent: Mapping[str, float]
    units: int

    @property
    def peak(self) -> int:
        """Bytes that the device must have."""
        return sum(self.parts.values())

    def remedies(self) -> Iterator[str]:
        """What to change, the largest part first."""
        replicate = self.sizes[0]
        state = self.state.parameters + self.state.gradients + self.state.optimizer
        spread = f"parallel.mesh.replicate=1 shards over all ranks: {state / replicate / 2**30:.1f} GiB of state each"
        more = (
            f"use more ranks (on twice as many, {state / 2 / 2**30:.1f} GiB of state each), or train fewer parameters"
        )
        smaller = "lower data.micro_batch, or data.pack where it is 1"
        advice = {
            **dict.fromkeys(("weights", "gradients", "optimizer"), spread if replicate > 1 else more),
            **dict.fromkeys((GATHERED, REDUCED), "raise parallel.mesh.tensor: it cuts gathered blocks, shard does not"),
            WHOLE: "raise data.micro_batch or the ranks until a step is one micro-batch: over several, FSDP adds up"
            " whole gradients",
            "activations": f"recompute more (parallel/recompute=full), or {smaller}",
            "batch": "lower data.global_batch, or use more ranks; of a reinforcement stage, data.micro_batch",
            f"{WORK}loss": f"lower the objective's chunk, or {smaller}",
        }
        largest = sorted(self.parts, key=lambda name: -self.parts[name])[:4]
        yield from dict.fromkeys(advice.get(name, smaller) for name in largest if name != "reserve")


def memory_plan(
    build: Callable[[], LanguageActionModel],
    stage: Stage,
    pipeline: DataPipeline,
    parallel: Parallelism,
    size: SampleSize,
    job: Job,
) -> MemoryPlan:
    """The plan of a stage, whose samples have `size`, on `job`. `build` makes the model on the meta device, with what
    trains chosen.
    """
    sizes = parallel.mesh.sizes(job.world, job.per_node)
    alone, data_ranks = job.world == 1, sizes[0] * sizes[1]
    gpu, precision = parallel.accelerator != "cpu", parallel.precision
    bf16 = precision.arithmetic == "bfloat16"
    model = build()
    parallel.prepare(model, model.blocks())
    shape, rounds = micro_batch_shape(model, pipeline, size, data_ranks)
    with _cut(model, sizes[2]):
        held = model_state(model, stage, shard=None if alone else sizes[1], foreach=alone and gpu)
        root = None if alone else Root.of(model, width=2 if bf16 else 4)
        sharded = fsdp_units(model, sizes[1], rounds)
        passes = rehearse(model, stage.traced_loss(), shape, bf16, autocast=precision.mixed and alone)
    moment, coming = max(moments(held, passes, root, rounds), key=lambda found: sum(found[1].values()))
    step, micro_batch = pipeline.global_batch / data_ranks * size.bytes, shape.rows * size.bytes
    coming["batch"] = stage.batch_bytes(step, micro_batch, shape.learned, model.vocabulary)
    parts = {"weights": held.parameters, "optimizer": held.optimizer, **coming}
    parts["reserve"] = CONTEXT * gpu + round(FRAGMENTATION * sum(coming.values()))
    sent = sent_in_step(sharded, sizes, rounds, 2 if bf16 else 4, sum(part.sent for part in passes))
    return MemoryPlan(sizes, rounds, shape, held, parts, moment, sent, len(sharded))


@contextmanager
def _cut(model: nn.Module, tensor: int) -> Iterator[None]:
    """The model is the first of `tensor` parts, of a mesh that is only imagined."""
    if tensor == 1:
        yield
        return
    refuse_adapters(model)
    with fake_mesh((1, 1, tensor)) as mesh:
        apply_tensor_plan(model, TENSOR_PLAN, mesh["tensor"])
        yield


def micro_batch_shape(
    model: LanguageActionModel, pipeline: DataPipeline, size: SampleSize, data_ranks: int
) -> tuple[MicroBatchShape, int]:
    """The largest micro-batch of a rank among `data_ranks` that train different samples, and how many it has a step.

    Rows that are not packed are taken to be as long as the longest sample that was previewed.
    """
    samples = max(1.0, pipeline.global_batch / data_ranks)
    length = min(pipeline.pack, math.ceil(samples * size.tokens)) if pipeline.pack else size.longest
    in_row = max(1.0, length / size.tokens) if pipeline.pack else 1.0
    all_rows = math.ceil(samples / in_row)
    rows = min(pipeline.micro_batch, all_rows)
    together = min(samples, rows * in_row)
    flash = "flash" in model.backbone.model.language_model.config._attn_implementation
    shape = MicroBatchShape(
        rows=rows,
        length=length,
        masked=(pipeline.pack is not None or rows > 1) and not flash,
        patches=_merged(together * size.patches, model),
        learned=math.ceil(together * size.supervised),
        sensors={name: (math.ceil(share * together), most) for name, (share, most) in size.sensors.items()},
    )
    return shape, math.ceil(all_rows / pipeline.micro_batch)


def fsdp_units(model: LanguageActionModel, shards: int, rounds: int) -> list[Unit]:
    """What FSDP gathers and reduces at once (see `framework.parallel.sharding.shard`), of a model that was cut for
    tensor parallelism, in steps of `rounds` micro-batches.

    A unit is gathered for each forward pass, and for the backward pass where that comes to it (something in it trains,
    or before it) or to the one after it, which fetches it, be it in vain. The last block is kept until then, and what
    is in no unit from a step's beginning to its end.
    """
    encoders, blocks = list(model.encoders.values()), model.blocks()
    own = {parameter for unit in (*encoders, *blocks) for parameter in unit.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter not in own]
    tower = set(model.backbone.model.visual.blocks)
    reached = _trains(model.backbone.model.visual.patch_embed)
    backward = [_trains(encoder) for encoder in encoders]
    for block in blocks:
        before = block not in tower and (any(map(_trains, encoders)) or any(p.requires_grad for p in rest))
        reached = reached or before or _trains(block)
        backward.append(reached)
    again = [*(here or after for here, after in itertools.pairwise(backward)), False]
    gathers = [rounds * (1 + twice) for twice in again]
    units = [
        Unit.of(unit.parameters(), shards, count) for unit, count in zip((*encoders, *blocks), gathers, strict=True)
    ]
    return [*units, Unit.of(rest, shards, 1)]


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _merged(patches: float, model: LanguageActionModel) -> int:
    """Patches come in squares that become one token."""
    square = model.backbone.config.vision_config.spatial_merge_size**2
    return math.ceil(patches / square) * square


def model_state(model: nn.Module, stage: Stage, shard: int | None, foreach: bool) -> State:
    """What a rank holds of a model that was cut for tensor parallelism and is to be sharded `shard` times (None: is
    whole, and not under FSDP).

    FSDP2 parts a parameter's first side, rounded up, and keeps each unit's rounding (`FSDPParam`).
    """

    def shape(parameter: Tensor) -> tuple[int, ...]:
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        return tuple(local.shape) if shard is None else (-(-local.shape[0] // shard), *local.shape[1:])

    def size(parameter: Tensor) -> int:
        return math.prod(shape(parameter)) * parameter.element_size()

    groups = parameter_groups(model, stage.lr, stage.weight_decay, stage.lr_factors)
    shaped = [({key: value for key, value in group.items() if key != "params"}, [shape(p) for p in group["params"]])
              for group in groups]  # fmt: skip
    dtype = groups[0]["params"][0].dtype
    optimizer, transient = optimizer_bytes(stage.optimizer, shaped, dtype, foreach)
    parameters = sum(map(size, model.parameters())) + sum(buffer.nbytes for buffer in model.buffers())
    gradients = sum(size(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return State(parameters, gradients, optimizer, transient)


@dataclass(frozen=True, slots=True)
class Root:
    """What is sharded as a whole, with the model and not with a block or an encoder: bytes of its gathered `weights`,
    which stay from the first use to the last, and of its gradients in float32, on their way to the shards
    (`reduction`). `whole` are all the model's gradients as they are added up over micro-batches, by each rank for
    itself. The model computes in numbers of `width` bytes.
    """

    width: int
    weights: int
    reduction: int
    whole: int

    @classmethod
    def of(cls, model: LanguageActionModel, width: int) -> Root:
        """Of a model that computes in numbers of `width` bytes."""
        units = [parameter for unit in (*model.blocks(), model.encoders) for parameter in unit.parameters()]
        trained = 4 * _numbers(model.parameters(), trained=True)
        return cls(
            width=width,
            weights=width * (_numbers(model.parameters()) - _numbers(units)),
            reduction=trained - 4 * _numbers(units, trained=True),
            whole=trained,
        )


def _numbers(parameters: Iterable[Tensor], trained: bool = False) -> int:
    """Numbers of a rank's parameters before they are sharded."""
    chosen = (parameter for parameter in parameters if parameter.requires_grad or not trained)
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in chosen)


def moments(held: State, passes: Sequence[Pass], root: Root | None, rounds: int) -> Iterator[Moment]:
    """What is held beside weights and optimizer, part by part, as the backward pass of a step's last micro-batch goes
    through `passes`; and after it. `root` is None where nothing is sharded.
    """
    kept = list(itertools.accumulate(part.kept for part in passes))
    for index, part in enumerate(passes):
        found = {"activations": kept[index], f"{WORK}{part.name}": part.working}
        if root is None:
            done = sum(other.gradients for other in passes[index:])
            yield part.name, {**found, "gradients": held.gradients if rounds > 1 else done}
        else:
            yield part.name, {**found, **_sharded(held, passes, index, root, rounds)}
    if root is not None:
        # The root's gradients are there twice for a moment: as they were computed, and as they are reduced.
        computed = sum(part.gradients for part in passes if not part.weights)
        reduced = {GATHERED: root.weights, REDUCED: computed + root.reduction}
        yield "reduction of the root", {"gradients": held.gradients, **reduced}
    yield "optimizer step", {"gradients": held.gradients, f"{WORK}optimizer": held.transient}


def _sharded(held: State, passes: Sequence[Pass], index: int, root: Root, rounds: int) -> dict[str, int]:
    """Weights and gradients beside a rank's shards, while the backward pass is at part `index`: the unit at work and
    the next to come are gathered; the gradients of the one before are being reduced.
    """
    part, later = passes[index], passes[index + 1 :]
    coming = next((other.weights for other in reversed(passes[:index]) if other.weights), 0)
    gathered = {GATHERED: root.weights + part.weights + coming}
    if rounds > 1:
        return {**gathered, "gradients": part.gradients, WHOLE: root.whole}
    units = [other for other in later if other.weights]
    trained = sum(other.gradients for other in passes)
    shards = held.gradients * sum(other.gradients for other in units) // max(1, trained)
    of_root = sum(other.gradients for other in later if not other.weights)
    reduced = units[0].gradients * 4 // root.width if units else 0
    return {**gathered, "gradients": shards + of_root + part.gradients, REDUCED: reduced}
