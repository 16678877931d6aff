"""Memory trace: what the two passes of a micro-batch need in memory.

The model's own modules run on fake tensors, which have shapes and no data.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from framework.model.encoders.base import Encoder
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy
from framework.parallel.communication import CollectiveCounter
from framework.parallel.sequence import positions_of_rank
from framework.training.planner.fake_mode import StaticFakeTensorMode


@dataclass(frozen=True, slots=True)
class MicroBatchShape:
    """The sizes of a micro-batch that its memory depends on."""

    rows: int
    """Rows of token ids."""
    length: int
    """Positions per row."""
    masked: bool
    """Whether rows hold padding or several samples, which takes an attention mask."""
    patches: int
    """Image patches of all rows."""
    learned: int
    """Supervised positions of all rows."""
    sensors: Mapping[str, tuple[int, int]]
    """By sensor: the samples that have it, and the rows (points, boxes, states) of each."""


@dataclass(frozen=True, slots=True)
class PassMemory:
    """Bytes that one part of the model needs in its forward and backward pass."""

    name: str
    """Name of the part."""
    activations: int
    """Kept from the forward to the backward pass."""
    workspace: int
    """Needed on top of these, at most, while either pass runs."""
    gradients: int
    """Gradients of the part's weights, in the type in which the backward pass makes them."""
    weights: int = 0
    """Gathered weights of a part that is an FSDP unit of its own, in the type it computes in; else 0."""
    sent: int = 0
    """Sent to the other ranks of the tensor-parallel group."""


Traced = dict[Hashable, PassMemory]
"""Passes by the `signature` of their module and inputs. It holds for one kind of precision and one mesh."""


class Allocations(TorchDispatchMode):
    """Counts the bytes that operations allocate: `current` is what is held now, `peak` the most that was held at once.

    Args:
        known: Tensors that existed before and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in known:
            self._seen.update(_storages(tensor))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing compiles this mode, so its operations need no guard against that."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count its outputs."""
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # most calls ask no more
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor | Sequence):
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                for storage in _storages(leaf):
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.current -= size


def _storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """This rank's storages behind a tensor. A wrapper such as a DTensor may have several."""
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        for name in wrapper.__tensor_flatten__()[0]:
            if isinstance(part := getattr(wrapper, name), Tensor):
                yield from _storages(part)
    else:
        yield tensor.untyped_storage()


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(storage.nbytes() for tensor in tensors for storage in _storages(tensor))


def trace_micro_batch(
    model: LanguageActionModel,
    objective: CrossEntropy,
    shape: MicroBatchShape,
    bf16: bool,
    autocast: bool,
    traced: Traced | None = None,
) -> list[PassMemory]:
    """The passes of a micro-batch of `shape` through all parts of `model`, in the order of the forward pass.

    `model` is on the meta device, already cut for tensor parallelism, with its blocks wrapped for recomputation. With
    `bf16` it computes in bfloat16, by `autocast` or with weights that were cast before. Compiled blocks run uncompiled,
    which needs more memory, and attention runs as SDPA, which keeps what the flash kernels keep. Of modules that are
    alike only the first runs, and none that is in `traced`, to which the others are added. The model is left without
    data, in the type that it computes in.
    """
    weights_cast = bf16 and not autocast
    if weights_cast:
        model.to(torch.bfloat16)
    with ExitStack() as stack:
        stack.enter_context(StaticFakeTensorMode())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if bf16 and autocast:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        stack.enter_context(_fused_attention(model))
        stream = torch.bfloat16 if weights_cast else torch.float32
        return list(_Tracer(model, stream, {} if traced is None else traced).passes(objective, shape))


@contextmanager
def _fused_attention(model: LanguageActionModel) -> Iterator[None]:
    configs = [model.backbone.model.language_model.config, model.backbone.model.visual.config]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "eager" if config._attn_implementation == "eager" else "sdpa"
    yield
    for config, implementation in zip(configs, before, strict=True):
        config._attn_implementation = implementation


class _Tracer:
    """Runs the parts one after another, each on new tensors of the shape that the part before outputs."""

    def __init__(self, model: LanguageActionModel, stream: torch.dtype, traced: Traced) -> None:
        self.model = model
        self.stream = stream
        self.units = {*model.blocks(), *model.encoders.values()}
        self.tied = model.backbone.get_input_embeddings().weight is model.backbone.get_output_embeddings().weight
        self.traced = traced
        self.cut = any(isinstance(weight, DTensor) for weight in model.parameters())

    def passes(self, objective: CrossEntropy, shape: MicroBatchShape) -> Iterator[PassMemory]:
        """See `trace_micro_batch`."""
        yield from self._encoders(shape)
        visual, language = self.model.backbone.model.visual, self.model.backbone.model.language_model
        if shape.patches:
            yield from self._vision(visual, shape.patches)
        trained = any(map(_trains, (visual, language.embed_tokens, self.model.encoders)))
        yield from self._language(language, shape, trained)
        yield self._loss(objective, shape.learned)

    def _encoders(self, shape: MicroBatchShape) -> Iterator[PassMemory]:
        for name, encoder in self.model.encoders.items():
            samples, rows = shape.sensors.get(name, (0, 0))
            if samples:
                values = torch.empty((samples, rows, cast(Encoder, encoder).channels))
                mask = torch.empty((samples, rows), dtype=torch.bool)
                yield self._pass(f"{name} encoder", encoder, encoder, values, mask)

    def _vision(self, visual: Any, patches: int) -> Iterator[PassMemory]:
        config = visual.config
        side = config.in_channels * config.temporal_patch_size * config.patch_size**2
        yield self._pass("patches", visual.patch_embed, visual.patch_embed, self._tensor(patches, side))
        trained = _trains(visual.patch_embed) or _trains(visual.pos_embed)
        angles = [torch.empty(patches, config.hidden_size // config.num_heads)] * 2
        for index, block in enumerate(visual.blocks):
            hidden = self._tensor(patches, config.hidden_size, trained=trained)
            # As one frame: what attention keeps does not depend on the frames. The host knows their lengths.
            call = functools.partial(block, cu_seqlens=np.array([0, patches]), position_embeddings=angles)
            yield self._pass(f"vision block {index}", block, call, hidden, known=angles)
            trained = trained or _trains(block)
        for merger in (visual.merger, *_injected(visual)):
            hidden = self._tensor(patches, config.hidden_size, trained=trained)
            yield self._pass("merger", merger, merger, hidden)

    def _language(self, language: Any, shape: MicroBatchShape, trained: bool) -> Iterator[PassMemory]:
        size, width = (shape.rows, shape.length), language.config.hidden_size
        words = torch.empty(size, dtype=torch.int64)
        yield self._embedding(language.embed_tokens, words)
        turned = 2 * len(language.rotary_emb.inv_freq)
        angles = [self._tensor(*size, turned), self._tensor(*size, turned)]
        mask = torch.empty(shape.rows, 1, shape.length, shape.length, dtype=torch.bool) if shape.masked else None
        padding = torch.empty(size, dtype=torch.bool) if shape.masked and self.model.family.recurrent else None
        around = [*angles, words, *(each for each in (mask, padding) if each is not None)]
        yield PassMemory("mask and positions", _size(around), 0, 0)
        own = (shape.rows, positions_of_rank(language.norm, shape.length))
        for index, block in enumerate(language.layers):
            hidden = self._tensor(*(own if index else size), width, trained=trained)
            seen = padding if hasattr(block, "linear_attn") else mask
            call = functools.partial(block, position_embeddings=angles, attention_mask=seen, position_ids=words)
            yield self._pass(f"block {index}", block, call, hidden, known=around)
            trained = trained or _trains(block)
        yield self._pass("last norm", language.norm, language.norm, self._tensor(*own, width, trained=trained))
        if shape.patches and own != size and _injected(self.model.backbone.model.visual):
            yield self._injections(shape.patches, size[1] // own[1])

    def _injections(self, patches: int, ranks: int) -> PassMemory:
        """Image features are added after the language model's first blocks, by each of `ranks` to its positions; their
        gradients are summed over the ranks.
        """
        visual = self.model.backbone.model.visual
        numbers = patches // visual.config.spatial_merge_size**2 * visual.config.out_hidden_size
        reduced = numbers * self.stream.itemsize * len(_injected(visual)) if _trains(visual) else 0
        return PassMemory("injections", 0, 0, 0, sent=round(2 * (ranks - 1) / ranks * reduced))

    def _embedding(self, embedding: nn.Module, words: Tensor) -> PassMemory:
        result = self._pass("embedding", embedding, embedding, words)
        if not self.tied:
            return result
        # The tied head's gradient exists already; this one is added to it.
        return replace(result, workspace=result.workspace + result.gradients, gradients=0)

    def _loss(self, objective: CrossEntropy, learned: int) -> PassMemory:
        head = self.model.backbone.get_output_embeddings()
        targets = torch.empty(learned, dtype=torch.int64)
        hidden = self._tensor(learned, self.model.backbone.config.text_config.hidden_size, trained=True)

        def total(states: Tensor) -> Tensor:
            return objective(states, self.model.head, targets).total

        return self._pass("loss", head, total, hidden, settings=(objective.chunk, objective.label_smoothing))

    def _pass(
        self,
        name: str,
        module: nn.Module,
        call: Callable[..., Any],
        *inputs: Tensor,
        known: Sequence[Tensor] = (),
        settings: Hashable = None,
    ) -> PassMemory:
        """Trace both passes of one part. Where nothing trains in it or before it, nothing is kept for the backward
        pass.

        Of several modules with the same signature only the first is run.
        """
        key = (signature(module, (*inputs, *known)), settings)
        if key not in self.traced:
            self.traced[key] = self._run(name, module, call, inputs, known)
        return replace(self.traced[key], name=name)

    def _run(
        self, name: str, module: nn.Module, call: Callable[..., Any], inputs: Iterable[Tensor], known: Iterable[Tensor]
    ) -> PassMemory:
        module.to_empty(device="cpu")
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        traffic = CollectiveCounter()
        with (
            Allocations([*module.parameters(), *module.buffers(), *inputs, *known]) as counted,
            traffic if self.cut else nullcontext(),  # watching every operation takes time
        ):
            outputs = [leaf for leaf in tree_leaves(call(*inputs)) if isinstance(leaf, Tensor)]
            trained = [output for output in outputs if output.requires_grad]
            activations = counted.current if trained else 0
            if trained:
                torch.autograd.backward(trained, [torch.empty_like(output) for output in trained])
        gradients = _size(weight.grad for weight in weights if weight.grad is not None)
        workspace = max(0, counted.peak - activations - gradients)
        unit = _size(module.parameters()) if module in self.units else 0
        for weight in weights:
            weight.grad = None
        return PassMemory(name, activations, workspace, gradients, unit, traffic.total)

    def _tensor(self, *size: int, trained: bool = False) -> Tensor:
        return torch.empty(size, dtype=self.stream, requires_grad=trained)


def signature(module: nn.Module, inputs: Iterable[Tensor]) -> Hashable:
    """All that the memory of a module's passes depends on: its class, its tensors with their cut over ranks and whether
    they train, whether it is recomputed, and its inputs."""

    def facts(tensor: Tensor) -> Hashable:
        cut = str(getattr(tensor, "placements", None))
        return tuple(tensor.shape), tensor.dtype, tensor.requires_grad, cut

    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    named = tuple((name, facts(tensor)) for name, tensor in tensors)
    return type(module), "forward" in vars(module), named, tuple(map(facts, inputs))


def _injected(visual: Any) -> Sequence[nn.Module]:
    """The mergers of features that are added to the language model's first blocks, where the family has any."""
    return tuple(getattr(visual, "deepstack_merger_list", ()))


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
