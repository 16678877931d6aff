"""What a micro-batch's two passes need in memory: the model's own parts, run on tensors with shapes and no data."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from framework.model.encoders.base import Encoder
from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy
from framework.parallel.communication import Sent
from framework.parallel.sequence import positions_of_rank


@dataclass(frozen=True, slots=True)
class MicroBatchShape:
    """`rows` of `length` positions, `masked` where they hold padding or several samples; `patches` of pictures;
    `learned` positions; and of each sensor, how many samples have it and their rows.
    """

    rows: int
    length: int
    masked: bool
    patches: int
    learned: int
    sensors: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Pass:
    """Bytes that part `name` of the model needs: `kept` from its forward to its backward pass; `working` at most beside
    these while one of them runs; `gradients` of its weights, as they come out of the backward pass; of its `weights`
    as it computes with them, where it is sharded as a unit of its own and not with what is left of the model; and what
    is `sent` to the other ranks of tensor parallelism.
    """

    name: str
    kept: int
    working: int
    gradients: int
    weights: int = 0
    sent: int = 0


class Allocations(TorchDispatchMode):
    """Counts the bytes of what operations allocate: `now` those still held, `most` those held at once. What there was
    before (`known`) does not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in known:
            self._seen.update(_storages(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count what came out."""
        result = func(*args, **(kwargs or {}))
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
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages of this rank behind a tensor, which may be one of several that make up a DTensor or the like."""
    several: Any = tensor
    if is_traceable_wrapper_subclass(several):
        for name in several.__tensor_flatten__()[0]:
            if isinstance(part := getattr(several, name), Tensor):
                yield from _storages(part)
    else:
        yield tensor.untyped_storage()


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(storage.nbytes() for tensor in tensors for storage in _storages(tensor))


def rehearse(
    model: LanguageActionModel, objective: CrossEntropy, shape: MicroBatchShape, bf16: bool, autocast: bool
) -> list[Pass]:
    """The passes of a micro-batch of `shape` through `model`, in the order of the forward pass.

    `model` is on the meta device, cut for tensor parallelism if it is to be, its blocks wrapped for recomputation; with
    `bf16` it computes in bfloat16, by `autocast` or with weights that were cast before. Compiled blocks are run
    uncompiled, which needs more, and attention as SDPA, which keeps what the flash kernels do. Leaves the model without
    data, in the type that it computes in.
    """
    weights_cast = bf16 and not autocast
    if weights_cast:
        model.to(torch.bfloat16)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if bf16 and autocast:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        stack.enter_context(_fused_attention(model))
        model.to_empty(device="cpu")
        return list(_Rehearsal(model, torch.bfloat16 if weights_cast else torch.float32).passes(objective, shape))


@contextmanager
def _fused_attention(model: LanguageActionModel) -> Iterator[None]:
    configs = [model.backbone.model.language_model.config, model.backbone.model.visual.config]
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "eager" if config._attn_implementation == "eager" else "sdpa"
    yield
    for config, implementation in zip(configs, before, strict=True):
        config._attn_implementation = implementation


class _Rehearsal:
    """Runs the parts one after another, each on fresh tensors of the shape that the one before would give."""

    def __init__(self, model: LanguageActionModel, stream: torch.dtype) -> None:
        self.model = model
        self.stream = stream
        self.units = {*model.blocks(), *model.encoders.values()}
        self.alike: dict[tuple[type, int, int], Pass] = {}

    def passes(self, objective: CrossEntropy, shape: MicroBatchShape) -> Iterator[Pass]:
        """See `rehearse`."""
        yield from self._encoders(shape)
        visual, language = self.model.backbone.model.visual, self.model.backbone.model.language_model
        if shape.patches:
            yield from self._vision(visual, shape.patches)
        trained = any(map(_trains, (visual, language.embed_tokens, self.model.encoders)))
        yield from self._language(language, shape, trained)
        yield self._loss(objective, shape.learned)

    def _encoders(self, shape: MicroBatchShape) -> Iterator[Pass]:
        for name, encoder in self.model.encoders.items():
            samples, rows = shape.sensors.get(name, (0, 0))
            if samples:
                values = torch.empty((samples, rows, cast(Encoder, encoder).channels))
                mask = torch.empty((samples, rows), dtype=torch.bool)
                yield self._pass(f"{name} encoder", encoder, encoder, values, mask)

    def _vision(self, visual: Any, patches: int) -> Iterator[Pass]:
        config = visual.config
        side = config.in_channels * config.temporal_patch_size * config.patch_size**2
        yield self._pass("patches", visual.patch_embed, visual.patch_embed, self._tensor(patches, side))
        trained = _trains(visual.patch_embed) or _trains(visual.pos_embed)
        angles = [torch.empty(patches, config.hidden_size // config.num_heads)] * 2
        for index, block in enumerate(visual.blocks):
            hidden = self._tensor(patches, config.hidden_size, trained=trained)
            # As one frame: what attention keeps does not depend on how patches are parted. The host knows lengths.
            call = functools.partial(block, cu_seqlens=np.array([0, patches]), position_embeddings=angles)
            yield self._pass(f"vision block {index}", block, call, hidden, known=angles)
            trained = trained or _trains(block)
        for merger in (visual.merger, *visual.deepstack_merger_list):
            yield self._pass("merger", merger, merger, self._tensor(patches, config.hidden_size, trained=trained))

    def _language(self, language: Any, shape: MicroBatchShape, trained: bool) -> Iterator[Pass]:
        size, width = (shape.rows, shape.length), language.config.hidden_size
        words = torch.empty(size, dtype=torch.int64)
        yield self._embedding(language.embed_tokens, words)
        angles = [self._tensor(*size, language.config.head_dim), self._tensor(*size, language.config.head_dim)]
        mask = torch.empty(shape.rows, 1, shape.length, shape.length, dtype=torch.bool) if shape.masked else None
        around = [*angles, words, *([] if mask is None else [mask])]
        yield Pass("mask and places", _size(around), 0, 0)
        own = (shape.rows, positions_of_rank(language.norm, shape.length))
        for index, block in enumerate(language.layers):
            hidden = self._tensor(*(own if index else size), width, trained=trained)
            call = functools.partial(block, position_embeddings=angles, attention_mask=mask, position_ids=words)
            yield self._pass(f"block {index}", block, call, hidden, known=around)
            trained = trained or _trains(block)
        yield self._pass("last norm", language.norm, language.norm, self._tensor(*own, width, trained=trained))
        if shape.patches and own != size:
            yield self._injections(shape.patches, size[1] // own[1])

    def _injections(self, patches: int, ranks: int) -> Pass:
        """Features of pictures are added after the language model's first blocks, by each of `ranks` to its positions:
        their gradients are then added up.
        """
        visual = self.model.backbone.model.visual
        numbers = patches // visual.config.spatial_merge_size**2 * visual.config.out_hidden_size
        reduced = numbers * self.stream.itemsize * len(visual.deepstack_merger_list) if _trains(visual) else 0
        return Pass("injections", 0, 0, 0, sent=round(2 * (ranks - 1) / ranks * reduced))

    def _embedding(self, embedding: nn.Module, words: Tensor) -> Pass:
        found = self._pass("embedding", embedding, embedding, words)
        if embedding.weight is not self.model.backbone.get_output_embeddings().weight:
            return found
        # The head's gradient is there already: this one is added to it.
        return replace(found, working=found.working + found.gradients, gradients=0)

    def _loss(self, objective: CrossEntropy, learned: int) -> Pass:
        head = self.model.backbone.get_output_embeddings()
        targets = torch.empty(learned, dtype=torch.int64)
        hidden = self._tensor(learned, self.model.backbone.config.text_config.hidden_size, trained=True)
        return self._pass("loss", head, lambda states: objective(states, self.model.head, targets).total, hidden)

    def _pass(
        self, name: str, module: nn.Module, call: Callable[..., Any], *inputs: Tensor, known: Iterable[Tensor] = ()
    ) -> Pass:
        """Both passes of one part. Where nothing trains in it or before it, what it makes is not kept for long. Of
        modules of a kind that keep as much, one is run backwards.
        """
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        with Allocations([*module.parameters(), *module.buffers(), *inputs, *known]) as counted, Sent() as traffic:
            outputs = [leaf for leaf in tree_leaves(call(*inputs)) if isinstance(leaf, Tensor)]
            trained = [output for output in outputs if output.requires_grad]
            kept = counted.now if trained else 0
            key = (type(module), counted.now, len(weights))
            if key not in self.alike:
                if trained:
                    torch.autograd.backward(trained, [torch.empty_like(output) for output in trained])
                gradients = _size(weight.grad for weight in weights if weight.grad is not None)
                working = max(0, counted.most - kept - gradients)
                unit = _size(module.parameters()) if module in self.units else 0
                self.alike[key] = Pass(name, kept, working, gradients, unit, traffic.total)
        for weight in weights:
            weight.grad = None
        return replace(self.alike[key], name=name)

    def _tensor(self, *size: int, trained: bool = False) -> Tensor:
        return torch.empty(size, dtype=self.stream, requires_grad=trained)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
