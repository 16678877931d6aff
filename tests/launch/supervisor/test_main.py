"""Supervisors and their workers as processes: what is restarted, what is not, and what remains of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from framework.launch.exit_codes import ExitCode
from framework.launch.host import free_port
from framework.launch.supervisor.failure import Kind
from framework.launch.supervisor.main import (
    address_of,
    decisive_signal,
    listening_host,
    main,
    node_of,
    parse_arguments,
)
from framework.launch.supervisor.restart import FailureLedger, RestartPolicy, committed_step
from framework.launch.supervisor.watchdog import HangRules
from framework.run.heartbeat import parse_heartbeat
from framework.run.layout import COORDINATOR_KEY_FILE, JOB_FILE
from framework.run.phases import Phase, intervals, read_phases
from tests.launch.specimens import spec

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE_S = 200.0
STEPS = 30

Start = Callable[..., "Node"]


class Node:
    """A supervisor, and what it prints. The first of a run writes the run's `job.json`."""

    def __init__(self, toy: dict[str, Any], nodes: int, workers: int, floor_s: float, node_timeout_s: float) -> None:
        self.folder = Path(toy["folder"])
        if not (self.folder / JOB_FILE).is_file():
            self.folder.mkdir(parents=True)
            restart = RestartPolicy(max_attempts_without_progress=3, back_off_s=0.01, node_timeout_s=node_timeout_s)
            hang = HangRules(floor_s=floor_s)
            spec(folder=str(self.folder), nodes=nodes, devices=workers, hang=hang, restart=restart).save()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.launch.supervisor.supervised", json.dumps(toy)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.output = ""

    def end(self) -> int:
        """Wait for its exit code."""
        self.output += self.process.communicate(timeout=PATIENCE_S)[0]
        return self.process.returncode

    def steps(self) -> list[int]:
        """The steps of the heartbeats that it passed on."""
        return [beat.step for line in self.output.splitlines() if (beat := parse_heartbeat(line))]

    def wait_for_step(self, step: int) -> None:
        """Until a heartbeat of it has come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if (beat := parse_heartbeat(line)) is not None and beat.step >= step:
                return
        raise AssertionError(self.output)

    def kinds(self) -> list[str]:
        """What ended each failed attempt of the run."""
        return [str(ended.kind) for ended in FailureLedger(self.folder).history]

    def workers(self) -> list[int]:
        """Its workers' process ids."""
        done = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts supervisors of runs in the test's folder; ends what is left of them."""
    started: list[Node] = []

    def start_node(
        nodes: int = 1, workers: int = 2, floor_s: float = 120.0, node_timeout_s: float = 30.0, **toy: Any
    ) -> Node:
        toy = {"folder": str(tmp_path / "run"), "steps": STEPS, **toy}
        started.append(Node(toy, nodes, workers, floor_s, node_timeout_s))
        return started[-1]

    yield start_node
    for node in started:
        for pid in [*node.workers(), node.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.communicate(timeout=PATIENCE_S)


@pytest.mark.fault("a stop that counts as a failure")
def test_the_notice_of_a_time_slice_requeues_no_job_that_was_told_to_end() -> None:
    term, usr1 = signal.SIGTERM, signal.SIGUSR1
    assert [decisive_signal(None, number) for number in (term, signal.SIGINT, usr1)] == [term, term, usr1]
    assert decisive_signal(term, usr1) == decisive_signal(usr1, term) == term


@pytest.mark.slow
def test_what_fails_is_restarted_from_its_checkpoint_until_it_is_done(start: Start) -> None:
    faults = [
        {"attempt": 1, "rank": 1, "step": 7, "code": 3, "say": "ValueError: broken"},
        {"attempt": 2, "rank": 0, "step": 12, "signal": signal.SIGKILL},
    ]
    node = start(faults=faults)
    assert node.end() == ExitCode.DONE, node.output
    assert node.steps() == [*range(1, 7), *range(6, 12), *range(11, STEPS + 1)]
    assert node.kinds() == [Kind.SOFTWARE, Kind.HARDWARE]
    assert "[rank 1] ValueError: broken" in node.output
    last = read_phases(node.folder)[0][-1]
    assert (last.phase, last.attempt, last.step) == (Phase.END, 3, STEPS)


@pytest.mark.slow
def test_a_hang_is_known_by_the_run_s_own_steps_and_leaves_all_stacks(start: Start) -> None:
    node = start(floor_s=5.0, faults=[{"attempt": 1, "rank": 1, "step": 12, "signal": signal.SIGSTOP}])
    assert node.end() == ExitCode.DONE, node.output
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
    assert node.end() == ExitCode.STOP
    ended = FailureLedger(node.folder).history
    assert [(each.began_at, each.committed) for each in ended] == [(0, 5), (5, 5), (5, 5), (5, 5)]
    assert "3 attempts in a row committed no checkpoint after step 5" in node.output


def test_a_recipe_that_cannot_run_is_not_tried_again(start: Start) -> None:
    node = start(faults=[{"rank": 0, "step": 1, "code": 2, "say": "recipes/a.yaml:3: wrong"}])
    assert node.end() == ExitCode.STOP
    assert node.kinds() == [Kind.RECIPE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGUSR1, ExitCode.REQUEUE)]
)
def test_on_a_signal_workers_save_and_the_exit_code_says_what_is_next(start: Start, number: int, code: int) -> None:
    node = start()
    node.wait_for_step(7)
    node.process.send_signal(number)
    assert node.end() == code, node.output
    assert committed_step(node.folder) == node.steps()[-1] < STEPS
    assert node.kinds() == ([Kind.WALL_TIME] if number == signal.SIGUSR1 else [])
    again = start()
    assert again.end() == ExitCode.DONE
    assert again.steps()[0] == node.steps()[-1] + 1
    phases = [line.phase for line in read_phases(node.folder)[0]]
    assert phases[phases.index(Phase.END) + 1 :][:2] == [Phase.QUEUE, Phase.START]


@pytest.mark.fault("a stop that counts as a failure")
def test_a_stop_is_no_failure_and_no_attempt_follows_it(start: Start) -> None:
    port = free_port()
    nodes = [start(node=node, nodes=2, workers=1, port=port, steps=10_000) for node in (0, 1)]
    nodes[0].wait_for_step(3)
    for node in nodes:
        node.process.send_signal(signal.SIGTERM)
    assert [node.end() for node in nodes] == [ExitCode.TERMINATED] * 2, nodes[0].output + nodes[1].output
    assert nodes[0].kinds() == []
    for node in nodes:
        assert "restart" not in node.output
        (*_, last) = read_phases(node.folder)[0]
        assert (last.phase, last.attempt) == (Phase.END, 1)
        assert last.why is not None
        assert last.why.endswith("received SIGTERM")


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_key_that_strangers_may_know_stops_the_job(mode: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    key = tmp_path / "run" / COORDINATOR_KEY_FILE
    key.write_text("no key")
    key.chmod(mode)
    spec(folder=str(tmp_path / "run"), nodes=1, devices=1).save()
    assert main(["--folder", str(tmp_path / "run"), "--", "recipe=demo"]) == ExitCode.STOP


def test_the_coordinator_listens_where_the_job_reaches_it() -> None:
    assert listening_host("node-0.example", nodes=1) == "127.0.0.1"
    assert listening_host("127.0.0.1", nodes=2) == "127.0.0.1"
    assert listening_host("192.0.2.1", nodes=2) == ""  # an address of documentation, and no node's
    assert listening_host("localhost", nodes=2) == ""  # a PyTorchJob's master


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


@pytest.mark.slow
def test_when_one_node_fails_all_restart_together(start: Start) -> None:
    port = free_port()
    faults = [{"attempt": 1, "rank": 1, "step": 7, "code": 3, "say": "ValueError: broken"}]
    nodes = [start(node=node, nodes=2, workers=1, port=port, faults=faults) for node in (0, 1)]
    assert [node.end() for node in nodes] == [ExitCode.DONE, ExitCode.DONE], nodes[0].output + nodes[1].output
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
    assert [node.end() for node in nodes] == [ExitCode.DONE, ExitCode.DONE], nodes[0].output + nodes[1].output
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
    assert [nodes[1 - lost].end(), back.end()] == [ExitCode.DONE, ExitCode.DONE], nodes[1 - lost].output + back.output
    assert back.steps()[0] % 5 == 1
    assert back.steps()[-1] == 60


@pytest.mark.slow
def test_a_node_that_does_not_come_back_has_the_job_requeued(start: Start) -> None:
    port = free_port()
    nodes = [start(node=node, nodes=2, workers=1, port=port, steps=10_000, node_timeout_s=1.0) for node in (0, 1)]
    nodes[1].wait_for_step(3)
    nodes[1].process.kill()
    assert nodes[0].end() == ExitCode.REQUEUE
    assert nodes[0].kinds() == [Kind.HARDWARE]


def test_a_node_that_finds_no_coordinator_has_the_job_requeued(start: Start) -> None:
    node = start(node=1, nodes=2, workers=1, port=free_port(), node_timeout_s=0.5)
    assert node.end() == ExitCode.REQUEUE


def test_slurm_or_a_pytorchjob_number_the_nodes() -> None:
    assert node_of({"SLURM_NODEID": "2", "SLURM_NNODES": "4"}) == (2, 4)
    assert node_of({"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)
    assert node_of({}) == (0, 1)
    assert address_of({"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "4003"}) == ("10.0.0.7", 29403)
    assert address_of({"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}) == ("job-master-0", 23456)


def test_settings_are_read_from_the_run_s_folder(tmp_path: Path) -> None:
    submitted = spec(folder=str(tmp_path), hang=HangRules(floor_s=5.0), restart=RestartPolicy(restarts=3), notice_s=99)
    submitted.save()
    assert parse_arguments(["--folder", str(tmp_path), "--node", "3", "--address", "n1:77"], {}) == (
        submitted,
        3,
        ("n1", 77),
    )
    job, node, address = parse_arguments(
        [*submitted.module()[2:]], {"SLURM_NODEID": "1", "SLURM_LAUNCH_NODE_IPADDR": "n0"}
    )
    assert (job, node, address) == (submitted, 1, ("n0", 29400))
    assert (job.hang.floor_s, job.restart.restarts, job.save_s) == (5.0, 3, 10.0)


def test_the_command_line_precedes_the_folder(tmp_path: Path) -> None:
    spec(folder=str(tmp_path)).save()
    options = ["--folder", str(tmp_path), "--workers", "8", "--nodes", "4", "--node", "3", "--address", "n1:77"]
    job, node, address = parse_arguments([*options, "--", "recipe=demo", "a=1"], {})
    assert (node, job.nodes, job.devices, address) == (3, 4, 8, ("n1", 77))
    assert job.overrides == ("recipe=demo", "a=1")


def test_a_run_that_was_not_submitted_has_default_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a run"
    options = ["--folder", str(folder), "--workers", "8"]
    job, node, _ = parse_arguments([*options, "--", "recipe=demo"], {"SLURM_NODEID": "1", "SLURM_NNODES": "2"})
    assert (job.folder, job.nodes, job.devices, node, job.overrides) == (str(folder), 2, 8, 1, ("recipe=demo",))
    assert (job.hang, job.restart, job.save_s) == (HangRules(), RestartPolicy(), 600.0)
    with pytest.raises(SystemExit):
        parse_arguments(options, {})
    assert "job.json: not there; give --workers N -- recipe=NAME ..." in capsys.readouterr().err


def test_a_job_that_cannot_be_read_is_left_to_people(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / JOB_FILE).write_text("{}")
    assert main(["--folder", str(tmp_path)]) == ExitCode.STOP
    assert "submit the run again" in caplog.text


def test_supervising_imports_no_torch() -> None:
    code = "import framework.launch.supervisor.main, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
