"""Classifies why an attempt failed, from how its workers ended and what they last printed."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from framework.launch.exit_codes import ExitCode
from framework.run.worker import DUMP


class Kind(StrEnum):
    """What broke. Two kinds differ if something else must be done about them."""

    HARDWARE = "hardware"
    """A device, a link or a node; another node may work."""
    SOFTWARE = "software"
    """The code raised or crashed."""
    RECIPE = "recipe"
    """The recipe cannot run; no restart helps."""
    HANG = "hang"
    """The workers showed no sign of life."""
    PREEMPTION = "preemption"
    """The scheduler took the nodes back."""
    WALL_TIME = "wall time"
    """The job's wall time was nearly up."""
    OUT_OF_MEMORY = "out of memory"
    """The memory of a device or of the host was exhausted."""
    DATA = "data"
    """Samples, shards or checkpoints could not be read or written."""
    NOT_FINITE = "nan"
    """The loss or the gradients were not finite."""


class Evidence(IntEnum):
    """How strongly a failure points to the cause. Of several failures the strongest is the cause."""

    CONSEQUENCE = 1
    """A worker lost a peer."""
    CRASH = 2
    """A worker died without a message."""
    MENTION = 3
    """A worker printed an error that may have any cause."""
    CAUSE = 4
    """A worker printed an error that names its cause."""
    REQUESTED = 5
    """The scheduler ended the job, which explains everything else."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed on one node."""

    kind: Kind
    """What broke."""
    detail: str
    """The line that says so."""
    node: int
    """The node."""
    time: float
    """When (Unix, s)."""
    evidence: Evidence
    """How strongly it points to the cause."""

    def __str__(self) -> str:
        return f"{self.kind} (node {self.node}): {self.detail}"


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """The end of a worker."""

    rank: int
    """The worker's rank."""
    code: int
    """Its exit code as in subprocess: negative for a signal."""
    tail: str
    """The last lines of its standard error."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A pattern by which a failure is recognized in a worker's output."""

    kind: Kind
    """What broke."""
    evidence: Evidence
    """How strongly the line points to the cause."""
    pattern: re.Pattern[str]
    """Found in the line."""


def _sign(kind: Kind, evidence: Evidence, *patterns: str) -> Sign:
    return Sign(kind, evidence, re.compile("|".join(patterns), re.IGNORECASE))


SIGNS = (
    _sign(
        Kind.HARDWARE, Evidence.CAUSE, r"\bXid\b", r"\bNVRM\b", r"uncorrectable (NVLink|ECC) error", r"double.bit ECC",
        r"fallen off the bus", r"no CUDA-capable device", r"cudaErrorDevicesUnavailable", r"hardware (error|failure)",
        r"NVLink error", r"\bslow links: ", r"ibv_\w+ failed", r"NET/OFI .*(error|fail)", r"unhandled system error",
    ),
    _sign(
        Kind.OUT_OF_MEMORY, Evidence.CAUSE, r"CUDA out of memory", r"OutOfMemoryError", r"can't allocate memory",
        r"MemoryError", r"Cannot allocate memory", r"CUBLAS_STATUS_ALLOC_FAILED", r"oom.kill",
    ),
    _sign(Kind.NOT_FINITE, Evidence.CAUSE, r"not finite", r"\b(loss|grad\w*)\b.* (is|are) (nan|inf)", r"contains? NaN"),
    _sign(
        Kind.DATA, Evidence.CAUSE, r"ShardError", r"SceneError", r"No space left on device", r"Disk quota exceeded",
        r"Input/output error", r"Read-only file system", r"Stale file handle", r"Transport endpoint is not connected",
    ),
    _sign(Kind.SOFTWARE, Evidence.MENTION, r"^(\[rank\d+\]: )?\w[\w.]*(Error|Exception|Interrupt)\b"),
    _sign(
        Kind.HARDWARE, Evidence.CONSEQUENCE, r"Connection (closed|reset) by( remote)? peer", r"remote process exited",
        r"ncclRemoteError", r"NCCL (error|communicator was aborted)", r"Socket closed", r"Broken pipe",
        r"ranks lost each other", r"recvValue failed", r"Connection refused", r"gloo.*(timed out|timeout)",
    ),
)  # fmt: skip
"""The first that matches a line counts."""
SEARCH_ORDER = (SIGNS[-1], *SIGNS[:-1])
"""Lost peers come first, as their messages look like any other error's."""


def classify(exits: Sequence[WorkerExit], node: int, now: float, out_of_memory: bool = False) -> Failure:
    """Return the failure of a node.

    Args:
        exits: The workers that failed by themselves, in the order in which they ended.
        node: The node.
        now: The time of the failure (Unix, s).
        out_of_memory: Whether the kernel has killed a process of this node for lack of memory meanwhile.
    """
    return root_cause([_classify(worker, node, now, out_of_memory) for worker in exits])


def root_cause(failures: Sequence[Failure]) -> Failure:
    """Return the failure that caused the others: the one of strongest evidence, and of equals the first in time."""
    return max(sorted(failures, key=lambda failure: failure.time), key=lambda failure: failure.evidence)


def _classify(worker: WorkerExit, node: int, now: float, out_of_memory: bool) -> Failure:
    rank = f"rank {worker.rank}"
    match = _search(worker.tail)
    if worker.code == ExitCode.RECIPE_ERROR:
        return Failure(Kind.RECIPE, f"{rank}: {_last_line(worker.tail)}", node, now, Evidence.CAUSE)
    if worker.code == ExitCode.TERMINATED:
        return Failure(Kind.PREEMPTION, f"{rank} was terminated, and saved", node, now, Evidence.MENTION)
    if worker.code == -signal.SIGKILL and out_of_memory:
        detail = f"{rank} was killed by the kernel: the node's memory is full"
        return Failure(Kind.OUT_OF_MEMORY, detail, node, now, Evidence.CAUSE)
    if worker.code in (-signal.SIGKILL, -signal.SIGBUS, -DUMP):
        name = signal.Signals(-worker.code).name
        return Failure(Kind.HARDWARE, f"{rank} was killed by {name} from outside", node, now, Evidence.CRASH)
    if match is not None:
        sign, line = match
        if worker.code > 0 or sign.evidence == Evidence.CAUSE:
            return Failure(sign.kind, f"{rank}: {line}", node, now, sign.evidence)
    if worker.code < 0:
        name = signal.Signals(-worker.code).name
        return Failure(Kind.SOFTWARE, f"{rank} crashed by {name}", node, now, Evidence.CRASH)
    detail = f"{rank} ended with code {worker.code}: {_last_line(worker.tail)}"
    return Failure(Kind.SOFTWARE, detail, node, now, Evidence.CRASH)


def _search(tail: str) -> tuple[Sign, str] | None:
    """The sign of strongest evidence in a worker's output, and its line. Of equals the last counts, as Python prints
    the exception that it raises at the end.
    """
    best: tuple[Sign, str] | None = None
    for line in tail.splitlines():
        sign = next((sign for sign in SEARCH_ORDER if sign.pattern.search(line)), None)
        if sign is not None and (best is None or sign.evidence >= best[0].evidence):
            best = sign, line.strip()[:500]
    return best


def _last_line(tail: str) -> str:
    lines = [line for line in tail.splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "it printed nothing"
