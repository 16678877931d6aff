"""A failure is classified by how workers ended and what they last printed."""

from __future__ import annotations

import signal

import pytest

from framework.launch.supervisor.failure import Evidence, Failure, Kind, WorkerExit, classify, root_cause

PEER = "RuntimeError: [gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:8600."
DEPTH = 'Traceback (most recent call last):\n  File "train.py", line 3, in run\n    step()\n'


def kind_of(code: int, tail: str = "", out_of_memory: bool = False) -> Kind:
    return classify([WorkerExit(3, code, tail)], 0, 0.0, out_of_memory).kind


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Kind.HARDWARE, "NVRM: Xid (PCI:0000:53:00): 79, pid=1, GPU has fallen off the bus."),
        (Kind.HARDWARE, "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"),
        (Kind.HARDWARE, "torch.distributed.DistBackendError: NCCL error in: x.cpp, unhandled system error"),
        (Kind.HARDWARE, "framework.parallel.links.SlowNodeError: slow links: node-3 reach less than 1/2 of the median"),
        (Kind.OUT_OF_MEMORY, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (Kind.OUT_OF_MEMORY, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"),
        (Kind.NOT_FINITE, "framework.checkpoint.manifest.CheckpointError: step 7 is not finite (loss nan)"),
        (Kind.DATA, "framework.data.shards.cache.ShardError: s3://b/x: no answer within data.cache.patience (1800 s)"),
        (Kind.DATA, "framework.checkpoint.manifest.CheckpointError: [Errno 28] No space left on device"),
        (Kind.SOFTWARE, "[rank1]: IndexError: list index out of range"),
        (Kind.HARDWARE, PEER),
    ],
)  # fmt: skip
def test_the_last_output_classifies(kind: Kind, line: str) -> None:
    assert kind_of(1, DEPTH + line) is kind


@pytest.mark.parametrize(
    ("kind", "code", "out_of_memory"),
    [
        (Kind.RECIPE, 2, False),
        (Kind.PREEMPTION, 143, False),
        (Kind.OUT_OF_MEMORY, -signal.SIGKILL, True),
        (Kind.HARDWARE, -signal.SIGKILL, False),
        (Kind.HARDWARE, -signal.SIGBUS, False),
        (Kind.SOFTWARE, -signal.SIGSEGV, False),
        (Kind.SOFTWARE, 9, False),
    ],
)
def test_the_way_of_ending_classifies(kind: Kind, code: int, out_of_memory: bool) -> None:
    assert kind_of(code, "some words\n", out_of_memory) is kind


def test_the_line_is_shown_with_the_rank() -> None:
    failure = classify([WorkerExit(3, 1, f"{DEPTH}ValueError: broken\nbye\n")], 5, 0.0)
    assert str(failure) == "software (node 5): rank 3: ValueError: broken"


def test_one_that_lost_a_peer_is_a_consequence_though_it_ended_first() -> None:
    lost, broken = WorkerExit(0, 1, DEPTH + PEER), WorkerExit(1, 1, f"{DEPTH}ValueError: broken")
    assert classify([lost, broken], 0, 0.0).kind is Kind.SOFTWARE
    assert (
        classify([lost, WorkerExit(1, -signal.SIGKILL, "")], 0, 0.0).detail
        == "rank 1 was killed by SIGKILL from outside"
    )


def test_over_nodes_the_failure_of_strongest_evidence_is_the_cause_and_of_equals_the_first() -> None:
    peer = Failure(Kind.HARDWARE, "lost a peer", 0, 1.0, Evidence.CONSEQUENCE)
    first = Failure(Kind.SOFTWARE, "a", 1, 2.0, Evidence.MENTION)
    second = Failure(Kind.DATA, "b", 2, 3.0, Evidence.MENTION)
    assert root_cause([peer, second, first]) is first
