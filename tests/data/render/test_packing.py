"""Rows of samples: every sample once, none too long, few and alike."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.data.render.collate import SpecialIds, collate, collate_packed
from framework.data.render.packing import pack
from framework.data.render.sample import Rendered, Sample
from framework.scene.batch import IGNORE_INDEX
from framework.scene.types import Scene

BUDGET = 60
LENGTHS = st.lists(st.integers(1, BUDGET), max_size=60)


def _next_fit(lengths: list[int]) -> int:
    """Rows when a new one begins whenever a sample does not fit into the last."""
    rows, room = 0, 0
    for length in lengths:
        if length > room:
            rows, room = rows + 1, BUDGET
        room -= length
    return rows


@given(LENGTHS)
def test_rows_hold_every_sample_once_within_the_budget_and_are_few(lengths: list[int]) -> None:
    rows = pack(lengths, BUDGET)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= BUDGET for row in rows)
    assert len(rows) <= min(_next_fit(lengths), _next_fit(sorted(lengths, reverse=True)))
    assert rows == pack(list(lengths), BUDGET)


def test_rows_are_evened_out() -> None:
    assert pack([5, 5, 5, 5], 19) == [[0, 1], [2, 3]]


def test_no_samples_no_rows() -> None:
    assert pack([], BUDGET) == []


def test_a_sample_above_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.pack: sample 1 has 61 tokens"):
        pack([3, 61], BUDGET)


SPECIAL = SpecialIds(pad=0, image=7, video=8)


def _sample(name: str, task: str, *ids: int) -> Sample:
    return Sample(Rendered(torch.tensor(ids), torch.tensor(ids), {}), Scene(id=name, kind="made"), task)


def test_packed_rows_say_whose_tokens_they_hold() -> None:
    rows = [[_sample("a", "x", 11, 12), _sample("b", "y", 21, 7, 23)], [_sample("c", "z", 31, 32)]]
    batch = collate_packed(rows, SPECIAL)
    assert batch["input_ids"].tolist() == [[11, 12, 21, 7, 23], [31, 32, 0, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 2, 2, 2], [1, 1, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["mm_token_type_ids"].tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert (batch["sample_ids"], batch["tasks"]) == (["a", "b", "c"], ["x", "y", "z"])


def test_a_sample_s_first_token_is_never_learned_from_the_sample_before() -> None:
    batch = collate_packed([[_sample("a", "x", 11, 12), _sample("b", "x", 21, 22)]], SPECIAL)
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 12, IGNORE_INDEX, 22]]


def test_rows_of_one_sample_are_not_packed() -> None:
    assert "segments" not in collate([_sample("a", "x", 11, 12)], SPECIAL)
