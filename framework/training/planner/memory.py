"""Memory plan of a rank: its share of the model, the moment of a step that needs most memory, and what it sends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.data.pipeline import DataPipeline
from framework.data.render.packing import pack as pack_rows
from framework.model.language_action import LanguageActionModel
from framework.model.param_groups import parameter_groups
from framework.model.row_layout import SHARED_GRAIN
from framework.model.segments import LANGUAGE
from framework.model.tensor_plan import refuse_adapters
from framework.parallel.communication import FSDPUnit, bytes_sent
from framework.parallel.fake_mesh import fake_mesh
from framework.parallel.parallelism import Parallelism
from framework.parallel.tensor_plan import apply_tensor_plan
from framework.tracking.devices import Device
from framework.training.planner.batches import SampleStatistics
from framework.training.planner.optimizer import optimizer_bytes
from framework.training.planner.trace import MicroBatchShape, PassMemory, Traced, trace_micro_batch
from framework.training.stages import Stage

CONTEXT = 1 << 30
"""Bytes of a device that CUDA with its libraries' workspaces, and NCCL's buffers, take before any tensor: half each."""
FRAGMENTATION = 0.05
"""Share of the memory of a step's temporary tensors that the allocator loses to fragmentation."""
GRAIN = 128
"""Positions to which rows are rounded up, so that stages of nearly the same length share a trace."""
WORKSPACE, GATHERED, REDUCED = "workspace: ", "gathered weights", "gradients being reduced"
UNSHARDED = "gradients of all micro-batches, unsharded"

Moment = tuple[str, dict[str, int]]
"""The part of the model whose backward pass runs, and bytes by purpose."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices of a planned run."""

    nodes: int
    """Number of nodes."""
    per_node: int
    """Devices, and so ranks, per node."""
    device: Device
    """Kind of device."""

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.nodes * self.per_node


@dataclass(frozen=True, slots=True)
class RankState:
    """Bytes that the first rank holds between steps; where sizes do not divide, no other rank holds more."""

    parameters: int
    """Its shards of parameters, and all buffers."""
    gradients: int
    """Its shards of gradients."""
    optimizer: int
    """Its shards of the optimizer's state."""
    optimizer_workspace: int
    """Needed on top during the optimizer's step."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory and traffic of one rank in a step."""

    sizes: tuple[int, int, int]
    """Sizes of the mesh: replicate, shard, tensor."""
    micro_batches: int
    """Micro-batches per step, at most."""
    shape: MicroBatchShape
    """The largest micro-batch."""
    state: RankState
    """What the rank holds between steps."""
    parts: Mapping[str, int]
    """Bytes by purpose at the moment that needs most, with the reserve."""
    moment: str
    """The part of the model whose backward pass runs at that moment."""
    sent: Mapping[str, float]
    """Bytes that the rank sends in a step, by dimension of the mesh."""
    units: int
    """Number of FSDP units."""

    @property
    def peak(self) -> int:
        """Bytes that the device must provide."""
        return sum(self.parts.values())

    def remedies(self) -> Iterator[str]:
        """Advice on what to change, for the largest parts first."""
        replicate = self.sizes[0]
        state = self.state.parameters + self.state.gradients + self.state.optimizer
        shard_more = (
            f"parallel.mesh.replicate=1 shards over all ranks: {state / replicate / 2**30:.1f} GiB of state each"
        )
        scale_out = (
            f"use more ranks (on twice as many, {state / 2 / 2**30:.1f} GiB of state each), or train fewer parameters"
        )
        smaller = "lower data.micro_batch, or data.pack where it is 1"
        advice = {
            **dict.fromkeys(("weights", "gradients", "optimizer"), shard_more if replicate > 1 else scale_out),
            **dict.fromkeys((GATHERED, REDUCED), "raise parallel.mesh.tensor: it cuts gathered blocks, shard does not"),
            UNSHARDED: "raise data.micro_batch or the number of ranks until a step is one micro-batch: over several,"
            " FSDP accumulates unsharded gradients",
            "activations": f"recompute more (parallel/recompute=full), or {smaller}",
            "batch": "lower data.global_batch, or use more ranks; in an RL stage, data.micro_batch",
            f"{WORKSPACE}loss": f"lower the objective's chunk, or {smaller}",
        }
        largest = sorted(self.parts, key=lambda name: -self.parts[name])[:4]
        yield from dict.fromkeys(advice.get(name, smaller) for name in largest if name != "reserve")


def memory_plan(
    model: LanguageActionModel,
    stage: Stage,
    pipeline: DataPipeline,
    parallel: Parallelism,
    samples: SampleStatistics,
    hardware: Hardware,
    traced: Traced | None = None,
) -> MemoryPlan:
    """The memory plan of `stage` on `hardware`, for samples with the statistics `samples`.

    `model` is on the meta device, with `requires_grad` set as the stage trains it; it is left as the trace leaves it.
    `traced` holds what the plans of other stages have traced on the same hardware.
    """
    sizes = parallel.mesh.sizes(hardware.world, hardware.per_node)
    single, data_ranks = hardware.world == 1, sizes[0] * sizes[1]
    gpu, precision = parallel.accelerator != "cpu", parallel.precision
    bf16 = precision.arithmetic == "bfloat16"
    precision.cast(model)
    parallel.recompute.apply(model.blocks())  # compiled blocks are traced uncompiled
    with _tensor_parallel(model, sizes[2]):
        shape, micro_batches = micro_batch_shape(model, pipeline, samples, data_ranks, gpu, stage.answers_per_prompt)
        state = model_state(model, stage, None if single else sizes[1], single and gpu, "cuda" if gpu else "cpu")
        root = None if single else Root.of(model, width=2 if bf16 else 4)
        sharded = fsdp_units(model, sizes[1], micro_batches)
        passes = trace_micro_batch(
            model, stage.traced_loss(), shape, bf16, autocast=precision.mixed and single, traced=traced
        )
    peak_moments = moments(state, passes, root, micro_batches)
    moment, temporary = max(peak_moments, key=lambda each: sum(each[1].values()))
    in_step = pipeline.global_batch / data_ranks
    step, micro_batch = (count * samples.bytes for count in (in_step, min(pipeline.micro_batch, math.ceil(in_step))))
    temporary["batch"] = stage.batch_bytes(step, micro_batch, shape.learned, model.vocabulary)
    parts = {"weights": state.parameters, "optimizer": state.optimizer, **temporary}
    parts["reserve"] = CONTEXT * gpu + round(FRAGMENTATION * sum(temporary.values()))
    sent = bytes_sent(sharded, sizes, micro_batches, 2 if bf16 else 4, sum(part.sent for part in passes))
    return MemoryPlan(sizes, micro_batches, shape, state, parts, moment, sent, len(sharded))


@contextmanager
def _tensor_parallel(model: LanguageActionModel, tensor: int) -> Iterator[None]:
    """Cut the model for the first of `tensor` ranks of a fake mesh, which lives as long as the block."""
    if tensor == 1:
        yield
        return
    refuse_adapters(model)
    with fake_mesh((1, 1, tensor)) as mesh:
        apply_tensor_plan(model, model.family.tensor_plan, mesh["tensor"])
        model.row_grain = SHARED_GRAIN
        yield


def micro_batch_shape(
    model: LanguageActionModel,
    pipeline: DataPipeline,
    statistics: SampleStatistics,
    data_ranks: int,
    kernels: bool = True,
    answers: int = 1,
) -> tuple[MicroBatchShape, int]:
    """The largest micro-batch of one of `data_ranks` data-parallel ranks, and how many the rank has in a step.

    Rows that are not packed are taken to be as long as the longest sample of the statistics. Packed ones are those of
    samples as long as the stage's typically are. Several `answers` that share their prompt fill a row that is not
    packed, and do without flash attention. A recurrent model computes samples in rows of their own: packed ones without
    `kernels`, and answers always, each behind a copy of its prompt.
    """
    samples = max(1, math.ceil(pipeline.global_batch / data_ranks))
    pack = pipeline.pack if answers == 1 else None
    packed = [len(row) for row in pack_rows(statistics.typical_lengths(samples), pack)] if pack else []
    all_rows = len(packed) or samples
    rows = min(pipeline.micro_batch, all_rows)
    in_micro_batch = min(samples, rows * math.ceil(samples / all_rows))
    length = statistics.longest
    if pack and model.family.recurrent and not kernels:
        rows = in_micro_batch
    elif pack:
        length = min(pack, max(length, math.ceil(samples * statistics.tokens / all_rows)))
    if answers > 1 and model.family.recurrent:
        rows = in_micro_batch * answers
        length = math.ceil(length - statistics.supervised * (answers - 1) / answers)
    length = -(-length // GRAIN) * GRAIN
    length = math.ceil(-(-rows * length // model.row_grain) * model.row_grain / rows)  # all rows are laid out as one
    implementation = model.backbone.model.language_model.config._attn_implementation
    separate = model.family.recurrent and (answers > 1 or not kernels)
    flash = (implementation == LANGUAGE and not separate) or ("flash" in implementation and answers == 1)
    shape = MicroBatchShape(
        rows=rows,
        length=length,
        masked=(pack is not None or rows > 1) and not flash,
        patches=_round_patches(in_micro_batch * statistics.patches, model),
        learned=math.ceil(in_micro_batch * statistics.supervised),
        sensors={name: (math.ceil(share * in_micro_batch), most) for name, (share, most) in statistics.sensors.items()},
    )
    return shape, math.ceil(all_rows / pipeline.micro_batch)


def fsdp_units(model: LanguageActionModel, shards: int, micro_batches: int) -> list[FSDPUnit]:
    """The units that FSDP gathers and reduces (see `framework.parallel.sharding.shard`) of a model that was cut for
    tensor parallelism.

    A unit is gathered for each forward pass. It is gathered again for the backward pass when that pass reaches it
    (something trains in it or before it) or reaches the unit after it, which prefetches it. The last block stays
    gathered between the two passes, and what is in no unit stays so for the whole step.
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
    gathers = [micro_batches * (1 + twice) for twice in again]
    units = [
        FSDPUnit.of(unit.parameters(), shards, count) for unit, count in zip((*encoders, *blocks), gathers, strict=True)
    ]
    return [*units, FSDPUnit.of(rest, shards, 1)]


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _round_patches(patches: float, model: LanguageActionModel) -> int:
    """`patches`, rounded up to whole squares of patches that become one token."""
    square = model.backbone.config.vision_config.spatial_merge_size**2
    return math.ceil(patches / square) * square


def model_state(model: nn.Module, stage: Stage, shard: int | None, foreach: bool, device: str = "cpu") -> RankState:
    """What a rank on a `device` of this type holds of a model that was cut for tensor parallelism, sharded over `shard`
    ranks (None: no FSDP).

    FSDP2 cuts a parameter's first side, rounded up, and keeps each unit's padding (`FSDPParam`).
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
    whole = [[tuple(parameter.shape) for parameter in group["params"]] for group in groups]
    optimizer, workspace = optimizer_bytes(stage.optimizer, shaped, dtype, foreach, whole, shard or 1, device)
    parameters = sum(map(size, model.parameters())) + sum(buffer.nbytes for buffer in model.buffers())
    gradients = sum(size(parameter) for parameter in model.parameters() if parameter.requires_grad)
    return RankState(parameters, gradients, optimizer, workspace)


@dataclass(frozen=True, slots=True)
class Root:
    """The root FSDP unit: all parameters that belong to no block and no encoder."""

    width: int
    """Bytes per number in the type that the model computes in."""
    weights: int
    """Bytes of its gathered weights, which stay from first use to last."""
    reduction: int
    """Bytes of its gradients in float32, while they are reduced."""
    unsharded: int
    """Bytes of all the model's gradients in float32, as each rank accumulates them over micro-batches."""

    @classmethod
    def of(cls, model: LanguageActionModel, width: int) -> Root:
        """The root unit of a model that computes in numbers of `width` bytes."""
        units = [parameter for unit in (*model.blocks(), model.encoders) for parameter in unit.parameters()]
        trained = 4 * _elements(model.parameters(), trained=True)
        return cls(
            width=width,
            weights=width * (_elements(model.parameters()) - _elements(units)),
            reduction=trained - 4 * _elements(units, trained=True),
            unsharded=trained,
        )


def _elements(parameters: Iterable[Tensor], trained: bool = False) -> int:
    """Elements of a rank's parameters before they are sharded."""
    chosen = (parameter for parameter in parameters if parameter.requires_grad or not trained)
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in chosen)


def moments(state: RankState, passes: Sequence[PassMemory], root: Root | None, micro_batches: int) -> Iterator[Moment]:
    """Memory held in addition to weights and optimizer state, at each moment of a step that may be its peak.

    The moments are the backward pass of the last micro-batch, part by part, the reduction of the root unit and the
    optimizer's step. `root` is None without FSDP.
    """
    activations = list(itertools.accumulate(part.activations for part in passes))
    for index, part in enumerate(passes):
        parts = {"activations": activations[index], f"{WORKSPACE}{part.name}": part.workspace}
        if root is None:
            done = sum(other.gradients for other in passes[index:])
            yield part.name, {**parts, "gradients": state.gradients if micro_batches > 1 else done}
        else:
            yield part.name, {**parts, **_sharded(state, passes, index, root, micro_batches)}
    if root is not None:
        # The root's gradients exist twice for a moment: as they were computed and as they are reduced.
        computed = sum(part.gradients for part in passes if not part.weights)
        reduced = {GATHERED: root.weights, REDUCED: computed + root.reduction}
        yield "reduction of the root", {"gradients": state.gradients, **reduced}
    yield "optimizer step", {"gradients": state.gradients, f"{WORKSPACE}optimizer": state.optimizer_workspace}


def _sharded(
    state: RankState, passes: Sequence[PassMemory], index: int, root: Root, micro_batches: int
) -> dict[str, int]:
    """Gathered weights and gradients while the backward pass is at part `index`.

    The current unit and the next are gathered, and the gradients of the previous one are being reduced.
    """
    part, later = passes[index], passes[index + 1 :]
    prefetched = next((other.weights for other in reversed(passes[:index]) if other.weights), 0)
    gathered = {GATHERED: root.weights + part.weights + prefetched}
    if micro_batches > 1:
        return {**gathered, "gradients": part.gradients, UNSHARDED: root.unsharded}
    units = [other for other in later if other.weights]
    trained = sum(other.gradients for other in passes)
    shards = state.gradients * sum(other.gradients for other in units) // max(1, trained)
    of_root = sum(other.gradients for other in later if not other.weights)
    reduced = units[0].gradients * 4 // root.width if units else 0
    return {**gathered, "gradients": shards + of_root + part.gradients, REDUCED: reduced}
