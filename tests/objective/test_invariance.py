"""The same 16 groups of uneven length give the same gradient over ranks, micro-batches and rows (contract 1)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.parallel.mesh import DataRank
from tests.objective import invariance_ranks as ranks
from tests.processes import run_ranks

TOLERANCE = 1e-5
SEVERAL = [count for count in ranks.GROUPS_OF_RANKS if count > 1]
WAYS = [pytest.param(*way, marks=pytest.mark.slow if number % 4 else ()) for number, way in enumerate(ranks.ways())]
"""Every fourth is in the fast suite: among them are each objective, number of micro-batches and layout."""


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Gradients of every parameter and of all together, the loss and all that is logged."""
    ours, theirs = found["gradient"], expected["gradient"]
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert error(ours[name], theirs[name]) < TOLERANCE, name
    assert error(*(torch.cat([one[name].flatten() for name in theirs]) for one in (ours, theirs))) < TOLERANCE
    assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=TOLERANCE, abs=1e-6)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative; 0 where both are 0, as for what sees no picture."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-9))


@pytest.fixture(scope="module")
def setting() -> tuple[Any, Any]:
    model = ranks.make_model()
    return model, ranks.make_answers(model)


@pytest.fixture(scope="module")
def alone(setting: tuple[Any, Any]) -> dict[str, dict[str, Any]]:
    """One rank, one micro-batch, an answer a row; by objective."""
    return {name: vars(ranks.step(*setting, name, 1, "padded", DataRank())) for name in ranks.OBJECTIVES}


@pytest.mark.parametrize(("name", "micro_batches", "layout"), WAYS)
@pytest.mark.fast_cases(2)
def test_micro_batches_and_rows_change_nothing(
    name: str, micro_batches: int, layout: str, setting: tuple[Any, Any], alone: dict[str, dict[str, Any]]
) -> None:
    same(vars(ranks.step(*setting, name, micro_batches, layout, DataRank())), alone[name])


def test_the_step_is_one_on_which_it_could_go_wrong(setting: tuple[Any, Any], alone: dict[str, dict[str, Any]]) -> None:
    """Lengths differ, every bound is reached, and rows hold several answers."""
    answers = setting[1]
    assert len({len(said) for said in answers.tokens}) > 15
    assert len(set(map(answers.groups.count, range(16)))) > 4
    for name in ranks.OBJECTIVES:
        metrics = alone[name]["metrics"]
        assert metrics["clip_low_share"] > 0
        assert metrics["clip_high_share"] > 0
        assert 0 < metrics["engine_outside_share"] < 1
    assert alone["dapo"]["metrics"]["dual_clip_share"] > 0
    packed = ranks.lay(answers, range(len(answers.groups)), "packed")
    assert int(packed.batch["segments"].max()) > 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the outcomes of all ranks lie."""
    folder = tmp_path_factory.mktemp("invariance")
    for count in SEVERAL:
        run_ranks(count, functools.partial(ranks.main, folder))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", SEVERAL)
@pytest.mark.parametrize(("name", "micro_batches", "layout"), ranks.ways_of_ranks())
def test_ranks_change_nothing(
    name: str, micro_batches: int, layout: str, count: int, folder: Path, alone: dict[str, dict[str, Any]]
) -> None:
    same(torch.load(folder / f"{name}-{count}-{micro_batches}-{layout}.pt", weights_only=True), alone[name])
