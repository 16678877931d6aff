"""Renders a job, or a sweep of jobs, as an sbatch script: a pure function of specifications.

Whatever comes from a recipe stands in the script's body, quoted for bash, or in a directive whose form is checked;
sbatch reads no directive behind the first command. One task per node runs the node's supervisor, which starts the
workers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from framework.launch.exit_codes import ExitCode
from framework.launch.spec import RunSpec, SpecError
from framework.launch.supervisor.restart import INTERRUPTIONS
from framework.run.layout import FAILURES_FILE, phases_file

HYPERPOD = "/opt/sagemaker_cluster"
"""Exists on the nodes of HyperPod, where `srun` knows `--auto-resume`."""
EXPORTED = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER")
"""Variables exported from whoever submits. With any other a job would depend on a login shell."""

_INTERRUPTIONS = (
    r'match($0, /"attempt": [0-9]+/) { attempt = substr($0, RSTART, RLENGTH) } '
    r'index($0, "\"why\": \"job " job " received SIG") { ends++; told[attempt] = 1 } '
    f'/"kind": "({"|".join(INTERRUPTIONS)})"/ && !/ was terminated, and saved"/ && '
    r'(!/"job": "[0-9]/ || index($0, "\"job\": \"" job "\"")) { ended[attempt] = 1 } '
    r"END { for (attempt in ended) if (!(attempt in told)) ends++; print ends + 0 }"
)
"""A program of awk: counts in the run's ledgers the requeues of this job that were no failures. Slurm's own counter of
restarts includes time slices and preemptions. Each is counted once, whether the supervisor recorded the signal, its
coordinator the failed attempt, or both. Workers that were told to end by somebody else restart within the job."""
_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:,&|*()\[\]-]*")


def check_options(options: Mapping[str, str]) -> None:
    """Raises `SpecError` for an option that sbatch would read as something else."""
    for name, value in options.items():
        if not _OPTION.fullmatch(value):
            raise SpecError(f"launch.{name}: {value!r} is no name that Slurm takes")


def render(specs: Sequence[RunSpec], name: str, output: str, options: Mapping[str, str], at_once: int = 4) -> str:
    """Render the script that runs `specs`: one as a job, several as a job array. Raises `SpecError` where the runs of
    a sweep ask for different things.

    Args:
        specs: The runs.
        name: The job's name.
        output: The job's log. The runs of an array log there until they have entered their own folders.
        options: Options of sbatch that place the job: partition, account, qos, reservation, constraint.
        at_once: Runs of an array that run concurrently.
    """
    first = specs[0]
    if any(_request(spec) != _request(first) for spec in specs):
        raise SpecError("the runs of a sweep ask for different nodes, times or code; only the recipe can be swept")
    directives = _directives(first, options)
    if len(specs) > 1:
        directives |= {"array": f"0-{len(specs) - 1}%{at_once}"}
    directives |= {"job-name": name, "output": output}
    lines = [f"#SBATCH --{key}" if value is None else f"#SBATCH --{key}={value}" for key, value in directives.items()]
    return "\n".join(["#!/bin/bash", *lines, "", *_selection(specs), *_body(first), ""])


def _request(spec: RunSpec) -> RunSpec:
    """`spec` without that in which the runs of a sweep may differ."""
    return replace(spec, name="sweep", folder="/", overrides=(), watched=None)


def _directives(spec: RunSpec, options: Mapping[str, str]) -> dict[str, str | None]:
    return {
        **options,
        "nodes": str(spec.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(spec.gpus)} if spec.gpus else {}),
        **({"exclusive": None} if spec.exclusive else {}),
        "time": str(spec.minutes),
        "signal": f"SIGUSR1@{spec.notice_s}",
        "requeue": None,
        "open-mode": "append",
        "export": ",".join([*EXPORTED, *sorted({*spec.passed, *spec.secrets})]),
        "chdir": spec.directory,
    }


def _selection(specs: Sequence[RunSpec]) -> list[str]:
    """The lines that set `folder` and `overrides`, the only ones in which the runs of a sweep differ."""

    def assignments(spec: RunSpec) -> str:
        overrides = " ".join(shlex.quote(override) for override in spec.overrides)
        return f"folder={shlex.quote(spec.folder)}; overrides=({overrides})"

    if len(specs) == 1:
        return [assignments(specs[0])]
    cases = [f"{number}) {assignments(spec)} ;;" for number, spec in enumerate(specs)]
    return ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac", 'exec >> "$folder/job.log" 2>&1']


def _body(spec: RunSpec) -> list[str]:
    variables = [f"export {name}={shlex.quote(value)}" for name, value in spec.variables().items()]
    python = shlex.quote(spec.python)
    step = 'srun --export=ALL --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE"'
    # Supervisors end together by themselves. If the first exit code killed the others, theirs would be lost.
    together = "--kill-on-bad-exit=0 --wait=0"
    supervisor = (
        f'{python} -m framework.launch.supervisor.main --folder "$folder" --workers {spec.devices} --nodes {spec.nodes}'
    )
    return [
        *variables,
        "auto=()",
        f"[ -d {HYPERPOD} ] && auto=(--auto-resume=1)",
        f'{step} --kill-on-bad-exit=1 {python} -m framework.launch.preflight --folder "$folder" &&',
        f'  {step} {together} "${{auto[@]}}" {supervisor} -- "${{overrides[@]}}"',
        "code=$?",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "job=${job:-$SLURM_JOB_ID}",
        'case "$code" in',
        f'{ExitCode.DONE} | {ExitCode.STOP}) exit "$code" ;;',
        "esac",
        f'interrupted=$(cat "$folder"/{FAILURES_FILE} "$folder"/{phases_file(Path(), 0)} 2> /dev/null |',
        f"  awk -v job=\"$SLURM_JOB_ID\" '{_INTERRUPTIONS}')",
        f'if [ "$((${{SLURM_RESTART_COUNT:-0}} - ${{interrupted:-0}}))" -lt {spec.requeues} ]; then',
        '  echo "job $job ended with code $code and is requeued"',
        '  exec scontrol requeue "$job"',
        "fi",
        f'echo "job $job ended with code $code; it was requeued {spec.requeues} times after failures, the maximum"',
        'exit "$code"',
    ]
