"""Quarantined samples: counted, recorded line by line, and a limit that ends the run with a name and a reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from framework.data.shards.quarantine import Quarantine, QuarantinedSample
from framework.scene.types import SceneError


def _lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_samples_are_counted_each_time_they_are_refused() -> None:
    quarantine = Quarantine(limit=10)
    for name in ("a", "b", "a", "a"):
        quarantine.add(QuarantinedSample(name, "unreadable image"))
    assert len(quarantine) == 4
    assert quarantine.counts == {"a": 3, "b": 1}


def test_each_refusal_is_a_line_of_the_file_whatever_its_reason_holds(tmp_path: Path) -> None:
    file = tmp_path / "run" / "refused.jsonl"
    reasons = ["too long", 'a "quoted"\nsecond line', "caméra avant"]
    for attempt, reason in enumerate(reasons):
        Quarantine(limit=1, file=file).add(QuarantinedSample(f"sample-{attempt}", reason))
    assert _lines(file) == [{"sample": f"sample-{n}", "reason": reason} for n, reason in enumerate(reasons)]


def test_nothing_is_written_without_a_file_or_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Quarantine().add(QuarantinedSample("a", "unreadable image"))
    Quarantine(file=tmp_path / "refused.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_one_more_than_the_budget_stops_the_run_and_names_sample_reason_and_file(limit: int, tmp_path: Path) -> None:
    file = tmp_path / "refused.jsonl"
    quarantine = Quarantine(limit, file)
    for index in range(limit):
        quarantine.add(QuarantinedSample(f"fine-{index}", "unreadable image"))
    with pytest.raises(SceneError) as raised:
        quarantine.add(QuarantinedSample("world/part-00003:17", "the prompt holds <|box|>"))
    message = str(raised.value)
    for said in (f"{limit + 1} samples", f"allows {limit}", "world/part-00003:17", "holds <|box|>", str(file)):
        assert said in message
    assert len(_lines(file)) == limit + 1, "what broke the budget is written down, too"


def test_every_refusal_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Quarantine(limit=5).add(QuarantinedSample("scene-9", "1600 tokens"))
    (record,) = caplog.records
    assert "1 of 5" in record.getMessage()
    assert "scene-9: 1600 tokens" in record.getMessage()
