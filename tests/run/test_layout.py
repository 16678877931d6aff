"""The names of steps and checkpoints in a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.run.layout import (
    COMMIT,
    checkpoint_name,
    committed_steps,
    parse_checkpoint,
    saved_steps,
    step_name,
)


@pytest.mark.parametrize(("step", "attempt"), [(0, 1), (100, 2), (123_456_789, 12)])
def test_names_are_parsed_as_they_were_written(step: int, attempt: int) -> None:
    assert checkpoint_name(step, attempt).startswith(step_name(step))
    saved = parse_checkpoint(Path("checkpoints") / checkpoint_name(step, attempt))
    assert saved is not None
    assert (saved.step, saved.attempt) == (step, attempt)


@pytest.mark.parametrize(
    "name",
    ["newest", "step-12", "step-x.attempt-1", "step-1.attempt-1.part", ".step-1.attempt-1"],
)
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert parse_checkpoint(Path(name)) is None


def test_a_checkpoint_counts_once_it_has_a_commit_and_the_newest_is_last(tmp_path: Path) -> None:
    for step, attempt in ((9, 2), (10, 1), (9, 1), (11, 1)):
        (tmp_path / checkpoint_name(step, attempt)).mkdir()
        if step != 11:
            (tmp_path / checkpoint_name(step, attempt) / COMMIT).touch()
    (tmp_path / "attempts").mkdir()
    assert [(saved.step, saved.attempt) for saved in committed_steps(tmp_path)] == [(9, 1), (9, 2), (10, 1)]
    assert [(saved.step, saved.attempt) for saved in saved_steps(tmp_path)][-1] == (11, 1)
    assert committed_steps(tmp_path / "nowhere") == []
