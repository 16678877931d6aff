"""Counts what makes the host wait for a device, also where there is none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::equal",
    "aten::unique_consecutive", "aten::_unique2", "aten::unique_dim_consecutive", "aten::repeat_interleave.Tensor",
    "aten::bincount",
}  # fmt: skip
"""Operators whose results the host needs, or whose shapes depend on data."""
METHODS = {"tolist", "numpy", "cpu"}
"""Methods that copy to the host without such an operator."""


class DeviceReads(TorchDispatchMode):
    """Counts the reads by the operator's name. Indices by a mask are `nonzero` on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.methods = _Methods(self.counts)
        self.entered = False

    def __enter__(self) -> DeviceReads:
        self.methods.__enter__()
        super().__enter__()
        self.entered = True
        return self

    def __exit__(self, *exception: Any) -> None:
        self.entered = False
        super().__exit__(*exception)
        self.methods.__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name in READS and not (kwargs or {}).get("output_size"):
            self.counts[name] += 1
        if name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put"):
            masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
            self.counts["index by a mask"] += bool(masks)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in METHODS and isinstance(args[0], Tensor):
            self.counts[f"Tensor.{name}"] += 1
        return func(*args, **(kwargs or {}))
