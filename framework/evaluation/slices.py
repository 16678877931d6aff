"""Base metrics that reduce measures of scenes over all scenes and each scenario kind, on one rank or many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from framework.evaluation.results import Sliced
from framework.scene.types import ALL, NAME_BYTES, FloatArray, Scene, SceneError


def name_row(name: str) -> Tensor:
    """A name as `(1, NAME_BYTES)` uint8, padded with zeros. Raises `SceneError` when it is longer."""
    data = name.encode()
    if len(data) > NAME_BYTES:
        raise SceneError(f"the kind or topic {name!r} is longer than {NAME_BYTES} bytes; shorten it")
    return torch.tensor([list(data.ljust(NAME_BYTES, b"\0"))], dtype=torch.uint8)


def row_names(rows: Tensor) -> npt.NDArray[np.str_]:
    """The names `(n,)` of rows `(n, NAME_BYTES)`."""
    return np.array([bytes(row).rstrip(b"\0").decode() for row in rows.cpu().numpy()], dtype=np.str_)


def text_key(text: str) -> int:
    """A 63-bit hash of a text, for comparisons: the same on every rank and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def slices_of(kinds: npt.NDArray[np.str_]) -> dict[str, npt.NDArray[np.bool_]]:
    """{slice: mask `(n,)`}: `ALL`, then each kind in alphabetical order."""
    names: Iterable[str] = np.unique(kinds).tolist()
    return {ALL: np.ones(len(kinds), dtype=np.bool_)} | {str(name): kinds == name for name in names}


def mean(values: FloatArray) -> float:
    """The mean of the known `values`; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def share_if_any(values: FloatArray) -> float:
    """The mean of events, 0 or 1; NaN, which no report shows, where none occurred."""
    return mean(values) if (values > 0).any() else float("nan")


def largest(values: FloatArray) -> float:
    """The largest of the known `values`; NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.max()) if len(known) else float("nan")


class RowStates(Metric):
    """Base of metrics whose state is tables that grow by rows; torchmetrics concatenates them over ranks.

    A rank without samples contributes no rows. A sample that is judged twice, on one rank or several, counts once:
    every `update` calls `count`, and every `compute` takes the rows of `first` and reports the others by `repeated`.

    Args:
        shapes: {table: (row shape, dtype)}.
    """

    full_state_update = False
    alone = False
    """Whether `compute` reduces this rank's samples alone, without waiting for the others."""

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        super().__init__()
        self.shapes = {**shapes, "samples": ((), torch.int64)}
        for name in self.shapes:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Sync as torchmetrics does, after giving empty tables their shape and dtype, which ranks must agree on."""
        for name in self.shapes:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                self.append(name, self.table(name))
        if not self.alone:
            super().sync(*args, **kwargs)

    def count(self, sample: str) -> None:
        """Record that `sample`, a unique id, was judged."""
        self.append("samples", torch.tensor([text_key(sample)]))

    def first(self) -> npt.NDArray[np.bool_]:
        """Whether each judged sample is judged for the first time, `(n,)`, in the order of the tables."""
        samples = self.table("samples").numpy()
        first = np.zeros(len(samples), dtype=np.bool_)
        first[np.unique(samples, return_index=True)[1]] = True
        return first

    def repeated(self) -> Sliced:
        """How many samples were judged again, as the metric `repeated`; empty where none was."""
        again = float((~self.first()).sum())
        return {"repeated": {ALL: again}} if again else {}

    def append(self, name: str, rows: Tensor) -> None:
        """Append `rows` `(n, *shape)` to the table `name`."""
        shape, dtype = self.shapes[name]
        getattr(self, name).append(rows.reshape(-1, *shape).to(device=self.device, dtype=dtype))

    def table(self, name: str) -> Tensor:
        """All rows of the table `name`, on the CPU."""
        shape, dtype = self.shapes[name]
        rows = getattr(self, name)
        if isinstance(rows, list) and not rows:
            return torch.zeros((0, *shape), dtype=dtype)
        return dim_zero_cat(rows).reshape(-1, *shape).cpu()


class SceneMeasures(RowStates):
    """One row of measures per scene. `update(scene, measures)`; `compute()` returns `Sliced`.

    NaN marks a measure that a scene cannot judge; reductions leave it out.

    Args:
        columns: {measure: its reduction over scenes, `mean` or `largest`}.
    """

    def __init__(self, columns: Mapping[str, Callable[[FloatArray], float]]) -> None:
        super().__init__({"rows": ((len(columns),), torch.float64), "kinds": ((NAME_BYTES,), torch.uint8)})
        self.columns = dict(columns)

    def update(self, scene: Scene, measures: Mapping[str, float]) -> None:
        """Add the `measures` of one scene, one per column."""
        self.count(scene.id)
        self.append("rows", torch.tensor([[measures[name] for name in self.columns]], dtype=torch.float64))
        self.append("kinds", name_row(scene.kind))

    def compute(self) -> Sliced:
        """{measure: {slice: value}}, and the number of `scenes`."""
        first = self.first()
        rows, kinds = self.table("rows").numpy()[first], row_names(self.table("kinds"))[first]
        masks = slices_of(kinds)
        counts = {name: float(mask.sum()) for name, mask in masks.items()}
        return {
            column: {name: reduce(rows[mask, index]) for name, mask in masks.items()}
            for index, (column, reduce) in enumerate(self.columns.items())
        } | {"scenes": counts, **self.repeated()}


def worst(rows: Sequence[Mapping[str, float]], better_high: Iterable[str]) -> dict[str, float]:
    """The worst value of each measure over several rows: the smallest of those in `better_high`, else the largest."""
    high = set(better_high)
    return {name: (min if name in high else max)(row[name] for row in rows) for name in rows[0]}
