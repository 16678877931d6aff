"""Model and optimizer as one flat set of named tensors, plus what is left of the optimizer, as JSON.

Names are the parameters' own, so that a checkpoint loads on any other mesh. Only tensors reach
torch.distributed.checkpoint: its byte entries are pickles, and a pickle is code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def _split(model: nn.Module, optimizer: Optimizer | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Any] = {f"model/{name}": value for name, value in get_model_state_dict(model).items()}
    settings: dict[str, Any] = {}
    if optimizer is not None:
        flat: dict[str, Any] = dict(get_optimizer_state_dict(model, optimizer, options=_FLAT))
        for name, value in flat.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}"] = value
            else:
                settings[name] = value
    return tensors, settings


def save_tensors(folder: Path, model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Write the shards of this rank into `folder` (collective); returns the optimizer's settings, JSON all through."""
    tensors, settings = _split(model, optimizer)
    dcp.save(tensors, checkpoint_id=folder, no_dist=not dist.is_initialized())
    return settings


def load_tensors(folder: Path, model: nn.Module, optimizer: Optimizer | None, settings: dict[str, Any]) -> None:
    """Read into `model` and `optimizer` what `save_tensors` wrote, resharded to whatever they are now (collective).

    Call only on a folder whose manifest verifies. Raises `CheckpointException` naming a tensor that is missing or of
    another shape.
    """
    tensors, _ = _split(model, optimizer)
    dcp.load(tensors, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_model_state_dict(model, {name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
    if optimizer is not None:
        flat: dict[str, Any] = {name[10:]: value for name, value in tensors.items() if name.startswith("optimizer/")}
        set_optimizer_state_dict(model, optimizer, {**flat, **settings}, options=_FLAT)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Read the model's weights alone, for evaluation, export or the next stage. Call only on a folder whose manifest
    verifies.
    """
    with torch.no_grad():
        load_tensors(folder, model, None, {})
