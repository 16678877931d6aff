"""Sensor encoders as ONNX, for engines on a vehicle: one file each, of any number of samples and rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from framework.model.language_action import LanguageActionModel

if TYPE_CHECKING:
    from framework.model.encoders.base import Encoder

EXAMPLE = (2, 5)
"""Samples and rows of the inputs that are traced."""


def export_encoders(model: LanguageActionModel, folder: Path) -> list[Path]:
    """Write each encoder of `model`, which must be on the CPU, to `folder`/NAME.onnx; returns the files.

    Inputs are `values` `(samples, rows, channels)` float32 and `mask` `(samples, rows)` bool, outputs `features`
    `(samples, tokens, hidden)` and, unless all tokens are kept, `keep` `(samples, tokens)`; see `Encoder`. Raises
    `ModuleNotFoundError` without the extra `edge`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, encoder in cast("Iterable[tuple[str, Encoder]]", model.encoders.items()):
        files.append(folder / f"{name}.onnx")
        inputs = torch.zeros(*EXAMPLE, encoder.channels), torch.ones(*EXAMPLE, dtype=torch.bool)
        varying = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
        torch.onnx.export(
            cast(torch.nn.Module, encoder).eval(), inputs, files[-1], dynamo=True, external_data=False, verbose=False,
            input_names=["values", "mask"], output_names=["features", "keep"], dynamic_shapes=(varying, varying),
        )  # fmt: skip
    return files
