"""Vocabulary and positions cut over ranks: scores, losses, gradients and answers of the whole, of which no rank has
more than its part.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest

from tests.parallel.vocabulary_ranks import ask_both
from tests.processes import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.guarantee("Losses over a sharded vocabulary equal those over the whole vocabulary")
@pytest.mark.parametrize(
    ("mesh", "tied", "attention", "padding"),
    [
        ({"replicate": 1, "shard": 1, "tensor": 2}, True, "auto", 0),
        ({"replicate": 1, "shard": 2, "tensor": 2}, False, "sdpa", 1),
    ],
    ids=["TP 2 tied, one row", "FSDP 2 x TP 2 untied, rows of a length that does not divide"],
)
def test_each_rank_has_its_words_and_positions_and_all_find_the_same(
    mesh: dict[str, int], tied: bool, attention: str, padding: int, tmp_path: Path
) -> None:
    run_ranks(math.prod(mesh.values()), functools.partial(ask_both, mesh, tied, attention, padding, tmp_path / "out"))
    found = json.loads((tmp_path / "out").read_text())
    assert {name: value for name, value in found["differences"].items() if not value < 1e-5} == {}
    assert found["same"] == {"correct": True, "tokens": True}
    assert found["tied"] is tied
    assert found["columns"] == found["vocabulary"] // 2
    assert found["rows"] == found["vocabulary"] // 2 // mesh["shard"]
    assert found["positions"] == (1.0 if padding else 0.5)
