"""Supervisors and their workers as processes: what is restarted, what is not, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from framework.launch.supervisor.failure import Kind
from framework.launch.supervisor.main import address_of, parse, place_of
from framework.launch.supervisor.restart import DONE, REQUEUE, STOP, TOLD, FailureLedger, committed_step
from framework.launch.supervisor.workers import Place
from framework.run.heartbeat import parse_heartbeat
from framework.run.phases import Phase, intervals, read_phases

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE_S = 200.0
STEPS = 30

Start = Callable[..., "Node"]


class Node:
    """A supervisor, and what it says."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.folder = Path(job["folder"])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.launch.supervisor.supervised", json.dumps(job)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.said = ""

    def end(self) -> int:
        """Wait for its exit code."""
        self.said += self.process.communicate(timeout=PATIENCE_S)[0]
        return self.process.returncode

    def steps(self) -> list[int]:
        """The steps of the heartbeats that it passed on."""
        return [beat.step for line in self.said.splitlines() if (beat := parse_heartbeat(line))]

    def wait_for_step(self, step: int) -> None:
        """Until a heartbeat of it has come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if (beat := parse_heartbeat(line)) is not None and beat.step >= step:
                return
        raise AssertionError(self.said)

    def kinds(self) -> list[str]:
        """What ended each failed attempt of the run."""
        return [str(ended.kind) for ended in FailureLedger(self.folder).history]

    def workers(self) -> list[int]:
        """Its workers' process ids."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts supervisors of runs in the test's folder; ends what is left of them."""
    nodes: list[Node] = []

    def begin(**job: Any) -> Node:
        nodes.append(Node({"folder": str(tmp_path / "run"), "steps": STEPS, **job}))
        return nodes[-1]

    yield begin
    for node in nodes:
        for pid in [*node.workers(), node.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.communicate(timeout=PATIENCE_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_what_fails_is_restarted_from_its_checkpoint_until_it_is_done(start: Start) -> None:
    faults = [
        {"attempt": 1, "rank": 1, "step": 7, "code": 3, "say": "ValueError: broken"},
        {"attempt": 2, "rank": 0, "step": 12, "signal": signal.SIGKILL},
    ]
    node = start(faults=faults)
    assert node.end() == DONE, node.said
    assert node.steps() == [*range(1, 7), *range(6, 12), *range(11, STEPS + 1)]
    assert node.kinds() == [Kind.SOFTWARE, Kind.HARDWARE]
    assert "[rank 1] ValueError: broken" in node.said
    last = read_phases(node.folder)[0][-1]
    assert (last.phase, last.attempt, last.step) == (Phase.END, 3, STEPS)


def test_a_hang_is_known_by_the_run_s_own_steps_and_leaves_all_stacks(start: Start) -> None:
    node = start(floor_s=5.0, faults=[{"attempt": 1, "rank": 1, "step": 12, "signal": signal.SIGSTOP}])
    assert node.end() == DONE, node.said
    assert node.kinds() == [Kind.HANG]
    assert "rank 1 is stopped" in FailureLedger(node.folder).history[0].detail
    stacks = [(node.folder / "attempt-1" / "stacks" / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert "in wait_for_peers" in stacks[0]
    assert "in fail" in stacks[1]
    (hang,) = [span for span in intervals(read_phases(node.folder)[0], time.time()) if span.line.phase is Phase.HANG]
    assert hang.line.step == 11


@pytest.mark.slow
def test_it_stops_where_no_progress_is_made(start: Start) -> None:
    node = start(faults=[{"rank": 0, "step": 7, "code": 1, "say": "ValueError: broken"}])
    assert node.end() == STOP
    ended = FailureLedger(node.folder).history
    assert [(each.began_at, each.committed) for each in ended] == [(0, 5), (5, 5), (5, 5), (5, 5)]
    assert "3 attempts in a row committed no checkpoint after step 5" in node.said


def test_a_recipe_that_cannot_run_is_not_tried_again(start: Start) -> None:
    node = start(faults=[{"rank": 0, "step": 1, "code": 2, "say": "recipes/a.yaml:3: wrong"}])
    assert node.end() == STOP
    assert node.kinds() == [Kind.RECIPE]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TOLD), (signal.SIGUSR1, REQUEUE)])
def test_told_to_end_it_has_workers_save_and_says_what_is_next(start: Start, number: int, code: int) -> None:
    node = start()
    node.wait_for_step(7)
    node.process.send_signal(number)
    assert node.end() == code, node.said
    assert committed_step(node.folder) == node.steps()[-1] < STEPS
    again = start()
    assert again.end() == DONE
    assert again.steps()[0] == node.steps()[-1] + 1
    phases = [line.phase for line in read_phases(node.folder)[0]]
    assert phases[phases.index(Phase.END) + 1 :][:2] == [Phase.QUEUE, Phase.START]


def test_workers_do_not_outlive_their_supervisor(start: Start) -> None:
    node = start(steps=10_000)
    node.wait_for_step(3)
    workers = node.workers()
    assert len(workers) == 2
    node.process.kill()
    end = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_when_one_node_fails_all_restart_together(start: Start) -> None:
    port = free_port()
    faults = [{"attempt": 1, "rank": 1, "step": 7, "code": 3, "say": "ValueError: broken"}]
    nodes = [start(node=node, nodes=2, workers=1, port=port, faults=faults) for node in (0, 1)]
    assert [node.end() for node in nodes] == [DONE, DONE], nodes[0].said + nodes[1].said
    for node in nodes:
        assert node.steps() == [*range(1, 7), *range(6, STEPS + 1)]
    (ended,) = FailureLedger(nodes[0].folder).history
    assert (ended.kind, ended.node) == (Kind.SOFTWARE, 1)
    assert {node: {line.attempt for line in lines} for node, lines in read_phases(nodes[0].folder).items()} == {
        0: {1, 2},
        1: {1, 2},
    }


@pytest.mark.slow
def test_of_several_nodes_the_one_that_hangs_is_named(start: Start) -> None:
    port = free_port()
    faults = [{"attempt": 1, "rank": 1, "step": 12, "signal": signal.SIGSTOP}]
    nodes = [start(node=node, nodes=2, workers=1, port=port, floor_s=5.0, faults=faults) for node in (0, 1)]
    assert [node.end() for node in nodes] == [DONE, DONE], nodes[0].said + nodes[1].said
    (ended,) = FailureLedger(nodes[0].folder).history
    assert (ended.kind, ended.node) == (Kind.HANG, 1)
    assert "rank 1 is stopped" in ended.detail
    assert all((nodes[0].folder / "attempt-1" / "stacks" / f"rank-{rank}.txt").read_text() for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_is_waited_for(start: Start, lost: int) -> None:
    port = free_port()
    jobs = [{"node": node, "nodes": 2, "workers": 1, "port": port, "steps": 60} for node in (0, 1)]
    nodes = [start(**job) for job in jobs]
    nodes[lost].wait_for_step(7)
    nodes[lost].process.kill()
    back = start(**jobs[lost])
    assert [nodes[1 - lost].end(), back.end()] == [DONE, DONE], nodes[1 - lost].said + back.said
    assert back.steps()[0] % 5 == 1
    assert back.steps()[-1] == 60


@pytest.mark.slow
def test_a_node_that_does_not_come_back_has_the_job_requeued(start: Start) -> None:
    port = free_port()
    nodes = [start(node=node, nodes=2, workers=1, port=port, steps=10_000, patience_s=1.0) for node in (0, 1)]
    nodes[1].wait_for_step(3)
    nodes[1].process.kill()
    assert nodes[0].end() == REQUEUE
    assert nodes[0].kinds() == [Kind.HARDWARE]


def test_a_node_that_finds_no_council_has_the_job_requeued(start: Start) -> None:
    node = start(node=1, nodes=2, workers=1, port=free_port(), patience_s=0.5)
    assert node.end() == REQUEUE


def test_a_place_is_told_by_slurm_or_by_a_pytorchjob() -> None:
    assert place_of({"SLURM_NODEID": "2", "SLURM_NNODES": "4"}, 8, None) == Place(2, 4, 8)
    assert place_of({"RANK": "1", "WORLD_SIZE": "2"}, 8, None) == Place(1, 2, 8)
    assert place_of({}, 8, None) == Place(0, 1, 8)
    assert address_of({"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "4003"}) == ("10.0.0.7", 29403)
    assert address_of({"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}) == ("job-master-0", 23456)


def test_the_command_line_says_how_patient_it_is(tmp_path: Path) -> None:
    words = ["--folder", str(tmp_path), "--workers", "8", "--nodes", "4", "--node", "3", "--address", "n1:77"]
    job = parse([*words, "--floor-s", "5", "--restarts", "3", "--save-s", "9", "--", "recipe=demo", "a=1"], {})
    assert (job.place, job.address) == (Place(3, 4, 8), ("n1", 77))
    assert (job.rules.floor_s, job.restarts.restarts, job.grace.save_s) == (5.0, 3, 9.0)
    assert list(job.command[1:]) == ["-m", "framework", "recipe=demo", "a=1"]


def test_supervising_imports_no_torch() -> None:
    code = "import framework.launch.supervisor.main, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
