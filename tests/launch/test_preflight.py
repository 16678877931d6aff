"""Whatever would stop a job is found before it does, all at once and each with its remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.launch import preflight
from framework.launch.exit_codes import ExitCode
from framework.launch.launcher import Limits, PyTorchJob, Slurm
from framework.launch.preflight import main, on_node
from framework.launch.snapshot import packages_hash
from framework.launch.spec import RunSpec
from tests.launch.conftest import Cluster
from tests.launch.specimens import spec
from tests.launch.test_snapshot import environment

LIMITS = Limits(nodes=16, minutes=1000, free_gib=0)


def slurm(**changes: Any) -> Slurm:
    return Slurm(**{"limits": LIMITS, "partition": "local", "nodes": 4, "instance": "p5.48xlarge", **changes})


def findings(job: RunSpec, launcher: Slurm | PyTorchJob, **mesh: Any) -> list[str]:
    """The findings that need no cluster, as `key: message`."""
    results = preflight.of_job(job, launcher, {"mesh": mesh})
    return [f"{key}: {message}" for key, message, *_ in results]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    monkeypatch.setenv("COMET_API_KEY", "x")
    return spec(folder=str(tmp_path / "runs" / "a"), environment=())


def test_a_sound_job_has_no_findings(job: RunSpec) -> None:
    assert findings(job, slurm()) == []


@pytest.mark.guarantee(
    "A preflight finds what would stop a job, and each node compares its packages with the submitted ones"
)
@pytest.mark.parametrize(
    ("changes", "asked", "finding"),
    [
        ({"nodes": 17}, {}, "nodes: 17 are asked for, and 16 allowed"),
        ({"minutes": 1001}, {}, "minutes: 1001 are asked for, and 1000 allowed"),
        ({"minutes": 4}, {}, "notice_s: the warning would come before the job"),
        ({"minutes": 30}, {}, "minutes: a lost node takes up to 30 minutes to replace"),
        ({"devices": 4}, {}, "devices: a p5.48xlarge has 8 GPUs; with 4 workers"),
        ({"instance": "p9.large"}, {}, r"instance: p9.large: add it to framework/launch/schedulers/instances\.py"),
        ({"instance": None}, {}, "instance: the nodes' type is not named"),
        (
            {},
            {"shard": 8, "tensor": 3},
            "devices: parallel.mesh asks for shard 8 x tensor 3, but there are 4 x 8 workers",
        ),
        ({}, {"replicate": 1, "shard": 8, "tensor": 2}, "devices: parallel.mesh asks for replicate 1"),
        ({"environment": (("NCCL_P2P_DISABLE", "1"),)}, {}, "variables: NCCL_P2P_DISABLE: turns NVLink off; unset it"),
        ({"secrets": ("NOT_SET",)}, {}, "secrets: NOT_SET is not set here; export it"),
    ],
)
def test_what_is_wrong_is_found(job: RunSpec, changes: dict, asked: dict, finding: str) -> None:
    (result,) = findings(replace(job, **changes), slurm(), **asked)
    assert re.match(finding, result)


def test_meshes_that_fit_are_fine(job: RunSpec) -> None:
    for mesh in ({}, {"replicate": "auto", "shard": 8}, {"replicate": 4, "shard": 4, "tensor": 2}, {"tensor": 8}):
        assert findings(job, slurm(), **mesh) == []


def test_a_folder_that_cannot_be_written_or_has_no_room(job: RunSpec, tmp_path: Path) -> None:
    full = slurm(limits=Limits(16, 1000, 1e9))
    assert "less than 1e+09; make room" in findings(job, full)[0]
    (tmp_path / "runs").write_text("a file")
    assert findings(job, slurm())[0].startswith(f"folder: {tmp_path}/runs cannot be written")


@pytest.mark.attack("rendering", "a secret's value as a variable of the job", "refused")
@pytest.mark.parametrize("variables", [{"MY_API_TOKEN": "1"}, {"GREETING": "hf_" + "a" * 34}])
def test_a_secret_is_named_and_not_given(job: RunSpec, variables: dict[str, str]) -> None:
    (finding,) = findings(job, slurm(variables=variables))
    (name,) = variables
    assert (
        finding
        == f"variables.{name}: {name} looks like a secret; name it in launch.secrets instead, which writes no value"
    )


def test_a_pod_sees_the_shared_file_system_alone(job: RunSpec) -> None:
    names = {"namespace": "a", "image": "b", "claim": "c", "mount": "/elsewhere"}
    pod = PyTorchJob(limits=LIMITS, nodes=4, instance="p5.48xlarge", **names)
    results = findings(replace(job, passed=(), secrets=()), pod)
    assert [line.split(" ")[1] for line in results] == [job.folder, job.directory, job.code, job.python]


class TestOnNode:
    """What a node finds before its workers start."""

    @pytest.fixture(autouse=True)
    def node(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in preflight.HARMFUL:
            monkeypatch.delenv(name, raising=False)
        python = environment(tmp_path / "env", torch="2.11")
        (tmp_path / "code" / "framework").mkdir(parents=True)
        (tmp_path / "code" / "framework" / "__init__.py").touch()
        (tmp_path / "run").mkdir()
        self.job = spec(
            folder=str(tmp_path / "run"), code=str(tmp_path / "code"), python=str(python), gpus=0,
            packages=packages_hash(python), overrides=("recipe=demo", "scale=tiny"),
        )  # fmt: skip

    def test_a_sound_node_has_no_findings(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.job.save()
        assert main(["--folder", self.job.folder]) == 0
        assert capsys.readouterr().err == ""

    def test_all_findings_are_printed_and_the_gravest_decides(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("RDMAV_FORK_SAFE", "1")
        job = replace(self.job, code="/nowhere", packages="0" * 16, overrides=("recipe=demo", "run.sede=1"))
        job.save()
        assert main(["--folder", job.folder]) == ExitCode.STOP
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(" ")[0] for line in lines] == ["preflight"] * 4
        text = "\n".join(lines)
        for part in ("/nowhere: the code is absent", "submit the run again", "RDMAV_FORK_SAFE is set", "run.sede"):
            assert part in text

    def test_a_variable_that_only_slows_is_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
        self.job.save()
        assert main(["--folder", self.job.folder]) == 0
        assert "NCCL_P2P_DISABLE is set on this node: turns NVLink off" in capsys.readouterr().err

    def test_another_node_may_work(self) -> None:
        job = replace(self.job, code="/nowhere", python="/nowhere/bin/python")
        assert {code for _, code in on_node(job)} == {ExitCode.REQUEUE}

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        self.job = replace(self.job, folder=str(tmp_path / "file"))
        ((message, code),) = on_node(self.job)
        assert "cannot be written" in message
        assert code == ExitCode.REQUEUE

    @pytest.mark.parametrize(("gpus", "efa", "findings"), [(8, 32, 0), (7, 32, 1), (8, 31, 1), (0, 0, 2)])
    def test_devices_are_counted(self, gpus: int, efa: int, findings: int, tmp_path: Path) -> None:
        for name, count in (("gpus", gpus), ("efa", efa)):
            for number in range(count):
                (tmp_path / name / str(number)).mkdir(parents=True)
        job = replace(self.job, gpus=8)
        results = list(preflight.hardware(job, tmp_path / "gpus", tmp_path / "efa"))
        assert [code for _, code in results] == [ExitCode.REQUEUE] * findings
        assert all("drain the node (reason Action:Replace)" in message for message, _ in results)


def test_a_user_holds_no_more_nodes_than_allowed(cluster: Cluster) -> None:
    (cluster.state / "nodes").write_text("8\n4\n")
    assert list(preflight.of_cluster(slurm(), "")) == []
    (cluster.state / "nodes").write_text("8\n5\n")
    ((key, message),) = preflight.of_cluster(slurm(), "")
    assert key == "nodes"
    assert message.startswith("13 nodes are held or waited for by jobs of yours, 16 are allowed; ask for less")


def test_a_partition_must_be_there_and_up(cluster: Cluster) -> None:
    def messages(name: str) -> list[str]:
        return [finding[1] for finding in preflight.of_cluster(slurm(partition=name), "")]

    assert messages("local") == []
    assert messages("closed") == ["closed is down; choose another"]
    assert messages("nowhere") == ["nowhere: no such partition; there are: closed, local"]
