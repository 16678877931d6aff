"""Which processes of an allocation of Slurm have peers. The variables are those that Slurm 22.05 sets."""

from __future__ import annotations

import os

import pytest

from framework.parallel.parallelism import nodes, world_size
from framework.run.allocation import leave_allocation, waits_for_nobody
from framework.run.worker import is_first_on_node, local_workers

ALLOCATION = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_NPROCS": "2", "SLURM_NTASKS_PER_NODE": "2"}
BATCH = {**ALLOCATION, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1", "SLURM_PROCID": "1"}


@pytest.mark.fault("a lone process in an allocation")
@pytest.mark.guarantee("A process that srun did not start trains alone inside an allocation of several tasks")
@pytest.mark.parametrize(
    ("environment", "alone"),
    [
        (ALLOCATION, True),  # salloc
        (BATCH, True),
        ({**STEP, "SLURM_PTY_PORT": "41269"}, True),
        ({**BATCH, "SLURM_STEP_ID": "4294967291"}, True),  # the batch script itself
        ({**BATCH, "SLURM_STEP_ID": "4294967290"}, True),  # salloc's own shell on a node
        ({"SLURM_JOB_ID": "77", "SLURM_NNODES": "2"}, True),  # salloc --nodes=2
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}, True),
        (STEP, False),
        ({**STEP, "SLURM_NTASKS": "1"}, False),  # srun --ntasks=1
        ({**BATCH, "WORLD_SIZE": "2"}, False),  # a supervisor or torchrun started it
        ({**ALLOCATION, "SLURM_NTASKS": "1"}, False),
        ({}, False),
    ],
)
def test_a_process_that_srun_did_not_start_is_alone(environment: dict[str, str], alone: bool) -> None:
    assert waits_for_nobody(environment) is alone


@pytest.mark.parametrize("environment", [ALLOCATION, BATCH])
def test_a_lone_process_says_so_and_is_one_of_one(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(environment))
    assert world_size() == 2
    leave_allocation()
    assert (world_size(), nodes(), local_workers(), is_first_on_node()) == (1, 1, 1, True)
    assert os.environ == {"SLURM_JOB_ID": "77"}
    assert "holds 2 tasks (SLURM_NTASKS), but srun did not start this process" in capsys.readouterr().err


def test_the_tasks_of_a_step_keep_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(STEP))
    leave_allocation()
    assert (world_size(), os.environ["SLURM_PROCID"]) == (2, "1")
