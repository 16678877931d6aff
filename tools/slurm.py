"""A real Slurm on loopback, for tests and demonstrations: munged, slurmctld and several slurmd in a folder of its own.

python -m tools.slurm --folder outputs/slurm --nodes 2        starts it, prints what to export, stops it at Ctrl-C

It touches nothing outside the folder and needs no root: jobs run as the user who started it. There are no cgroups and
no accounting. Processes are tracked by their parents, and a killed slurmd with its steps is a lost node.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from framework.run.parent_death import end_with_parent

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol")
PARTITION = "local"
LONGEST_SOCKET = 100
"""Longest path of a socket (characters); sun_path holds 108."""

CONFIGURATION = """\
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={socket},cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1,requeue_delay=1
ReturnToService=2
SlurmdTimeout={node_timeout_s}
SlurmctldTimeout=30
InactiveLimit=0
KillWait={kill_wait_s}
MinJobAge=600
JobRequeue=1
MaxArraySize=1001
NodeName=DEFAULT CPUs={cpus} RealMemory=1000 State=UNKNOWN
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}]
PartitionName={partition} Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing_programs() -> list[str]:
    """Return the programs that a local Slurm needs and this machine lacks (Debian: slurm-wlm and munge)."""
    return [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]


@dataclass
class LocalSlurm:
    """A running cluster of nodes n1, n2, ..."""

    folder: Path
    """Its configuration, state and logs."""
    nodes: int
    """Number of nodes."""
    munge_socket: Path
    """The socket of its munged."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Its daemons: munged, slurmctld, n1, ..."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which Slurm's commands find this cluster. `SBATCH_PARTITION` names its partition."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "SBATCH_PARTITION": PARTITION, "PATH": _search_path()}

    def run(self, *command: str, timeout_s: float = 60) -> str:
        """Run a command of Slurm and return its standard output. Raises `RuntimeError` with its error output."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def state_of(self, job: str) -> str:
        """Return a job's state (PENDING, RUNNING, COMPLETED, ...), or UNKNOWN once Slurm has forgotten it."""
        try:
            lines = self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").split()
        except RuntimeError:
            return "UNKNOWN"
        return lines[0] if lines else "UNKNOWN"

    def wait_for(self, job: str, states: Sequence[str], timeout_s: float) -> str:
        """Wait until a job is in one of `states` and return that state. Raises `TimeoutError` with its state."""
        wait_until(lambda: self.state_of(job) in states, timeout_s, lambda: f"job {job} is {self.state_of(job)}")
        return self.state_of(job)

    def kill_node(self, node: str, noticed: bool = True) -> None:
        """Lose a node: its slurmd and all processes of its steps are stopped first and then killed, so that none can
        report the death of another to the controller.

        Slurm needs half a minute to miss a node. With `noticed` the node is set down at once, as a cluster's health
        checks would do.
        """
        stopped: set[int] = set()
        while fresh := set(_processes_of(node, self.folder)) - stopped:
            _send(fresh, signal.SIGSTOP)
            stopped |= fresh
        _send(stopped, signal.SIGKILL)
        self.processes.pop(node).wait()
        if noticed:
            self.run("scontrol", "update", f"node={node}", "state=down", "reason=lost")

    def start_node(self, node: str) -> None:
        """Bring a node (back) into service."""
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"), **_mark(node, self.folder))

    def start(self) -> None:
        """Start all daemons and wait until every node is idle. Raises `TimeoutError` or `RuntimeError` with the
        logs' ends.
        """
        self._start(
            "munged", "munged", "--foreground", f"--socket={self.munge_socket}", f"--key-file={self.folder}/munge.key",
            f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/munged.seed",
            f"--log-file={self.folder}/munged.log", "--force",
        )  # fmt: skip
        wait_until(self.munge_socket.exists, 20, self._logs)
        self._start("slurmctld", "slurmctld", "-D", "-c", "-f", str(self.folder / "slurm.conf"))
        for number in range(1, self.nodes + 1):
            self.start_node(f"n{number}")
        wait_until(lambda: self._idle_nodes() == self.nodes or self._dead(), 60, self._logs)
        if self._dead():
            raise RuntimeError(f"{', '.join(self._dead())} ended at once: {self._logs()}")

    def stop(self) -> None:
        """Cancel all jobs and end every daemon that this object started, with all their processes."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--full", f"--partition={PARTITION}", timeout_s=10)
        for node in [name for name in self.processes if name.startswith("n")]:
            self.kill_node(node, noticed=False)
        for name in ("slurmctld", "munged"):
            daemon = self.processes.pop(name, None)
            if daemon is not None:
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        shutil.rmtree(self.munge_socket.parent, ignore_errors=True)

    def _start(self, name: str, *command: str, **variables: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**_without_slurm(os.environ), **self.environment, **variables},
                preexec_fn=partial(end_with_parent, os.getpid()),  # a test killed by SIGKILL leaves no cluster behind
            )  # fmt: skip

    def _dead(self) -> list[str]:
        return [name for name, daemon in self.processes.items() if daemon.poll() is not None]

    def _idle_nodes(self) -> int:
        try:
            return self.run("sinfo", "--noheader", "--Node", "--format=%T", timeout_s=10).split().count("idle")
        except (RuntimeError, subprocess.TimeoutExpired):
            return 0

    def _logs(self) -> str:
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-500:]}" for log in logs)


@contextmanager
def local_slurm(folder: Path, nodes: int = 2, node_timeout_s: int = 5, kill_wait_s: int = 5) -> Iterator[LocalSlurm]:
    """Run a cluster with its files in `folder`; every process of it is ended when the block ends. Raises
    `FileNotFoundError` with the programs that are missing.

    Args:
        folder: Configuration, state and logs.
        nodes: Number of nodes.
        node_timeout_s: A node that does not answer for so long (s) is down.
        kill_wait_s: Time between SIGTERM and SIGKILL of a cancelled job (s).
    """
    if missing := missing_programs():
        raise FileNotFoundError(f"{', '.join(missing)}: not installed (Debian: apt install slurm-wlm munge)")
    folder = folder.resolve()
    for name in ("state", *(f"spool-n{number}" for number in range(1, nodes + 1))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # The path of a socket must be short, and a test's folder may be deep.
    deep = len(str(folder)) > LONGEST_SOCKET - len("/munge/socket")
    munge = Path(tempfile.mkdtemp(prefix="munge-")) if deep else folder / "munge"
    munge.mkdir(mode=0o755, exist_ok=True)
    munge.chmod(0o755)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    ports = _free_ports(nodes + 1)
    settings = {
        "controller": ports[0], "first": ports[1], "last": ports[-1], "nodes": nodes, "folder": folder,
        "partition": PARTITION, "socket": munge / "socket", "user": pwd.getpwuid(os.getuid()).pw_name,
        "cpus": os.cpu_count() or 1,
        "node_timeout_s": node_timeout_s, "kill_wait_s": kill_wait_s,
    }  # fmt: skip
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
    cluster = LocalSlurm(folder, nodes, munge / "socket")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def wait_until(condition: Callable[[], bool], timeout_s: float, describe: Callable[[], str]) -> None:
    """Wait until `condition` holds. Raises `TimeoutError` with what `describe` returns after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {describe()}")
        time.sleep(0.2)


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without a job's variables, which the daemons would pass to every job."""
    return {name: value for name, value in environment.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}


def _free_ports(count: int) -> list[int]:
    """`count` consecutive free ports, below the range from which the kernel assigns ports."""
    for first in range(17000 + os.getpid() % 500 * 20, 32000, count):
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise OSError("no free ports between 17000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _mark(node: str, folder: Path) -> dict[str, str]:
    """The variables that identify a node's processes: Slurm sets them for tasks, slurmstepd inherits them."""
    return {"SLURMD_NODENAME": node, "SLURM_CONF": str(folder / "slurm.conf")}


def _processes_of(node: str, folder: Path) -> Iterator[int]:
    """The processes of a node, found by their environment, as slurmstepd leaves the process tree of its slurmd."""
    mark = {f"{name}={value}".encode() for name, value in _mark(node, folder).items()}
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark <= set(file.read_bytes().split(b"\0")):
                yield int(file.parent.name)


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a cluster, print the variables to export, and wait for Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tools.slurm", description="A real Slurm on loopback.")
    parser.add_argument("--folder", type=Path, default=Path("outputs/slurm"), help="configuration, state and logs")
    parser.add_argument("--nodes", type=int, default=2)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with local_slurm(options.folder, options.nodes) as cluster:
        for name, value in cluster.environment.items():
            if name != "PATH":
                print(f"export {name}={shlex.quote(value)}")
        print(f"# {options.nodes} nodes are idle; Ctrl-C ends them", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
