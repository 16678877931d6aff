"""Model and optimizer as one flat set of named tensors, and the rest of the optimizer as JSON.

Tensors have the parameters' own names, so that a checkpoint loads on any other mesh. Only tensors reach
torch.distributed.checkpoint: its byte entries are pickles, and a pickle is code.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from framework.checkpoint.manifest import CheckpointError
from framework.checkpoint.tensor_reader import TensorReader

SHOWN = 8
"""Tensors that an error message lists at most."""


def local(tensor: Tensor) -> Tensor:
    """This rank's part of `tensor`, detached."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def named_tensors(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of model and optimizer by name, and the optimizer's settings as JSON.

    Replaces torch's get_optimizer_state_dict, which looks up every name through all modules (0.2 s at 1,200 parameters,
    on the step's path) and creates state for parameters without a gradient.
    """
    tensors = _of_model(model)
    names = _names(model)
    settings: dict[str, Any] = {"groups": [], "state": {}}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{key}"] = value
                else:
                    settings["state"].setdefault(name, {})[key] = value
        values = {key: _plain(value) for key, value in group.items() if key != "params"}
        settings["groups"].append({"params": [names[parameter] for parameter in group["params"]], **values})
    return tensors, settings


def unchanged_by_forward(model: nn.Module) -> set[str]:
    """Names of the tensors of `model` that a forward pass never changes: parameters, and of the buffers those that
    their module names in `frozen_buffers`.
    """
    frozen = {
        f"{name}.{buffer}" for name, module in model.named_modules() for buffer in getattr(module, "frozen_buffers", ())
    }
    return {
        f"model/{name}" for name in frozen.union(name for name, _ in model.named_parameters(remove_duplicate=False))
    }


def load_tensors(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    group: dist.ProcessGroup | None = None,
) -> None:
    """Read `named_tensors` into `model` and `optimizer`, resharded to their current mesh (collective).

    Call only on a folder whose manifest verifies. A parameter that had no optimizer state
    when it was saved has none afterwards. Raises `CheckpointError`, and its subclass `IncompatibleCheckpointError` when
    names or shapes differ from the checkpoint's.
    """
    saved = _metadata(folder)
    states = _optimizer_targets(model, optimizer, saved)
    tensors = _of_model(model)
    for name, state in states.items():
        tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
    _check_fit(folder, tensors, saved, unread=set(saved) - set(tensors))
    _read(folder, tensors, group)
    _load_optimizer(model, optimizer, states, settings, folder)


def load_weights(
    folder: Path, model: nn.Module, group: dist.ProcessGroup | None = None, new: Collection[str] = ()
) -> None:
    """Read the model's weights alone, for evaluation, export or the next stage (collective).

    Whole modules of the checkpoint that the model lacks are ignored. Parameters named in `new` stay as they are when
    the checkpoint has none of them. Call only on a folder whose manifest verifies. Raises like `load_tensors`, also for
    a tensor that the checkpoint has within a module with weights and the model lacks: without it, that module would
    compute something else.
    """
    tensors, saved, new_names = _of_model(model), _metadata(folder), {f"model/{name}" for name in new}
    if new_names.isdisjoint(saved):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in new_names}
    modules = {name.rpartition(".")[0] for name in tensors} - {""}
    missing = {name for name in set(saved) - set(tensors) if not modules.isdisjoint(_parents(name))}
    _check_fit(folder, tensors, saved, unread=missing)
    _read(folder, tensors, group)


def _parents(name: str) -> Iterator[str]:
    """Names of the modules that contain a tensor, innermost first."""
    while name := name.rpartition(".")[0]:
        yield name


class IncompatibleCheckpointError(CheckpointError):
    """The checkpoint is of another model or optimizer than the recipe's."""


def _of_model(model: nn.Module) -> dict[str, Tensor]:
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    no_tensors = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if no_tensors:
        raise CheckpointError(
            f"{', '.join(no_tensors)}: not a tensor, and a checkpoint holds no pickles; make it a buffer"
        )
    return tensors


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    with _as_checkpoint_error(folder):
        metadata = TensorReader(folder).read_metadata()
    return {
        name: entry for name, entry in metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
    }


def _optimizer_targets(
    model: nn.Module, optimizer: Optimizer, saved: Mapping[str, TensorStorageMetadata]
) -> dict[str, dict[str, Tensor]]:
    """Zero tensors for the optimizer state in the checkpoint, sharded like the parameters are now."""
    names = _names(model)
    parameters = {names[parameter]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    states: dict[str, dict[str, Tensor]] = {}
    for full, entry in saved.items():
        if not full.startswith("optimizer/"):
            continue
        name, key = full.removeprefix("optimizer/").rsplit("/", 1)
        if name in parameters:
            # A count is a plain tensor, which the optimizer moves to its device. State is sharded like the parameter
            # when it has its shape, else whole on every rank.
            make = parameters[name].detach().new_zeros if len(entry.size) else torch.zeros
            states.setdefault(name, {})[key] = make(tuple(entry.size), dtype=entry.properties.dtype)
    return states


def _check_fit(
    folder: Path, tensors: Mapping[str, Tensor], saved: Mapping[str, TensorStorageMetadata], unread: set[str]
) -> None:
    """Raise `IncompatibleCheckpointError` for tensors that the checkpoint lacks or has in another shape, and for those
    in `unread`.
    """
    faults = []
    for name, tensor in tensors.items():
        size = tuple(saved[name].size) if name in saved else "none"
        if size != tuple(tensor.shape):
            faults.append(f"{name}: {size} in the checkpoint, {tuple(tensor.shape)} in the model")
    faults += [f"{name}: {tuple(saved[name].size)} in the checkpoint, none in the model" for name in sorted(unread)]
    if faults:
        more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        lines = "\n  ".join(faults[:SHOWN] + more)
        raise IncompatibleCheckpointError(
            f"{folder}: written by another model or optimizer than this recipe's; revert what changed since (the"
            f" run's folder keeps the recipe of each attempt), or give a new run.name to start over\n  {lines}"
        )


def _read(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    with _as_checkpoint_error(folder), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        reader = TensorReader(folder)
        dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=not dist.is_initialized())


@contextmanager
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Raise a failure to read as `CheckpointError`. Torch's own is no `Exception`, and pages long."""
    try:
        yield
    except CheckpointException as error:
        causes = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
        raise CheckpointError(f"{folder}: verifies, but does not load: {'; '.join(sorted(causes))}") from error
    except Exception as error:
        raise CheckpointError(f"{folder}: verifies, but does not load: {type(error).__name__}: {error}") from error


def _load_optimizer(
    model: nn.Module,
    optimizer: Optimizer,
    states: Mapping[str, Mapping[str, Tensor]],
    settings: Mapping[str, Any],
    folder: Path,
) -> None:
    """Restore the optimizer's state. What its constructor takes (learning rate, betas, weight decay) stays as the
    recipe has built it, so that a resumed run trains with the values of its recipe.
    """
    of_recipe = {"params", "initial_lr", *inspect.signature(type(optimizer).__init__).parameters}
    parameter_names = _names(model)
    saved_groups = {name: group for group in settings["groups"] for name in group["params"]}
    state_dict = optimizer.state_dict()
    state_dict["state"] = {}
    for group, numbered in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        names = [parameter_names[parameter] for parameter in group["params"]]
        unknown = [name for name in names if name not in saved_groups]
        if unknown:
            raise IncompatibleCheckpointError(
                f"{folder}: its optimizer does not train {', '.join(unknown[:SHOWN])}; see curriculum.stages"
            )
        for key, value in saved_groups[names[0]].items() if names else ():
            if key in of_recipe:
                continue
            current = group.get(key)
            converted = torch.full_like(current, value) if isinstance(current, Tensor) else value
            numbered[key] = tuple(value) if isinstance(value, list) else converted
        for name, number in zip(names, numbered["params"], strict=True):
            state = {**settings["state"].get(name, {}), **states.get(name, {})}
            if state:
                state_dict["state"][number] = state
    optimizer.load_state_dict(state_dict)
