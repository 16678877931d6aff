"""Parameter groups with their own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from framework.model.flow_head import FlowHead
from framework.model.freeze import matching
from framework.model.lora import Adapter
from framework.model.quantized_base import QuantizedLinear


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, lr_factors: Mapping[str, float], key: str = "lr_factors"
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, in the order of the model; every trainable parameter is in exactly one.

    Vectors (norms, biases) and embeddings do not decay. Tied weights appear once. A group's `matrices` says whether it
    consists of matrices of hidden layers, which optimizers such as Muon treat apart: the weights of linear layers, the
    head and adapters excepted, and stacks of experts. AdamW ignores it.

    Args:
        model: The model, with its trainable parameters selected.
        lr: Base learning rate.
        weight_decay: Weight decay of matrices.
        lr_factors: Factors of `lr` by shell pattern of the parameter's name; of several that match, the last counts.
            Where none matches, adapters and the action head have their own factor and all else has 1.
        key: The recipe's key of `lr_factors`, for messages.

    Raises `ValueError` for a pattern that matches nothing.
    """
    factors = {
        id(parameter): module.lr_factor
        for module in model.modules()
        if isinstance(module, Adapter | FlowHead)
        for parameter in module.parameters()
    }
    factors |= {
        id(parameter): factor for pattern, factor in lr_factors.items() for parameter in matching(model, pattern, key)
    }
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = _hidden_matrices(model) - embeddings
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in embeddings
            alike = factors.get(id(parameter), 1.0), decays, id(parameter) in matrices
            groups.setdefault(alike, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * factor,
            "weight_decay": weight_decay if decays else 0.0,
            "matrices": is_matrix,
        }
        for (factor, decays, is_matrix), parameters in groups.items()
    ]


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Identities of the weights of linear layers, the head excepted, and of stacks of experts
    `(experts, rows, columns)`.
    """
    matrices, heads = set[int](), set[int]()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, QuantizedLinear):
            matrices.add(id(module.weight))
        elif isinstance(getattr(module, "num_experts", None), int):
            matrices |= {id(stack) for stack in module.parameters(recurse=False) if stack.ndim == 3}
        if isinstance(module, PreTrainedModel) and (head := module.get_output_embeddings()) is not None:
            heads.add(id(head.weight))
    return matrices - heads
