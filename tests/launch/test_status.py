"""`status` lists the sound runs, whatever else lies below outputs/runs."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.launch import runs
from framework.launch.submissions import record_submission
from tests.fuzzing import fuzz
from tests.launch.conftest import Cluster
from tests.launch.specimens import spec

FILES = {
    "job.json": None,  # of the specimen
    "submissions.jsonl": b'{"time": 1.0, "scheduler": "slurm", "job": "41", "file": "/a/job.sbatch"}\n',
    "attempts.jsonl": b'{"event": "start", "attempt": 1}\n{"event": "end", "outcome": "finished"}\n',
    "job.log": b"heartbeat run=toy attempt=1 stage=broad step=7 loss=1.25 tokens_per_s=1.0 step_s=0.5\n",
    "dropped.json": b'{"foreign": 12}',
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
DAMAGES = st.one_of(
    st.just("sound"),
    st.just("absent"),
    st.just("a folder"),
    st.just("a loop of links"),
    st.binary(max_size=40),
    st.integers(0, 300),  # cut there
    VALUES.map(lambda value: json.dumps(value).encode() + b"\n"),
    st.just(b"[" * 100_000),
    st.just(b"\xff\xfe\x00"),
    st.just(b'{"job": "\\u001b[2J", "file": "a"}\n'),
    st.just(b'{"job": ["41"], "file": 3}\n'),
    st.just(b"heartbeat run=a attempt=1 stage=b step=" + b"9" * 5000 + b" loss=1 tokens_per_s=1 step_s=1\n"),
)


def damaged_run(folder: Path, damages: dict[str, str | bytes | int], changed: dict[str, object]) -> None:
    """A run's folder, each of whose files is damaged in its own way; `changed` are fields of its `job.json`."""
    folder.mkdir(parents=True)
    spec(folder=str(folder)).save()
    job = json.loads((folder / "job.json").read_text()) | changed
    for name, sound in FILES.items():
        content, file, damage = sound or json.dumps(job).encode(), folder / name, damages[name]
        file.unlink(missing_ok=True)
        if damage == "a folder":
            file.mkdir()
        elif damage == "a loop of links":
            file.symlink_to(file)
        elif damage != "absent":
            file.write_bytes(damage if isinstance(damage, bytes) else content[: None if damage == "sound" else damage])


@pytest.mark.fault("status of runs with evaluations")
@pytest.mark.attack("folder", "run folders with files of any content", "every sound run is listed")
@pytest.mark.guarantee("`status` lists every sound run, whatever else lies below outputs/runs")
@fuzz(60)
@given(
    damages=st.fixed_dictionaries(dict.fromkeys(FILES, DAMAGES)),
    changed=st.dictionaries(st.sampled_from(sorted(spec().__slots__)), VALUES, max_size=2),
)
def test_no_folder_hides_a_sound_run(
    cluster: Cluster, damages: dict[str, str | bytes | int], changed: dict[str, object]
) -> None:
    with tempfile.TemporaryDirectory() as name, mock.patch.object(runs, "RUNS", Path(name)):
        damaged_run(Path(name, "damaged"), damages, changed)
        damaged_run(Path(name, "sound", "evaluations", "step-00000005", "held_out"), damages, changed)
        sound = Path(name, "sound")
        spec(folder=str(sound)).save()
        record_submission(sound, "slurm", "77", sound / "job.sbatch")
        printed, complaints = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(complaints),
            mock.patch("framework.launch.schedulers.slurm.SlurmScheduler.state", return_value="RUNNING"),
        ):
            assert runs.status([]) == 0
        lines = printed.getvalue().splitlines()
        assert any(line.split() == [str(sound), "77", "RUNNING", "0"] for line in lines)
        assert not any("held_out" in line for line in lines)
        assert "\x1b" not in printed.getvalue()


def test_a_scheduler_that_does_not_answer_hides_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    damaged_run(tmp_path / "run", dict.fromkeys(FILES, "sound"), {})
    assert runs.status([]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split() == [str(tmp_path / "run"), "41", "finished", "1", "7", "1.25"]
    assert printed.out.splitlines()[2].endswith("dropped what does not belong to the run: foreign 12")
    assert "squeue: not installed here" in printed.err
