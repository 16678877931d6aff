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

from framework.model.language_action import LanguageActionModel
from framework.objective.supervised import CrossEntropy
from framework.parallel.compilation import Compilation
from framework.parallel.recompute import Recompute
from framework.scene.batch import MicroBatch
from framework.training.sft.prepare import prepare_step
from tests.model.conftest import Sample, build, make_batch
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "recompute"),
    [
        ("blocks", Recompute(every=None)),
        ("blocks", Recompute()),
        ("blocks", Recompute(kept={"attention": 1, "linear": 2})),
        ("whole", Recompute(kept={"attention": 1, "linear": 2})),
    ],
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


def mixed(model: LanguageActionModel, generator: torch.Generator) -> MicroBatch:
    """A micro-batch of a few samples of any length, with an image each or none, and sensors or none."""
    samples: list[Sample] = []
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        words, images = (int(torch.randint(0, most, (), generator=generator)) for most in (30, 2))
        samples.append(("word " * (words + 1), images, ("ego",) if images else ()))
    batch = make_batch(model, samples, side="right")
    batch["labels"] = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
    batch["scenes"] = [None] * len(samples)  # type: ignore[list-item]  # only counted
    return batch


@pytest.mark.slow
def test_in_100_steps_changing_lengths_compile_nothing_again_and_losses_are_equal() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = build(), build()
    compilation = Compilation("blocks", "aot_eager")
    compilation.apply(compiled, compiled.blocks())
    generator, graphs, sizes = torch.Generator().manual_seed(0), [], set()
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-4) for model in (plain, compiled)]
    for _ in range(100):
        (micro,) = prepare_step(plain, [mixed(plain, generator)], missing=0).micro_batches
        losses = []
        for model, optimizer in zip((plain, compiled), optimizers, strict=True):
            loss = CrossEntropy()(model(micro.batch, micro.sources), model.head, micro.targets).total
            optimizer.zero_grad()
            (loss / len(micro.targets)).backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        graphs.append(compilation.metrics()["compiled_graphs"])
        sizes.add(micro.batch["layout"]["size"])
    assert len(sizes) > 20
    assert 0 < graphs[2] == graphs[-1] <= 8


def test_what_is_compiled_is_kept_in_the_run_unless_another_place_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    Compilation().keep_in(tmp_path)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    Compilation("blocks").keep_in(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    Compilation("blocks").keep_in(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


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
