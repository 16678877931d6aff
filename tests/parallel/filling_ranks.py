"""One rank of the filling tests: places a model on several meshes and compares what came out with the whole model."""

from __future__ import annotations

import copy
import functools
import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framework.model import weights
from framework.model.backbone import PretrainedBackbone, RandomBackbone
from framework.model.encoders.ego import EgoEncoder
from framework.model.language_action import LanguageActionModel
from framework.parallel.mesh import Mesh
from framework.parallel.parallelism import Parallelism, world_size
from framework.training.build_model import build_model

PRESET = Path(__file__).resolve().parents[2] / "conf" / "model" / "backbone" / "tiny.yaml"
TOKENS = [f"<|accel_{i}|>" for i in range(3)]


def architecture(tied: bool) -> dict[str, Any]:
    """The tiny one, deeper, so that no single tensor is much of it."""
    numbers: dict[str, Any] = copy.deepcopy(yaml.safe_load(PRESET.read_text())["architecture"])
    numbers["text"] |= {"num_hidden_layers": 8, "intermediate_size": 512}
    return numbers | {"tie_word_embeddings": tied}


class Bytes(TorchDispatchMode):
    """The most bytes that tensors with data took at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add((leaf.to_local() if isinstance(leaf, DTensor) else leaf).untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type == "meta" or storage in self.seen:
            return
        self.seen.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.free, storage.nbytes())

    def free(self, size: int) -> None:
        self.now -= size


@contextmanager
def counted_reads(found: list[int]) -> Iterator[None]:
    """Count the bytes that are read of safetensors."""

    class Source:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def get_slice(self, name: str) -> Any:
            return Source(self.inner.get_slice(name))

        def __getitem__(self, region: Any) -> Tensor:
            values: Tensor = self.inner[region]
            found[0] += values.nbytes
            return values

    before = weights.safe_open

    @contextmanager
    def opened(*args: Any) -> Iterator[Source]:
        with before(*args) as inner:
            yield Source(inner)

    weights.safe_open = opened  # type: ignore[attr-defined]
    yield
    weights.safe_open = before  # type: ignore[attr-defined]


def unsharded(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}


def compare(build: Callable[..., LanguageActionModel], alone: nn.Module, parallel: Parallelism) -> dict[str, Any]:
    """Whether placing gives the weights of the whole model, and the bytes that it took in addition to the whole's."""
    torch.manual_seed(0)
    read = [0]
    with Bytes() as held, counted_reads(read):
        model = build_model(build, TOKENS, parallel)
        model.init_weights()
    ours, theirs = unsharded(model), dict(alone.named_parameters())
    assert ours.keys() == theirs.keys()
    different = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    buffers = dict(alone.named_buffers())
    different += [name for name, value in model.named_buffers() if not torch.equal(value, buffers[name])]
    tied = model.backbone.get_output_embeddings().weight is model.backbone.get_input_embeddings().weight
    size = sum(parameter.nbytes for parameter in theirs.values())
    return {"different": different, "tied": tied, "held": held.most / size, "read": read[0] / size}


def compare_all(folder: Path, meshes: dict[str, dict[str, int]]) -> None:
    """Every kind of weights on every mesh; each rank writes `out.<rank>`."""
    results = {}
    kinds = {
        "random": RandomBackbone(architecture(tied=True)),
        "pretrained": PretrainedBackbone(f"{folder}/True", architecture(tied=True)),
        "pretrained untied": PretrainedBackbone(f"{folder}/False", architecture(tied=False)),
    }
    for kind, backbone in kinds.items():
        build = functools.partial(LanguageActionModel, backbone, {"ego": EgoEncoder})
        torch.manual_seed(0)
        alone = build(special_tokens=TOKENS)
        for name, mesh in meshes.items():
            parallel = Parallelism("cpu", world_size(), Mesh(**mesh), threads=1)
            results[f"{name} {kind}"] = compare(build, alone, parallel)
    (folder / f"out.{torch.distributed.get_rank()}").write_text(json.dumps(results))
