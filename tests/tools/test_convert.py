"""Conversions are killed, repeated, changed, and run by Slurm and Ray; they end as an undisturbed one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from framework.data.shards.parts import SUMMARY, PartJob, part_folder
from framework.data.sources.conversations import ConversationShards
from framework.data.stream.mixture import Shards, read_scenes
from framework.scene.types import SceneError
from tests.data.stored import contents, records
from tools.convert import with_slurm
from tools.convert.__main__ import main
from tools.convert.conversion import Conversion
from tools.convert.with_slurm import SlurmEngine
from tools.slurm import local_slurm, missing_programs, wait_until


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 conversations in three files."""
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("a", 100), ("b", 299), ("c", 1)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(count):
                turns = [{"role": "user", "content": f"{name} {number}?"}, {"role": "assistant", "content": "Yes."}]
                file.write(json.dumps({"id": f"{name}{number}", "dialog": turns}) + "\n")
    return folder


def words(rows: Path, out: Path, *more: str) -> list[str]:
    columns = "sources.conversations.columns={messages: dialog}"
    return ["--source", "conversations", "--input", str(rows), "--out", str(out), "--part-items", "20", *more, columns]


@pytest.mark.slow
def test_conversations_are_converted_and_reported(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "talks"
    assert main(words(rows, out, "--split", "held_out")) == 0
    printed = capsys.readouterr().out
    held_out = records(out)
    assert 15 < held_out < 75
    assert f"split held_out: {held_out} records" in printed
    assert f"tasks of held_out: converse {held_out}" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["tasks"] == {"held_out": {"converse": held_out}}
    assert report["records_per_s"] > 0
    page = (out / "report.html").read_text()
    assert f'<div class="value">{held_out}</div>' in page
    assert "?</p>" in page
    others = [word.replace("messages: dialog", "messages: id") for word in words(rows, out, "--split", "all")]
    assert main(others) == 1
    refused = capsys.readouterr().err
    assert "split: 'held_out' there, 'all' now" in refused
    assert "columns: (('messages', 'dialog'),) there, (('messages', 'id'),) now" in refused
    assert main(words(rows, out, "--split", "held_out")) == 0, "the same again finds all of it"
    assert json.loads((out / "report.json").read_text())["records_per_s"] is None


@pytest.mark.slow
@pytest.mark.guarantee("A conversion that is killed ten times at any moment ends with the bytes of an undisturbed one.")
def test_ten_kills_lose_and_double_nothing(rows: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.monotonic()
    assert main(words(rows, whole, "--workers", "2")) == 0
    took = time.monotonic() - start
    draw, kills = random.Random(17), 0
    while kills < 10:
        process = multiprocessing.get_context("fork").Process(
            target=main, args=(words(rows, killed, "--workers", "2"),)
        )
        process.start()
        time.sleep(draw.uniform(0, took * 0.6))
        process.kill()
        process.join()
        kills += 1
        if kills == 9:  # one of them strikes a finished folder, while it is merged or reported again
            assert main(words(rows, killed)) == 0
    assert main(words(rows, killed)) == 0
    assert contents(killed) == contents(whole)
    names = [scene.id for scene in read_scenes(Shards(local=killed))]
    assert len(names) == len(set(names)) == 400


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}")
def test_an_array_of_slurm_goes_on_without_who_waits(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    assert main(words(rows, whole)) == 0
    with local_slurm(tmp_path / "slurm") as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        command = words(rows, out, "--engine", "slurm", "--elements", "2")
        first = multiprocessing.get_context("fork").Process(target=main, args=(command,))
        first.start()
        wait_until(lambda: (out / "slurm" / "job.json").is_file(), 60, lambda: "no array was submitted")
        first.kill()
        first.join()
        assert main(command) == 0, "the array went on, and is waited for"
        jobs = cluster.run("squeue", "--states=all", "--noheader", "--format=%F").split()
        assert len(set(jobs)) == 1
    assert contents(out) == contents(whole)
    assert not (out / "slurm").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_of_ray_write_the_same(rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    whole, out = tmp_path / "whole", tmp_path / "ray"
    assert main(words(rows, whole)) == 0
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        assert main(words(rows, out, "--engine", "ray", "--address", cluster.address)) == 0
    finally:
        cluster.shutdown()
    assert contents(out) == contents(whole)


def test_a_column_that_no_row_has_names_the_nearest(rows: Path, tmp_path: Path) -> None:
    stream = ConversationShards(rows, str(tmp_path), columns={"messages": "dialogs"})
    with pytest.raises(
        SceneError, match=r"columns.messages: no row has dialogs \(did you mean dialog\?\); there are: id"
    ):
        stream.location()


def test_an_engine_that_is_not_there_is_one_line(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    assert main(words(rows, tmp_path / "out", "--engine", "slurm")) == 1
    assert "--partition: none is given, and SBATCH_PARTITION is not set" in capsys.readouterr().err


def test_parts_that_an_earlier_array_gave_up_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def submit(engine: SlurmEngine, job: PartJob, folder: Path, numbers: list[int]) -> str:
        written.extend(numbers)
        for number in numbers:
            part = part_folder(job.folder, number)
            part.mkdir()
            (part / SUMMARY).write_text("{}")
        return "8"

    (tmp_path / "slurm" / "failed").mkdir(parents=True)
    (tmp_path / "slurm" / "job.json").write_text('{"job": "7"}')
    (tmp_path / "slurm" / "failed" / "part-00000").write_text("the disk is full")
    monkeypatch.setattr(with_slurm, "_active", lambda array: False)
    monkeypatch.setattr(SlurmEngine, "_submit", submit)
    engine = SlurmEngine(Conversion(("kitti",), str(tmp_path), "all"), {}, 1, 1, 1)
    job = PartJob(tmp_path, {0: [("train", [1])]}, lambda item: [], {})
    assert list(engine(job, [0])) == [(0, None)]
    assert written == [0]
