"""Kernels of libraries compute what torch's own operations compute, within stated bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from framework.model.kernels import FusedLoss, Kernels, LigerKernels
from framework.model.lora import LoRA
from framework.objective.supervised import CrossEntropy, LossSum
from framework.recipe.check import check
from tests.parallel.tiny import Passes, build, passes

needs_torch = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="torch 2.13 has the fused loss first"
)


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.float() - exact.float()).norm() / exact.float().norm())


def compare(found: Passes, plain: Passes, bound: float) -> None:
    """Loss and each gradient within `bound`."""
    assert found.loss == pytest.approx(plain.loss, rel=bound)
    assert found.gradients.keys() == plain.gradients.keys()
    gaps = {name: relative(found.gradients[name], plain.gradients[name]) for name in plain.gradients}
    assert max(gaps.values()) < bound, max(gaps, key=lambda name: gaps[name])


@pytest.fixture(scope="module")
def plain() -> Passes:
    return passes(lambda model: None)


@needs_torch
def test_the_fused_loss_is_the_eager_one(plain: Passes) -> None:
    compare(passes(FusedLoss().apply), plain, 1e-5)


@needs_torch
@pytest.mark.slow
def test_the_fused_loss_in_bfloat16_sums_in_float32() -> None:
    around = torch.autocast("cpu", torch.bfloat16)
    eager, fused = (passes(apply, around=around) for apply in (lambda model: None, FusedLoss().apply))
    compare(fused, eager, 2e-2)
    assert fused.loss == pytest.approx(eager.loss, rel=5e-4)  # each position's is rounded; a sum would be off by 1e-2


@needs_torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_sum_and_right_tokens_are_those_of_the_logits(smoothing: float) -> None:
    eager, fused = build(), build()
    FusedLoss().apply(fused)
    generator = torch.Generator().manual_seed(0)
    hidden, targets = torch.randn(50, 128, generator=generator), torch.randint(0, 1536, (50,), generator=generator)
    targets[:20] = eager.head(hidden[:20]).argmax(-1)
    ours, theirs = (CrossEntropy(label_smoothing=smoothing)(hidden, model.head, targets) for model in (fused, eager))
    assert isinstance(ours, LossSum)
    assert float(ours.total) == pytest.approx(float(theirs.total), rel=1e-5)
    assert (ours.tokens, int(ours.correct)) == (50, int(theirs.correct))
    assert int(ours.correct) >= 20


@needs_torch
def test_nothing_to_learn_and_an_adapted_head_take_the_logits() -> None:
    model = build()
    FusedLoss().apply(model)
    hidden = torch.randn(0, 128, requires_grad=True)
    loss = CrossEntropy()(hidden, model.head, torch.zeros(0, dtype=torch.int64))
    assert float(loss.total.detach()) == 0.0
    assert loss.total.requires_grad  # so that data-parallel ranks run the same collectives
    model.backbone.lm_head.weight = torch.nn.Parameter(model.backbone.lm_head.weight.detach().clone())
    LoRA(["backbone.lm_head"]).attach(model)
    assert model.head.cross_entropy(torch.randn(3, 128), torch.zeros(3, dtype=torch.int64), 0.0) is None


@pytest.mark.parametrize(
    ("kernels", "wrong"),
    [(LigerKernels(), "need a GPU; choose model/kernels=eager or fused_loss"), (FusedLoss(), "has no fused loss")],
)
def test_what_cannot_run_is_refused(kernels: Kernels, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=wrong):
        kernels.apply(build())


@pytest.mark.slow
def test_check_refuses_liger_on_a_cpu_and_kernels_under_tensor_parallelism() -> None:
    for words, wrong in (
        (["scale=tiny", "model/kernels=liger"], "Liger's kernels need a GPU"),
        (["model/kernels=fused_loss", "parallel.mesh.tensor=2"], "take whole tensors"),
    ):
        problems = [problem.message for problem in check(["recipe=supervised", *words])[1] if not problem.warning]
        assert len(problems) == 1
        assert wrong in problems[0]
    assert not [p for p in check(["recipe=supervised", "model/kernels=liger"])[1] if not p.warning]


INTERPRETED = """
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

convert = interpreter._implicit_cvt

def with_numbers(argument):
    # The interpreter leaves plain numbers as they are, where compiled kernels get float32.
    if isinstance(argument, float):
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)
    return convert(argument)

interpreter._implicit_cvt = with_numbers

from liger_kernel.ops import rms_norm

rms_norm.rsqrt = lambda numbers: tl.math.rsqrt(numbers)  # the interpreter has none of CUDA's own functions

from framework.model.kernels import LigerKernels
from tests.model.test_kernels import compare
from tests.parallel import tiny
from tests.parallel.tiny import passes

few = tiny.words(rows=1, length=12)  # interpreted, each row of a norm takes milliseconds
tiny.words = lambda: few

plain = passes(lambda model: None)
compare(passes(LigerKernels().apply, counted=False), plain, 1e-4)
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("liger_kernel"), reason="liger-kernel is not installed (extra kernels)")
def test_under_the_interpreter_ligers_kernels_compute_the_same() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    repository = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
