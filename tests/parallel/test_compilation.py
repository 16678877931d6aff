"""Compiled models give the same numbers; what breaks a graph is told. No C++ compiler is needed: the graphs are run as
they were captured.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from framework.parallel.compilation import Compilation
from framework.parallel.recompute import Recompute
from tests.parallel.tiny import Passes, passes

REPOSITORY = Path(__file__).resolve().parents[2]
BROKEN = """
import torch
from framework.parallel.compilation import Compilation

class Block(torch.nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y + 1 if y.sum().item() > 0 else y

model = torch.nn.Sequential(Block(4, 4), Block(4, 4))
Compilation("blocks", "aot_eager").apply(model, list(model))
for _ in range(3):
    model(torch.randn(2, 4)).sum().backward()
"""


@pytest.fixture(scope="module")
def plain() -> Passes:
    return passes(lambda model: Compilation().apply(model, model.blocks()), counted=False)


@pytest.mark.parametrize("scope", ["blocks", pytest.param("whole", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "recompute", [Recompute(every=None), Recompute(), Recompute(kept={"attention": 1, "linear": 2})]
)
def test_loss_and_gradients_are_the_plain_ones(scope: str, recompute: Recompute, plain: Passes) -> None:
    def prepare(model: torch.nn.Module) -> None:
        recompute.apply(model.blocks())
        Compilation(scope, "aot_eager").apply(model, model.blocks())  # type: ignore[arg-type]

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = passes(prepare, counted=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert found.loss == pytest.approx(plain.loss, rel=1e-6)
    assert found.gradients.keys() == plain.gradients.keys()
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_place_where_graphs_break_is_logged_in_full_once_with_torchs_reason() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=True,
        env={key: value for key, value in os.environ.items() if key != "TORCH_LOGS"},
    )  # fmt: skip
    assert done.stderr.count("Graph break in user code at") == 1
    assert "Tensor.item()" in done.stderr


def test_a_backend_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"compilation.backend: inductr; there are .*inductor"):
        Compilation("blocks", "inductr").apply(torch.nn.Linear(1, 1), [])
