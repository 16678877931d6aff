"""The local Slurm runs jobs on several nodes, loses one, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.slurm import LocalSlurm, local_slurm, missing_programs, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    with local_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def test_a_step_runs_on_every_node(cluster: LocalSlurm) -> None:
    output = cluster.run("srun", "-N2", "--ntasks-per-node=1", "bash", "-c", "echo $SLURMD_NODENAME")
    assert sorted(output.split()) == ["n1", "n2"]


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_job_is_requeued_when_any_of_its_nodes_is_lost(cluster: LocalSlurm, node: str) -> None:
    ask = ["sbatch", "--parsable", "-N2", "--requeue", f"--output={cluster.folder}/out", "--wrap", "srun sleep 1000"]
    job = cluster.run(*ask).strip()
    cluster.wait_for(job, ["RUNNING"], 30)
    cluster.kill_node(node)
    assert cluster.wait_for(job, ["PENDING"], 30) == "PENDING"
    cluster.start_node(node)
    cluster.wait_for(job, ["RUNNING"], 60)
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", job)
    cluster.run("scancel", job)


def test_nothing_of_it_lives_on(tmp_path: Path) -> None:
    with local_slurm(tmp_path / "short") as cluster:
        pids = [daemon.pid for daemon in cluster.processes.values()]
        cluster.run("sbatch", "-N2", f"--output={tmp_path}/out", "--wrap", "srun sleep 1000")
    assert len(pids) == 4
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    wanted = f"SLURM_CONF={cluster.folder}/slurm.conf".encode()
    assert not [file for file in Path("/proc").glob("[0-9]*/environ") if wanted in _read(file)]


def test_its_daemons_end_with_who_started_it(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "tools.slurm", "--folder", str(tmp_path / "slurm")]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as owner:
        assert owner.stdout is not None
        lines = [owner.stdout.readline() for _ in range(3)]
        assert "2 nodes are idle" in lines[-1]
        owner.kill()
    wanted = f"SLURM_CONF={tmp_path}/slurm/slurm.conf".encode()

    def living() -> list[Path]:
        return [file for file in Path("/proc").glob("[0-9]*/environ") if wanted in _read(file)]

    wait_until(lambda: not living(), 30, lambda: f"alive: {living()}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
