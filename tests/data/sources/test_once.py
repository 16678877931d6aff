"""Ranks of a node search a folder once between them; a process that is alone searches each time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from framework.data.sources.base import Frame, RecordedLog
from framework.data.sources.recordings import RecordingShards
from framework.run.worker import ATTEMPT
from framework.scene.types import Scene
from framework.scene.world.generate import outline_scene


@dataclass(frozen=True)
class Counted:
    """Logs of ten frames each, of which the folder's files are the names; each search leaves a line in `searches`."""

    searches: str
    lacks: ClassVar[dict[str, str]] = {}

    def find_logs(self, folder: str) -> Iterator[RecordedLog]:
        with Path(self.searches).open("a") as file:
            file.write(f"{os.getpid()}\n")
        for path in sorted(Path(folder).iterdir()):
            split = "held_out" if path.name == "b" else "train"
            yield RecordedLog(path.name, ((str(path), 0), (str(path), 7)), split, {"short": 3}, (str(path),))

    def read_scene(self, frame: Frame) -> Scene:
        return outline_scene(frame[1], "straight")


def _rank(folder: Path, attempt: str, found: Path) -> None:
    os.environ |= {"LOCAL_WORLD_SIZE": "3", ATTEMPT: attempt}
    for split in ("train", "held_out"):
        source = _source(folder, split)
        logs = source.found.logs["counted"]
        with found.open("a") as file:
            file.write(f"{split} {source.folder.name} {logs}\n")


def _source(folder: Path, split: str) -> RecordingShards:
    datasets = {"counted": Counted(str(folder / "searches"))}
    return RecordingShards(folder / "logs", str(folder / "cache"), datasets, split)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    for name in "abc":
        (tmp_path / "logs" / name).write_text(name)
    return tmp_path


def test_the_ranks_of_a_node_search_once_in_an_attempt(folder: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for number, attempt in enumerate(("1", "2"), start=1):
        ranks = [fork.Process(target=_rank, args=(folder, attempt, folder / "found")) for _ in range(3)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert len((folder / "searches").read_text().splitlines()) == number
        assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    lines = (folder / "found").read_text().splitlines()
    alone = {split: _source(folder, split) for split in ("train", "held_out")}
    expected = {f"{split} {one.folder.name} {one.found.logs['counted']}" for split, one in alone.items()}
    assert len(lines) == 12
    assert set(lines) == expected


def test_a_process_that_is_alone_sees_what_changed(folder: Path) -> None:
    before = _source(folder, "train")
    assert len(before.found.items) == 4
    (folder / "logs" / "d").write_text("d")
    after = _source(folder, "train")
    assert len(after.found.items) == 6
    assert after.folder != before.folder
    assert not (folder / "cache").exists()
