"""A profile is of the steps that were asked for, and of none where nothing was."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from framework.tracking.profile import RANGES, Profile
from framework.tracking.tracking import Tracking


class Toy(LightningModule):
    """Steps as the framework's module takes them."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(4, 4)
        self.fails_at = fails_at
        self.memory_histories: list[Any] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        profile = self.trainer.profiler.profile  # type: ignore[attr-defined]
        with profile("forward"):
            loss = self.layer(batch).sum()
        if batch_idx == self.fails_at:
            raise torch.OutOfMemoryError("no room")
        with profile("backward"):
            self.manual_backward(loss)
        with profile("optimizer"):
            self.optimizers().step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Endless:
    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            yield torch.ones(2, 4)


def train(folder: Path, options: Profile | None, steps: int = 8, module: Toy | None = None) -> list[str]:
    """Train a stage; the names of the files it left."""
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        profiler=Tracking(profile=options).profiler(folder, 2, "broad"),
    )  # fmt: skip
    trainer.fit(module or Toy(), Endless())
    return sorted(file.name for file in (folder / "profiles").glob("*"))


def ranges(folder: Path) -> Counter[str]:
    """How often each named range is in the trace."""
    with gzip.open(folder / "profiles" / "broad.attempt-2.rank-0.trace.json.gz", "rt") as stream:
        events = json.load(stream)["traceEvents"]
    return Counter(event["name"] for event in events if event.get("cat") == "user_annotation")


def test_the_steps_asked_for_are_traced_with_their_parts_named(tmp_path: Path) -> None:
    names = train(tmp_path, Profile(skip=2, steps=3))
    assert names == ["broad.attempt-2.rank-0.trace.json.gz", "broad.attempt-2.rank-0.txt"]
    found = ranges(tmp_path)
    assert {name: found[name] for name in RANGES} == dict.fromkeys(RANGES, 3)
    table = (tmp_path / "profiles" / names[1]).read_text()
    assert [line.split()[0] for line in table.splitlines()[1:7]] == [name.split()[0] for name in RANGES]
    assert "aten::addmm" in table


def test_a_stage_that_ends_before_its_window_leaves_what_there_was(tmp_path: Path) -> None:
    train(tmp_path, Profile(skip=2, steps=100), steps=4)
    assert ranges(tmp_path)["forward"] == 2


def test_a_stage_shorter_than_what_is_skipped_leaves_nothing(tmp_path: Path) -> None:
    assert train(tmp_path, Profile(skip=50), steps=2) == []


def test_off_by_default_and_on_ranks_that_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tmp_path, None) == []
    assert Tracking().profiler(tmp_path, 1, "broad") is None
    monkeypatch.setenv("RANK", "3")
    assert Tracking(profile=Profile()).profiler(tmp_path, 1, "broad") is None
    assert Tracking(profile=Profile(ranks=[0, 3])).profiler(tmp_path, 1, "broad") is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with CUDA has a snapshot to take")
def test_a_snapshot_without_cuda_is_told_to_be_impossible(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path, Profile(skip=0, steps=1, trace=False, memory=True), steps=2) == []
    assert "tracking.profile.memory: there is no CUDA device" in caplog.text


def test_a_snapshot_of_cuda_memory_begins_and_ends_with_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = pretend_cuda(monkeypatch)
    train(tmp_path, Profile(skip=1, steps=2, trace=False, memory=True), steps=6)
    assert [name for name, _ in called] == ["record", "dump", "stop"]
    assert called[1][1].endswith("profiles/broad.attempt-2.rank-0.memory.pickle")


def test_memory_that_runs_out_in_the_window_is_dumped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = pretend_cuda(monkeypatch)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        train(tmp_path, Profile(skip=1, steps=100, trace=False, memory=True), steps=6, module=Toy(fails_at=3))
    assert [name for name, _ in called] == ["record", "dump", "stop"]


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What torch is asked to record and dump, on a machine that seems to have CUDA."""
    called: list[tuple[str, str]] = []

    def record(enabled: str | None = "all", max_entries: int = 0) -> None:
        called.append(("record" if enabled else "stop", str(max_entries)))

    monkeypatch.setattr("framework.tracking.profile.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("framework.tracking.profile.torch.cuda.memory._record_memory_history", record)
    monkeypatch.setattr(
        "framework.tracking.profile.torch.cuda.memory._dump_snapshot", lambda path: called.append(("dump", path))
    )
    return called


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tracking\.profile"):
        Profile(steps=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_snapshot(tmp_path: Path) -> None:
    names = train(tmp_path, Profile(skip=0, steps=1, trace=False, memory=True), steps=2)
    assert names == ["broad.attempt-2.rank-0.memory.pickle"]
