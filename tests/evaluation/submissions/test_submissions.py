"""Submissions hold the plans of predictions in the form that each benchmark reads."""

from __future__ import annotations

import pickle
import pickletools
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.evaluation.submissions.agent_files import Bench2DriveAgent
from framework.evaluation.submissions.navsim import FILE, NavsimSubmission, read_submission
from framework.evaluation.submissions.plans import at_times, plans_of
from framework.evaluation.submissions.wod_e2e import FILE as ARCHIVE
from framework.evaluation.submissions.wod_e2e import PART, WodE2eSubmission
from framework.run.folder import RunFolder
from framework.training.tasks.submit import Submit

TEAM = {"team_name": "t", "authors": "a", "email": "e@x", "institution": "i", "country": "c"}
METHOD: dict[str, Any] = {"account_name": "e@x", "unique_method_name": "m", "authors": ["a", "b"],
                          "num_model_parameters": "2B", "public_model_names": ["Qwen3-VL"]}  # fmt: skip


def straight(speed: float, seconds: float = 5.0) -> np.ndarray:
    times = np.arange(1, round(4 * seconds) + 1) / 4
    return np.stack([times, speed * times, 0.1 * times, 0.02 * times, 0 * times + speed], axis=1)


PLANS = {"one": straight(8.0), "two": straight(3.0)}


def test_a_navsim_pickle_names_navsims_classes_and_reads_back(tmp_path: Path) -> None:
    form = NavsimSubmission(**TEAM)
    form.write(PLANS, tmp_path)
    assert "2 + 0 trajectories of 8 poses" in form.check(PLANS, tmp_path)
    read = read_submission(tmp_path / FILE)
    assert read["country / region"] == "c"
    assert read["predictions"] == read["first_stage_predictions"]
    sampling = read["predictions"][0]["one"].fields["trajectory_sampling"]
    assert sampling.fields == {"num_poses": 8, "time_horizon": 4.0, "interval_length": 0.5}
    poses = read["predictions"][0]["two"].fields["poses"]
    assert poses.dtype == np.float32
    np.testing.assert_allclose(poses[:, 0], 3.0 * np.arange(0.5, 4.1, 0.5))
    named = {str(arg) for code, arg, _ in pickletools.genops((tmp_path / FILE).read_bytes()) if code.name == "GLOBAL"}
    assert named == {
        "navsim.common.dataclasses Trajectory", "numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct",
        "nuplan.planning.simulation.trajectory.trajectory_sampling TrajectorySampling", "copyreg _reconstructor",
        "builtins object",
    }  # fmt: skip
    staged = NavsimSubmission(**TEAM, second_stage=["two"])
    staged.write(PLANS, tmp_path)
    assert "1 + 1 trajectories" in staged.check(PLANS, tmp_path)
    with pytest.raises(ValueError, match="scene two: the poses are not the plan's"):
        staged.check({**PLANS, "two": straight(9.0)}, tmp_path)


@pytest.mark.attack("submission", "names a function that deletes files", "refused; nothing is called")
def test_a_pickle_that_names_anything_else_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "called",))

    for value in (Hostile(), pickle, np.random.default_rng, ValueError("x")):
        try:
            (tmp_path / FILE).write_bytes(pickle.dumps(value))
        except TypeError:  # a module is no value
            continue
        with pytest.raises(ValueError, match=r"names .*, which no submission does"):
            read_submission(tmp_path / FILE)
    assert not (tmp_path / "called").exists()


def field(number: int, payload: bytes | int) -> bytes:
    """A field on the wire, by hand (protobuf.dev/programming-guides/encoding)."""
    if isinstance(payload, int):
        return bytes([number << 3, payload])
    assert len(payload) < 1 << 14
    size = [len(payload)] if len(payload) < 128 else [len(payload) & 127 | 128, len(payload) >> 7]
    return bytes([number << 3 | 2, *size]) + payload


def test_a_message_of_the_challenge_has_the_bytes_of_its_definition(tmp_path: Path) -> None:
    form = WodE2eSubmission(**METHOD)
    form.write(PLANS, tmp_path)
    assert form.check(PLANS, tmp_path) == "2 frames of 20 positions, method m"
    expected = b""
    for name, plan in PLANS.items():
        axes = b"".join(field(k, struct.pack("<20f", *plan[:, k])) for k in (1, 2))
        expected += field(1, field(1, name.encode()) + field(2, axes))
    expected += field(2, 1) + field(3, b"e@x") + field(4, b"m") + field(5, b"a") + field(5, b"b")
    expected += field(6, b"") + field(7, b"") + field(8, b"") + field(11, 1) + field(12, b"2B") + field(13, b"Qwen3-VL")
    with tarfile.open(tmp_path / ARCHIVE) as archive:
        part = archive.extractfile(PART)
        assert part is not None
        assert part.read() == expected


def test_what_a_leaderboard_would_refuse_is_told_before_it_is_written(tmp_path: Path) -> None:
    faults: list[tuple[Any, dict[str, Any], str]] = [
        (NavsimSubmission, {**TEAM, "email": None, "country": ""}, "NAVSIM needs email, country"),
        (NavsimSubmission, {**TEAM, "second_stage": ["x"]}, "x is no scene of the predictions"),
        (WodE2eSubmission, {**METHOD, "authors": []}, "needs authors"),
        (WodE2eSubmission, {**METHOD, "num_model_parameters": "2 billion"}, "'2 billion'; give a whole number"),
        (WodE2eSubmission, {**METHOD, "public_model_names": []}, "name the public models"),
    ]
    for form, given, message in faults:
        with pytest.raises(ValueError, match=message):
            form(**given).write(PLANS, tmp_path)
    with pytest.raises(ValueError, match="scene one: the plan ends at 3 s, before 4 s"):
        NavsimSubmission(**TEAM).write({"one": straight(1.0, seconds=3.0)}, tmp_path)
    with pytest.raises(ValueError, match=r"task.run: is missing; give the folder of a run of recipe=predict"):
        Submit(NavsimSubmission(**TEAM), str(tmp_path)).run(RunFolder(tmp_path, 1, "submit", 0))
    assert not list(tmp_path.iterdir())


def test_each_scene_needs_one_plan() -> None:
    state = {"t": 0.25, "x": 1.0, "y": 0.0, "heading": 0.0, "speed": 4.0}
    row = {"scene": "one", "sample": "s/0", "plan": [state], "error": None}
    assert plans_of([row])["one"].tolist() == [[0.25, 1.0, 0.0, 0.0, 4.0]]
    with pytest.raises(ValueError, match=r"1 scenes have no plan: s/1 \(NaN\); 1 scenes are predicted twice: one"):
        plans_of([row, row, {"sample": "s/1", "plan": None, "error": "NaN"}])
    with pytest.raises(ValueError, match="there are none"):
        plans_of([])
    turned = np.array([[1.0, 2.0, 0.0, 3.1, 2.0], [2.0, 4.0, 1.0, -3.1, 2.0]])
    assert at_times("x", turned, np.array([1.5]))[0] == pytest.approx([3.0, 0.5, np.pi], abs=0.01)


def test_an_agent_is_two_files_that_import_nothing_of_ours(tmp_path: Path) -> None:
    Submit(Bench2DriveAgent(), str(tmp_path / "out")).run(RunFolder(tmp_path, 1, "submit", 0))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["bench2drive_agent.py", "drive_client.py"]
    (tmp_path / "out" / "drive_client.py").write_text("from framework.run import files\n")
    with pytest.raises(ValueError, match="imports this framework"):
        Bench2DriveAgent().check({}, tmp_path / "out")
