"""A job, or a sweep of them, as an sbatch script: a pure function of specifications.

What comes from a recipe stands in the script's body, quoted for bash, or in a directive of a form that is checked;
sbatch reads no directive behind the first command. One task per node runs the node's supervisor, which starts the
workers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from framework.launch.spec import RunSpec, SpecError
from framework.launch.supervisor.restart import STOP

HYPERPOD = "/opt/sagemaker_cluster"
"""Exists on the nodes of HyperPod, where `srun` knows `--auto-resume`."""
CARRIED = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER")
"""Taken along from who submits. Everything else would make a job depend on a login shell."""

_FIELD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:,&|*()\[\]-]*")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where Slurm puts a job, and, of a sweep, how many at a time. Without `exclusive` jobs share a node."""

    partition: str
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    exclusive: bool = True
    at_once: int = 4

    def __post_init__(self) -> None:
        """Raises `SpecError` for what sbatch would read as something else."""
        for name in ("partition", "account", "qos", "reservation", "constraint"):
            value = getattr(self, name)
            if value is not None and not _FIELD.fullmatch(value):
                raise SpecError(f"launch.{name}: {value!r} is no name that Slurm takes")


def render(specs: Sequence[RunSpec], placement: Placement, name: str | None = None, output: str | None = None) -> str:
    """The script that runs `specs`: one as a job; several, which must ask for the same, as a job array called `name`
    that writes what happens before a run has begun to `output`. Raises `SpecError` where they ask for different
    things.
    """
    first = specs[0]
    if any(_asked(spec) != _asked(first) for spec in specs):
        raise SpecError("the runs of a sweep ask for different nodes, times or code; only the recipe can be swept")
    directives = _directives(first, placement)
    if len(specs) > 1:
        directives |= {"array": f"0-{len(specs) - 1}%{placement.at_once}"}
    directives |= {"job-name": name or first.name, "output": output or f"{first.folder}/job.log"}
    lines = [f"#SBATCH --{key}" if value is None else f"#SBATCH --{key}={value}" for key, value in directives.items()]
    return "\n".join(["#!/bin/bash", *lines, "", *_which(specs), *_body(first), ""])


def _asked(spec: RunSpec) -> RunSpec:
    """What the runs of a sweep have in common."""
    return replace(spec, name="sweep", folder="/", words=(), watched=None)


def _directives(spec: RunSpec, placement: Placement) -> dict[str, str | None]:
    named = ("account", "qos", "reservation", "constraint")
    return {
        "partition": placement.partition,
        **{name: getattr(placement, name) for name in named if getattr(placement, name) is not None},
        "nodes": str(spec.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(spec.gpus)} if spec.gpus else {}),
        **({"exclusive": None} if placement.exclusive else {}),
        "time": str(spec.minutes),
        "signal": f"SIGUSR1@{spec.notice_s}",
        "requeue": None,
        "open-mode": "append",
        "export": ",".join([*CARRIED, *sorted({*spec.passed, *spec.secrets})]),
        "chdir": spec.directory,
    }


def _which(specs: Sequence[RunSpec]) -> list[str]:
    """The lines that set `folder` and `words`: the only ones in which the runs of a sweep differ."""

    def given(spec: RunSpec) -> str:
        words = " ".join(shlex.quote(word) for word in spec.words)
        return f"folder={shlex.quote(spec.folder)}; words=({words})"

    if len(specs) == 1:
        return [given(specs[0])]
    cases = [f"{number}) {given(spec)} ;;" for number, spec in enumerate(specs)]
    return ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac", 'exec >> "$folder/job.log" 2>&1']


def _body(spec: RunSpec) -> list[str]:
    variables = [f"export {name}={shlex.quote(value)}" for name, value in spec.variables().items()]
    python = shlex.quote(spec.python)
    step = 'srun --export=ALL --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE"'
    # Supervisors end together by themselves: killed by the first one's code, another would not tell its own.
    together = "--kill-on-bad-exit=0 --wait=0"
    supervisor = (
        f'{python} -m framework.launch.supervisor.main --folder "$folder" '
        f"--workers {spec.devices} --nodes {spec.nodes} "
        f"{shlex.join(spec.supervision)}"
    ).rstrip()
    return [
        *variables,
        "auto=()",
        f"[ -d {HYPERPOD} ] && auto=(--auto-resume=1)",
        f'{step} --kill-on-bad-exit=1 {python} -m framework.launch.preflight --folder "$folder" &&',
        f'  {step} {together} "${{auto[@]}}" {supervisor} -- "${{words[@]}}"',
        "code=$?",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "job=${job:-$SLURM_JOB_ID}",
        'case "$code" in',
        f'0 | {STOP}) exit "$code" ;;',
        "esac",
        f'if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {spec.requeues} ]; then',
        '  echo "job $job ended with code $code and begins anew"',
        '  exec scontrol requeue "$job"',
        "fi",
        f'echo "job $job ended with code $code; it has begun anew {spec.requeues} times, which is the most allowed"',
        'exit "$code"',
    ]
