"""Finds what would stop a job: on the login node before the job is submitted, and on each node before it starts.

All findings are reported at once, each with its remedy. On a node: `python -m framework.launch.preflight --folder RUN`.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.launch.exit_codes import ExitCode
from framework.launch.host import EFA, GPUS, count_entries
from framework.launch.launcher import Launcher, PyTorchJob, Slurm
from framework.launch.resumption import resumption_problems
from framework.launch.schedulers.instances import CRASHING, HARMFUL, find_instance
from framework.launch.schedulers.kubectl import KubectlError, queues
from framework.launch.schedulers.slurm import SlurmError, nodes_held, partitions, validate
from framework.launch.snapshot import SnapshotError, packages_hash
from framework.launch.spec import RunSpec, load
from framework.recipe.check import check
from framework.recipe.composition import Composition
from framework.recipe.credentials import is_credential, is_secret, known_values, mask_output
from framework.recipe.problem import Problem, dotted
from framework.recipe.resolve import read_keys
from framework.recipe.variables import variables_read

RECOVERY_MINUTES = 30
"""The longest that HyperPod takes to replace a node."""


def preflight(composition: Composition, launcher: Launcher, specs: Sequence[RunSpec], text: str) -> list[Problem]:
    """Return every problem with submitting `specs` as `text`. Warnings do not prevent it."""

    def problem(key: str, message: str, warning: bool = False) -> Problem:
        at = composition.place(("launch", *key.split(".")))
        while at[1:] and at not in composition.origins:
            at = at[:-1]
        origin = composition.origin(at if at[1:] else ("launch", "_target_"))  # a setting that no file sets
        return Problem(origin, f"launch.{key}", message, warning=warning)

    parallel = composition.tree.get("parallel") or {}
    results = [problem(*each) for each in (*of_job(specs[0], launcher, parallel), *of_cluster(launcher, text))]
    return [*results, *_batches(composition, specs[0]), *_unreachable(composition, launcher)]


def _batches(composition: Composition, spec: RunSpec) -> Iterator[Problem]:
    """Yield the stages whose steps do not divide over the job's data-parallel ranks."""
    task = composition.tree.get("task") or {}
    data, stages = task.get("data") or {}, (task.get("curriculum") or {}).get("stages") or {}
    tensor = ((task.get("parallel") or {}).get("mesh") or {}).get("tensor")
    ranks = spec.nodes * spec.devices // (tensor if isinstance(tensor, int) else 1)
    for name, stage in stages.items():
        own = isinstance(stage.get("global_batch"), int)
        batch = stage["global_batch"] if own else data.get("global_batch")
        if isinstance(batch, int) and ranks and batch % ranks:
            key = ("task", "curriculum", "stages", name, "global_batch") if own else ("task", "data", "global_batch")
            message = f"stage {name}: a step of {batch} samples does not divide over {ranks} data-parallel ranks"
            at = composition.place(key)
            yield Problem(composition.origin(at), dotted(at), f"{message}; give a multiple of {ranks}")


def _unreachable(composition: Composition, launcher: Launcher) -> Iterator[Problem]:
    """Yield the variables of this environment, or of `launch.variables`, with a folder that a pod does not see."""
    if not isinstance(launcher, PyTorchJob):
        return
    used = read_keys(composition.raw, (("task",),))
    for key, name in variables_read(composition.raw):
        given = launcher.variables.get(name)
        value = os.environ.get(name, "") if given is None else str(given)
        if key not in used or not (value.startswith("/") or (value and Path(value).exists())):
            continue
        if not Path(os.path.normpath(Path.cwd() / value)).is_relative_to(launcher.mount):
            key = key if given is None else ("launch", "variables", name)
            message = f"{name} is {value}, which is not below launch.mount ({launcher.mount}), and so no pod sees it"
            remedy = f"export {name}, or give launch.variables.{name}=FOLDER, with a folder below it"
            yield Problem(composition.origin(key), dotted(key), f"{message}; {remedy}")


Finding = tuple[str, str] | tuple[str, str, bool]
"""A key below `launch`, a message that says what is wrong and what to do, and whether it is a warning only."""


def of_job(spec: RunSpec, launcher: Launcher, parallel: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the findings that need no cluster. `parallel` is that section of the recipe."""
    yield from _requests(spec, launcher)
    yield from _devices(spec, parallel)
    yield from _variables(spec, launcher)
    yield from _folders(spec, launcher)


def _requests(spec: RunSpec, launcher: Launcher) -> Iterator[Finding]:
    for name in ("nodes", "minutes"):
        requested, allowed = getattr(spec, name), getattr(launcher.limits, name)
        if requested > allowed:
            message = f"{requested} are asked for, and {allowed} allowed; ask for less, or have launch.limits.{name}"
            yield name, f"{message} raised"
    if spec.notice_s >= 60 * spec.minutes:
        message = f"the warning would come before the job; {spec.minutes} minutes need less than {spec.notice_s} s"
        yield "notice_s", message
    elif spec.minutes <= RECOVERY_MINUTES and spec.nodes > 1 and spec.gpus:
        message = (
            f"a lost node takes up to {RECOVERY_MINUTES} minutes to replace; in {spec.minutes} the job cannot recover"
        )
        yield "minutes", message, True


def _devices(spec: RunSpec, parallel: Mapping[str, Any]) -> Iterator[Finding]:
    mesh = parallel.get("mesh") or {}
    sizes = {name: size for name in ("replicate", "shard", "tensor") if isinstance(size := mesh.get(name), int)}
    world, product = spec.nodes * spec.devices, math.prod(sizes.values())
    if sizes and (world % product or (len(sizes) == 3 and world != product)):
        requested = " x ".join(f"{name} {size}" for name, size in sizes.items())
        yield "devices", f"parallel.mesh asks for {requested}, but there are {spec.nodes} x {spec.devices} workers"
    if not spec.gpus:
        return
    if spec.instance is None:
        message = "the nodes' type is not named, and so neither GPUs nor EFA are checked; give launch.instance=TYPE"
        yield "instance", message, True
    elif (instance := find_instance(spec.instance)) is None:
        message = "add it to framework/launch/schedulers/instances.py; without that EFA is not set up"
        yield "instance", f"{spec.instance}: {message}", True
    elif instance.gpus != spec.devices:
        message = f"a {spec.instance} has {instance.gpus} GPUs; with {spec.devices} workers a node some idle or wait"
        yield "devices", message


def _variables(spec: RunSpec, launcher: Launcher) -> Iterator[Finding]:
    for name in sorted({name for name, _ in spec.environment} | set(spec.passed)):
        if name in HARMFUL:
            yield "variables", f"{name}: {HARMFUL[name]}", name not in CRASHING
    for name, value in launcher.variables.items():
        if is_secret(name) or is_credential((name,), value, known_values()):
            message = f"{name} looks like a secret; name it in launch.secrets instead, which writes no value"
            yield f"variables.{name}", message
    for name in spec.secrets:
        if isinstance(launcher, Slurm) and name not in os.environ:
            yield "secrets", f"{name} is not set here; export it, or leave it out"


def _folders(spec: RunSpec, launcher: Launcher) -> Iterator[Finding]:
    folder = Path(spec.folder)
    parent = next(each for each in (folder, *folder.parents) if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        yield "folder", f"{parent} cannot be written; choose paths.runs=FOLDER"
    if isinstance(launcher, PyTorchJob):
        for path in (spec.folder, spec.directory, spec.code, spec.python):
            if not Path(path).is_relative_to(launcher.mount):
                yield "mount", f"{path} is not below {launcher.mount}, and so no pod sees it; move it there"
    free = shutil.disk_usage(parent).free / 2**30
    if free < launcher.limits.free_gib:
        yield "limits.free_gib", f"{parent} has {free:.0f} GiB left, less than {launcher.limits.free_gib:g}; make room"


def of_cluster(launcher: Launcher, text: str) -> Iterator[Finding]:
    """Yield the cluster's findings: whether partition or queue exist, and whether it would accept `text`."""
    try:
        if isinstance(launcher, Slurm):
            known = partitions()
            if launcher.partition not in known:
                yield "partition", f"{launcher.partition}: no such partition; there are: {', '.join(sorted(known))}"
            elif known[launcher.partition] != "up":
                yield "partition", f"{launcher.partition} is {known[launcher.partition]}; choose another"
            else:
                validate(text)
            if (held := nodes_held()) + launcher.nodes > launcher.limits.nodes >= launcher.nodes:
                more = f"{held} nodes are held or waited for by jobs of yours, {launcher.limits.nodes} are allowed"
                yield "nodes", f"{more}; ask for less, or end one of them"
        elif isinstance(launcher, PyTorchJob) and launcher.queue is not None:
            names = queues(launcher.namespace)
            if launcher.queue not in names:
                yield "queue", f"{launcher.queue}: no such queue in {launcher.namespace}; there are: {', '.join(names)}"
    except (SlurmError, KubectlError) as error:
        # A dry run works where there is no cluster.
        yield "_target_", str(error), launcher.dry_run


def on_node(spec: RunSpec) -> Iterator[tuple[str, int]]:
    """Yield what prevents `spec` from starting on this node, each with the exit code that follows (0: a warning)."""
    if not (Path(spec.code) / "framework" / "__init__.py").is_file():
        yield f"{spec.code}: the code is absent; is its file system shared with this node?", ExitCode.REQUEUE
    try:
        if (packages := packages_hash(Path(spec.python))) != spec.packages:
            yield (
                f"{spec.python}: packages are {packages}, submitted with {spec.packages}; submit the run again",
                ExitCode.STOP,
            )
    except SnapshotError as error:
        yield str(error), ExitCode.REQUEUE
    try:
        with tempfile.TemporaryFile(dir=spec.folder):
            pass
    except OSError as error:
        yield f"{spec.folder} cannot be written: {error.strerror}; is its file system mounted?", ExitCode.REQUEUE
    for name in sorted(HARMFUL.keys() & os.environ.keys()):
        yield f"{name} is set on this node: {HARMFUL[name]}", ExitCode.STOP if name in CRASHING else 0
    yield from hardware(spec, GPUS, EFA)
    composition, problems = check(spec.overrides)
    if composition is not None and all(problem.warning for problem in problems):
        problems = resumption_problems(composition)
    for problem in problems:
        if not problem.warning:
            yield str(problem), ExitCode.STOP


def hardware(spec: RunSpec, gpus: Path, efa: Path) -> Iterator[tuple[str, int]]:
    """Yield the devices that this node lacks; each that exists has an entry in the folder `gpus` or `efa`."""
    if not spec.gpus:
        return
    if (count := count_entries(gpus)) < spec.gpus:
        yield f"{count} GPUs exist, {spec.gpus} are needed; drain the node (reason Action:Replace)", ExitCode.REQUEUE
    instance = find_instance(spec.instance) if spec.instance else None
    if instance is not None and spec.nodes > 1 and (count := count_entries(efa)) < instance.efa:
        yield f"{count} of {instance.efa} EFA devices exist; drain the node (reason Action:Replace)", ExitCode.REQUEUE


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all findings on this node. Returns 0, or the exit code of the gravest."""
    if arguments is None:  # a process of its own
        mask_output()
    parser = argparse.ArgumentParser(prog="python -m framework.launch.preflight", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the run's folder")
    options = parser.parse_args(arguments)
    findings = list(on_node(load(options.folder)))
    for message, _ in findings:
        print(f"preflight {socket.gethostname()}: {message}", file=sys.stderr)
    return max((code for _, code in findings), default=0)


if __name__ == "__main__":
    sys.exit(main())
