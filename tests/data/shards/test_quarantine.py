"""Quarantined samples: counted, recorded line by line, and a limit on their share that ends the run with a reason."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from framework.data.shards.quarantine import Quarantine, QuarantinedSample, QuarantinePolicy
from framework.scene.types import SceneError


def _lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _samples(*names: str, reason: str = "unreadable image") -> list[QuarantinedSample]:
    return [QuarantinedSample(name, reason) for name in names]


def test_samples_are_counted_each_time_they_are_refused() -> None:
    quarantine = Quarantine()
    quarantine.count(8, _samples("a", "b"))
    quarantine.count(8, _samples("a", "a"))
    quarantine.count(8, [])
    assert len(quarantine) == 4
    assert quarantine.counts == {"a": 3, "b": 1}
    assert quarantine.drawn == 24


def test_each_refusal_is_a_line_of_the_file_whatever_its_reason_holds(tmp_path: Path) -> None:
    file = tmp_path / "run" / "refused.jsonl"
    reasons = ["too long", 'a "quoted"\nsecond line', "caméra avant"]
    for attempt, reason in enumerate(reasons):
        Quarantine(file=file).count(1, _samples(f"sample-{attempt}", reason=reason))
    assert _lines(file) == [{"sample": f"sample-{n}", "reason": reason} for n, reason in enumerate(reasons)]


def test_nothing_is_written_without_a_file_or_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Quarantine().count(8, _samples("a"))
    Quarantine(file=tmp_path / "refused.jsonl").count(8, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "drawn", "allowed"), [(0.0, 8, 0), (0.05, 8, 5), (0.05, 100, 5), (0.05, 1000, 50)])
def test_a_larger_share_stops_the_run_and_names_sample_reason_and_file(
    limit: float, drawn: int, allowed: int, tmp_path: Path
) -> None:
    file = tmp_path / "refused.jsonl"
    quarantine = Quarantine(QuarantinePolicy(limit, min_samples=100), file)
    quarantine.count(drawn, _samples(*(f"fine-{index}" for index in range(allowed))))
    with pytest.raises(SceneError) as raised:
        quarantine.count(0, _samples("world/part-00003:17", reason="the prompt holds <|box|>"))
    message = str(raised.value)
    for said in (f"{allowed + 1} of {drawn}", f"share of {limit:g}", "world/part-00003:17", "holds <|box|>", str(file)):
        assert said in message
    assert len(_lines(file)) == allowed + 1, "what exceeds the limit is written down, too"


def test_a_limit_of_one_allows_all() -> None:
    Quarantine(QuarantinePolicy(1.0, min_samples=1)).count(2, _samples("a", "b"))


@pytest.mark.parametrize("wrong", [{"limit": -0.1}, {"limit": 1.5}, {"limit": float("nan")}, {"min_samples": 0}])
def test_a_limit_that_is_no_share_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"data.quarantine.{next(iter(wrong))}"):
        QuarantinePolicy(**wrong)  # type: ignore[arg-type]


def test_every_refusal_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Quarantine().count(4, _samples("scene-9", reason="1600 tokens"))
    (record,) = caplog.records
    assert "1 so far" in record.getMessage()
    assert "scene-9: 1600 tokens" in record.getMessage()
