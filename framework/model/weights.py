"""Weights that come last: a network is built without any, cut over ranks, and every rank fills in what it holds.

So no process ever holds the whole network, and a rank's weights are the same numbers on every mesh.
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

from framework.model.lora import Adapter, adapter_parameters

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PIECE = 4096
"""Rows of an embedding that are read at a time to find their mean."""

Region = tuple[slice, ...]


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Modules that are made inside get parameters with shapes and no data (on the meta device); buffers, such as rotary
    frequencies, have theirs.
    """

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # torch documents that a hook may return another parameter; its annotation knows of none.
    hook = nn.modules.module.register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def materialize(model: nn.Module, device: torch.device) -> None:
    """Room on `device` for what this rank holds of parameters without data; everything else is moved there.

    Weights that were one may be two afterwards: tie them again.
    """
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))


def held(parameter: Tensor) -> tuple[Tensor, Region]:
    """What this rank holds of a parameter, and which region of the whole that is."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), tuple(slice(0, size) for size in parameter.shape)
    (chunk,) = parameter.__create_chunk_list__()  # how torch.distributed.checkpoint asks
    region = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
    return parameter.to_local().detach(), region


@torch.no_grad()
def draw(network: Any, seed: int) -> None:
    """Initialise a network of `transformers` as it would itself, each module from a generator of its own, seeded by
    `seed` and the module's name. A rank draws one module at a time and keeps its region. Adapters stay as they are.
    """
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or isinstance(module, Adapter):
            continue
        whole = copy.copy(module)
        emptied = {key: nn.Parameter(torch.empty(p.shape, device="cpu")) for key, p in own.items()}
        whole._parameters = {**module._parameters, **emptied}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]))
            network._init_weights(whole)
        for key, parameter in own.items():
            values, region = held(parameter)
            values.copy_(emptied[key][region])


@torch.no_grad()
def read(network: nn.Module, folder: Path, known: int | None = None) -> None:
    """Fill `network` from the safetensors of a Hugging Face `folder`: of each tensor, a rank reads its region. Adapters
    stay as they are.

    The file may have fewer rows of word embeddings; rows from `known` on (None: from where the file ends) get the mean
    of those before. Raises `ValueError` that names what the folder lacks, has beside, or has in another shape.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(safe_open(folder / file, "pt")) for file, name in _files(folder)}
        places = {key: file for file in files.values() for key in file.keys()}  # noqa: SIM118
        pairs = adapter_parameters(network)
        parameters = {name: parameter for name, parameter in network.named_parameters() if name not in pairs}
        _check_names(network, parameters, places, folder)
        words = {id(layer.weight) for layer in _word_layers(network)}
        for name, parameter in parameters.items():
            source = places[name].get_slice(name)
            values, region = held(parameter)
            rows = source.get_shape()[0]
            if id(parameter) in words:
                _read_words(source, values, region, min(rows, known or rows))
            elif source.get_shape() != list(parameter.shape):
                shapes = f"{tuple(source.get_shape())}, the recipe's has {tuple(parameter.shape)}"
                raise ValueError(f"{folder}: {name} has {shapes}; choose the preset of this checkpoint")
            elif values.numel():
                values.copy_(source[region])


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    index = folder / INDEX
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {SINGLE}
    yield from ((name, name) for name in sorted(names))


def _check_names(network: nn.Module, parameters: Mapping[str, Tensor], places: Mapping[str, Any], folder: Path) -> None:
    lacks = sorted(set(parameters) - set(places))
    tied = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    beside = sorted(set(places) - tied)
    if lacks or beside:
        found = [f"lacks {', '.join(lacks[:8])}"] * bool(lacks) + [f"has besides {', '.join(beside[:8])}"] * bool(
            beside
        )
        raise ValueError(f"{folder}: is not of the recipe's architecture: {'; '.join(found)}")


def _word_layers(network: Any) -> tuple[nn.Module, nn.Module]:
    return network.get_input_embeddings(), network.get_output_embeddings()


def _read_words(source: Any, values: Tensor, region: Region, known: int) -> None:
    """Rows up to `known` as they are, the mean of them from there on."""
    rows, columns = region
    old = max(0, min(rows.stop, known) - rows.start)
    if old and values.numel():
        values[:old].copy_(source[rows.start : rows.start + old, columns])
    if old < len(values):
        pieces = (source[at : min(at + PIECE, known), columns] for at in range(0, known, PIECE))
        values[old:] = (sum(piece.double().sum(dim=0) for piece in pieces) / known).to(values.dtype)
