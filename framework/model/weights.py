"""Deferred initialization: a network is built on the meta device, sharded, materialized and then initialized.

No process ever holds the unsharded network, and the weights are the same numbers on every mesh.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.model.expert_files import Transposed, stack_experts, without_unused
from framework.model.families import family_of
from framework.model.lora import Adapter, adapter_parameters

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
CHUNK = 4096
"""Rows of an embedding that are read at a time to compute their mean."""

Region = tuple[slice, ...]
"""The part of an unsharded tensor that a rank holds."""


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Put the parameters of modules that are built inside on the meta device.

    Buffers, such as rotary frequencies, get their data.
    """

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # torch documents that a hook may return another parameter; the annotation does not allow it.
    hook = nn.modules.module.register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def added_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that a trained model may gain: those of adapters and of the action head."""
    head = {name for name, _ in model.named_parameters() if name.startswith("action_head.")}
    return head | set(adapter_parameters(model))


def materialize(model: nn.Module, device: torch.device) -> None:
    """Allocate this rank's shard of meta parameters on `device`, and move everything else there.

    Tied weights may be untied afterwards: tie them again.
    """
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))


def local_shard(parameter: Tensor) -> tuple[Tensor, Region]:
    """This rank's shard of a parameter, and its region in the unsharded one."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), tuple(slice(0, size) for size in parameter.shape)
    (chunk,) = parameter.__create_chunk_list__()  # as torch.distributed.checkpoint does
    region = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
    return parameter.to_local().detach(), region


@torch.no_grad()
def init_random(network: Any, seed: int) -> None:
    """Initialize a network of `transformers` as the library does, but with a generator per module.

    The generator's seed is a hash of `seed` and the module's name. A rank draws one unsharded module at a time and
    keeps its region. Adapters are left as they are. Raises `RuntimeError` for a parameter that the library leaves as it
    is.
    """
    owners: dict[str, Any] = {"": network}
    for name, module in network.named_modules():
        owner = owners[name] = module if hasattr(module, "_init_weights") else owners[name.rpartition(".")[0]]
        own = dict(module.named_parameters(recurse=False))
        if not own or isinstance(module, Adapter):
            continue
        unsharded = copy.copy(module)
        drawn = {key: nn.Parameter(torch.full(p.shape, torch.nan, device="cpu")) for key, p in own.items()}
        unsharded._parameters = {**module._parameters, **drawn}
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the devices, too, and before they are used note a traceback each time.
            torch.random.default_generator.manual_seed(
                int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8])
            )
            owner._init_weights(unsharded)  # each part's ranges are in its own configuration
            if any(bool(values.isnan().any()) for values in drawn.values()):
                _init_by_parent(network, owner, name, unsharded)
        for key, parameter in own.items():
            values, region = local_shard(parameter)
            values.copy_(drawn[key][region])


def _init_by_parent(network: nn.Module, owner: Any, name: str, unsharded: nn.Module) -> None:
    """Initialize a module whose parent does it (the router of Qwen3.5's experts)."""
    above, _, key = name.rpartition(".")
    parent = copy.copy(network.get_submodule(above))
    parent._modules = {**parent._modules, key: unsharded}
    if not parent._parameters:
        owner._init_weights(parent)
    left = [of for of, values in unsharded.named_parameters(recurse=False) if values.isnan().any()]
    if left:
        raise RuntimeError(f"{name}: transformers initializes no {', '.join(left)}")


@torch.no_grad()
def load_pretrained(network: Any, folder: Path, known: int | None = None) -> None:
    """Load the safetensors of a Hugging Face `folder` into `network`; a rank reads only its region of each tensor.

    Adapters are left as they are. The file may have fewer rows of token embeddings than the network: rows from `known`
    on (None: from the end of the file's) get the mean of the rows before. Experts may be one tensor of a layer, in
    either order of its sides where the family says so, or tensors of their own. Raises `ValueError` with the names of
    tensors that are missing, unexpected or of another shape.
    """
    family = family_of(network.config.model_type)
    with ExitStack() as stack:
        files = {name: stack.enter_context(safe_open(folder / file, "pt")) for file, name in _files(folder)}
        sources = {key: file.get_slice(key) for file in files.values() for key in file.keys()}  # noqa: SIM118
        sources = stack_experts(without_unused(sources, family, folder), folder)
        pairs = adapter_parameters(network)
        parameters = {name: parameter for name, parameter in network.named_parameters() if name not in pairs}
        _check_names(network, parameters, sources, folder)
        embeddings = {id(layer.weight) for layer in _token_layers(network)}
        for name, parameter in parameters.items():
            source = sources[name]
            if family.is_transposed(name) and source.get_shape() != list(parameter.shape):
                source = Transposed(source)
            values, region = local_shard(parameter)
            rows = source.get_shape()[0]
            if id(parameter) in embeddings:
                _read_embeddings(source, values, region, min(rows, known or rows))
            elif source.get_shape() != list(parameter.shape):
                shapes = f"{tuple(source.get_shape())}, the recipe's has {tuple(parameter.shape)}"
                raise ValueError(f"{folder}: {name} has {shapes}; choose the preset of this checkpoint")
            elif values.numel():
                values.copy_(source[region])


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    index = folder / INDEX
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {SINGLE}
    yield from ((name, name) for name in sorted(names))


def _check_names(
    network: nn.Module, parameters: Mapping[str, Tensor], sources: Mapping[str, Any], folder: Path
) -> None:
    missing = sorted(set(parameters) - set(sources))
    tied = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    unexpected = sorted(set(sources) - tied)
    if missing or unexpected:
        faults = [f"lacks {', '.join(missing[:8])}"] if missing else []
        faults += [f"also has {', '.join(unexpected[:8])}"] if unexpected else []
        raise ValueError(f"{folder}: is not of the recipe's architecture: {'; '.join(faults)}")


def _token_layers(network: Any) -> tuple[nn.Module, nn.Module]:
    return network.get_input_embeddings(), network.get_output_embeddings()


def _read_embeddings(source: Any, values: Tensor, region: Region, known: int) -> None:
    """Read the rows up to `known`; the rows from there on get their mean."""
    rows, columns = region
    old = max(0, min(rows.stop, known) - rows.start)
    if old and values.numel():
        values[:old].copy_(source[rows.start : rows.start + old, columns])
    if old < len(values):
        chunks = (source[start : min(start + CHUNK, known), columns] for start in range(0, known, CHUNK))
        values[old:] = (sum(chunk.double().sum(dim=0) for chunk in chunks) / known).to(values.dtype)
