"""Why an attempt failed: from how its workers ended and what they last said."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from framework.run.worker import DUMP


class Kind(StrEnum):
    """What broke, as far as what is to be done about it differs."""

    HARDWARE = "hardware"
    """A device, a link or a node: another node may do."""
    SOFTWARE = "software"
    """The code raised, or crashed."""
    RECIPE = "recipe"
    """The recipe cannot run: no restart mends it."""
    HANG = "hang"
    PREEMPTION = "preemption"
    """The scheduler wanted the nodes back."""
    WALL_TIME = "wall time"
    """The job's time was nearly up."""
    OUT_OF_MEMORY = "out of memory"
    DATA = "data"
    """Samples, shards or checkpoints could not be read or written."""
    NOT_FINITE = "nan"
    """Loss or gradients are no numbers."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What broke on `node`, when (Unix, s), and the line that tells. Of several failures the most `telling` is the
    cause: those of workers that have lost a peer are consequences.
    """

    kind: Kind
    detail: str
    node: int
    time: float
    telling: int

    def __str__(self) -> str:
        return f"{self.kind} (node {self.node}): {self.detail}"


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """The worker of `rank` ended with `code` (as in subprocess: negative for a signal), having said `tail` at last."""

    rank: int
    code: int
    tail: str


@dataclass(frozen=True, slots=True)
class Sign:
    """Words by which a failure is known, and how much they tell of the cause."""

    kind: Kind
    telling: int
    pattern: re.Pattern[str]


TOLD, CAUSE, MENTION, CRASH, CONSEQUENCE = 5, 4, 3, 2, 1
"""How much a failure tells of the cause; that a scheduler wanted it explains everything else."""


def _sign(kind: Kind, telling: int, *words: str) -> Sign:
    return Sign(kind, telling, re.compile("|".join(words), re.IGNORECASE))


SIGNS = (
    _sign(
        Kind.HARDWARE, CAUSE, r"\bXid\b", r"\bNVRM\b", r"uncorrectable (NVLink|ECC) error", r"double.bit ECC",
        r"fallen off the bus", r"no CUDA-capable device", r"cudaErrorDevicesUnavailable", r"hardware (error|failure)",
        r"NVLink error", r"\bslow links: ", r"ibv_\w+ failed", r"NET/OFI .*(error|fail)", r"unhandled system error",
    ),
    _sign(
        Kind.OUT_OF_MEMORY, CAUSE, r"CUDA out of memory", r"OutOfMemoryError", r"can't allocate memory", r"MemoryError",
        r"Cannot allocate memory", r"CUBLAS_STATUS_ALLOC_FAILED", r"oom.kill",
    ),
    _sign(Kind.NOT_FINITE, CAUSE, r"not finite", r"\b(loss|grad\w*)\b.* (is|are) (nan|inf)", r"contains? NaN"),
    _sign(
        Kind.DATA, CAUSE, r"ShardError", r"SceneError", r"No space left on device", r"Disk quota exceeded",
        r"Input/output error", r"Read-only file system", r"Stale file handle", r"Transport endpoint is not connected",
    ),
    _sign(Kind.SOFTWARE, MENTION, r"^(\[rank\d+\]: )?\w[\w.]*(Error|Exception|Interrupt)\b"),
    _sign(
        Kind.HARDWARE, CONSEQUENCE, r"Connection (closed|reset) by( remote)? peer", r"remote process exited",
        r"ncclRemoteError", r"NCCL (error|communicator was aborted)", r"Socket closed", r"Broken pipe",
        r"ranks lost each other", r"recvValue failed", r"Connection refused", r"gloo.*(timed out|timeout)",
    ),
)  # fmt: skip
"""By line, the first that fits; what one says of a lost peer is looked at first, as its name ends in Error, too."""
LOOKED_AT = (SIGNS[-1], *SIGNS[:-1])
RECIPE_CODE = 2
"""The command's exit code for a recipe that cannot run."""


def classify(exits: Sequence[WorkerExit], node: int, now: float, out_of_memory: bool = False) -> Failure:
    """What the ends of a node's workers come to; `exits` are those that failed by themselves, in the order in which
    they ended. `out_of_memory`: the kernel has killed for want of memory meanwhile.
    """
    found = [_of(ended, node, now, out_of_memory) for ended in exits]
    return cause(found)


def cause(failures: Sequence[Failure]) -> Failure:
    """The failure that brought the others about: the most telling, of equals the first."""
    return max(sorted(failures, key=lambda failure: failure.time), key=lambda failure: failure.telling)


def _of(ended: WorkerExit, node: int, now: float, out_of_memory: bool) -> Failure:
    who = f"rank {ended.rank}"
    said = _read(ended.tail)
    if ended.code == RECIPE_CODE:
        return Failure(Kind.RECIPE, f"{who}: {_last_line(ended.tail)}", node, now, CAUSE)
    if ended.code == 128 + signal.SIGTERM:
        return Failure(Kind.PREEMPTION, f"{who} was told to end, and saved", node, now, MENTION)
    if ended.code == -signal.SIGKILL and out_of_memory:
        detail = f"{who} was killed by the kernel: the node's memory is full"
        return Failure(Kind.OUT_OF_MEMORY, detail, node, now, CAUSE)
    if ended.code in (-signal.SIGKILL, -signal.SIGBUS, -DUMP):
        name = signal.Signals(-ended.code).name
        return Failure(Kind.HARDWARE, f"{who} was killed by {name} from outside", node, now, CRASH)
    if said is not None and (ended.code > 0 or said[0].telling == CAUSE):
        return Failure(said[0].kind, f"{who}: {said[1]}", node, now, said[0].telling)
    if ended.code < 0:
        return Failure(Kind.SOFTWARE, f"{who} crashed by {signal.Signals(-ended.code).name}", node, now, CRASH)
    return Failure(Kind.SOFTWARE, f"{who} ended with code {ended.code}: {_last_line(ended.tail)}", node, now, CRASH)


def _read(tail: str) -> tuple[Sign, str] | None:
    """The most telling sign in what a worker said, and its line; of equals the last, where Python names what it
    raised.
    """
    best: tuple[Sign, str] | None = None
    for line in tail.splitlines():
        sign = next((sign for sign in LOOKED_AT if sign.pattern.search(line)), None)
        if sign is not None and (best is None or sign.telling >= best[0].telling):
            best = sign, line.strip()[:500]
    return best


def _last_line(tail: str) -> str:
    lines = [line for line in tail.splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "it said nothing"
