"""What would stop a job later, found before: on the login node before it is submitted, and on each node before it
starts.

All findings are given at once, each with its remedy. On a node: `python -m framework.launch.preflight --folder RUN`.
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

from framework.launch.launcher import Launcher, PyTorchJob, Slurm
from framework.launch.schedulers.instances import CRASHING, HARMFUL, named
from framework.launch.schedulers.kubectl import KubectlError, queues
from framework.launch.schedulers.slurm import SlurmError, nodes_held, partitions
from framework.launch.schedulers.slurm import test as test_script
from framework.launch.snapshot import SnapshotError, packages_hash
from framework.launch.spec import RunSpec, load
from framework.launch.supervisor.restart import REQUEUE, STOP
from framework.recipe.check import check
from framework.recipe.composition import Composition
from framework.recipe.problem import Problem
from framework.recipe.variables import is_secret

RECOVERY_MINUTES = 30
"""So long HyperPod takes to replace a node."""
REFUSED = STOP
"""Exit code: no restart mends it."""
ELSEWHERE = REQUEUE
"""Exit code: another node may do."""


def preflight(composition: Composition, launcher: Launcher, specs: Sequence[RunSpec], text: str) -> list[Problem]:
    """What speaks against submitting `specs` as `text`; warnings do not."""

    def problem(key: str, message: str, warning: bool = False) -> Problem:
        at = ("launch", *key.split("."))
        return Problem(composition.origin(at), f"launch.{key}", message, warning=warning)

    parallel = composition.tree.get("parallel") or {}
    return [problem(*each) for each in (*of_job(specs[0], launcher, parallel), *of_cluster(launcher, text))]


Finding = tuple[str, str] | tuple[str, str, bool]
"""The key below `launch`, what is wrong with it and what to do, and whether it is but a warning."""


def of_job(spec: RunSpec, launcher: Launcher, parallel: Mapping[str, Any]) -> Iterator[Finding]:
    """What can be known without asking the cluster; `parallel` is the recipe's."""
    yield from _asked(spec, launcher)
    yield from _devices(spec, parallel)
    yield from _variables(spec, launcher)
    yield from _folders(spec, launcher)


def _asked(spec: RunSpec, launcher: Launcher) -> Iterator[Finding]:
    for name in ("nodes", "minutes"):
        asked, allowed = getattr(spec, name), getattr(launcher.limits, name)
        if asked > allowed:
            yield (
                name,
                f"{asked} are asked for, and {allowed} allowed; ask for less, or have launch.limits.{name} raised",
            )
    if spec.notice_s >= 60 * spec.minutes:
        yield (
            "notice_s",
            f"the warning would come before the job; {spec.minutes} minutes need less than {spec.notice_s} s",
        )
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
        asked = " x ".join(f"{name} {size}" for name, size in sizes.items())
        yield "devices", f"parallel.mesh asks for {asked}, but there are {spec.nodes} x {spec.devices} workers"
    if not spec.gpus:
        return
    if spec.instance is None:
        yield (
            "instance",
            "the nodes' type is not named, and so neither GPUs nor EFA are checked; give launch.instance=TYPE",
            True,
        )
    elif (instance := named(spec.instance)) is None:
        yield (
            "instance",
            f"{spec.instance}: add it to framework/launch/schedulers/instances.py; without that EFA is not set up",
            True,
        )
    elif instance.gpus != spec.devices:
        yield (
            "devices",
            f"a {spec.instance} has {instance.gpus} GPUs; with {spec.devices} workers a node some idle or wait",
        )


def _variables(spec: RunSpec, launcher: Launcher) -> Iterator[Finding]:
    for name in sorted({name for name, _ in spec.environment} | set(spec.passed)):
        if name in HARMFUL:
            yield "variables", f"{name}: {HARMFUL[name]}", name not in CRASHING
        if is_secret(name):
            yield "variables", f"{name} looks like a secret; name it in launch.secrets instead, which writes no value"
    for name in spec.secrets:
        if isinstance(launcher, Slurm) and name not in os.environ:
            yield "secrets", f"{name} is not set here; export it, or leave it out"
    for name in spec.passed:
        if isinstance(launcher, PyTorchJob):
            yield "variables", f"the recipe reads {name}, which a pod will not have; give launch.variables.{name}"


def _folders(spec: RunSpec, launcher: Launcher) -> Iterator[Finding]:
    folder = Path(spec.folder)
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        yield "folder", f"{there} cannot be written; choose paths.runs=FOLDER"
    if isinstance(launcher, PyTorchJob):
        for path in (spec.folder, spec.directory, spec.code, spec.python):
            if not Path(path).is_relative_to(launcher.mount):
                yield "mount", f"{path} is not below {launcher.mount}, and so no pod sees it; move it there"
    free = shutil.disk_usage(there).free / 2**30
    if free < launcher.limits.free_gib:
        yield "limits.free_gib", f"{there} has {free:.0f} GiB left, less than {launcher.limits.free_gib:g}; make room"


def of_cluster(launcher: Launcher, text: str) -> Iterator[Finding]:
    """What the cluster says: whether partition or queue are there, and whether it would take `text`."""
    try:
        if isinstance(launcher, Slurm):
            known = partitions()
            if launcher.partition not in known:
                yield "partition", f"{launcher.partition}: no such partition; there are: {', '.join(sorted(known))}"
            elif known[launcher.partition] != "up":
                yield "partition", f"{launcher.partition} is {known[launcher.partition]}; choose another"
            else:
                test_script(text)
            if (held := nodes_held()) + launcher.nodes > launcher.limits.nodes >= launcher.nodes:
                more = f"{held} nodes are held or waited for by jobs of yours, {launcher.limits.nodes} are allowed"
                yield "nodes", f"{more}; ask for less, or end one of them"
        elif isinstance(launcher, PyTorchJob) and launcher.queue is not None:
            there = queues(launcher.namespace)
            if launcher.queue not in there:
                yield "queue", f"{launcher.queue}: no such queue in {launcher.namespace}; there are: {', '.join(there)}"
    except (SlurmError, KubectlError) as error:
        # What would be submitted can be looked at wherever there is no cluster.
        yield "_target_", str(error), launcher.dry_run


def on_node(spec: RunSpec) -> Iterator[tuple[str, int]]:
    """What speaks against starting `spec` on this node, and the exit code that each finding asks for (0: a warning)."""
    if not (Path(spec.code) / "framework" / "__init__.py").is_file():
        yield f"{spec.code}: the code is not there; is its file system shared with this node?", ELSEWHERE
    try:
        if (packages := packages_hash(Path(spec.python))) != spec.packages:
            yield f"{spec.python}: installed is {packages}, submitted was {spec.packages}; submit the run anew", REFUSED
    except SnapshotError as error:
        yield str(error), ELSEWHERE
    try:
        with tempfile.TemporaryFile(dir=spec.folder):
            pass
    except OSError as error:
        yield f"{spec.folder} cannot be written: {error.strerror}; is its file system mounted?", ELSEWHERE
    for name in sorted(HARMFUL.keys() & os.environ.keys()):
        yield f"{name} is set on this node: {HARMFUL[name]}", REFUSED if name in CRASHING else 0
    yield from hardware(spec, Path("/proc/driver/nvidia/gpus"), Path("/sys/class/infiniband"))
    for problem in check(spec.words)[1]:
        if not problem.warning:
            yield str(problem), REFUSED


def hardware(spec: RunSpec, gpus: Path, efa: Path) -> Iterator[tuple[str, int]]:
    """Devices that this node lacks: those that are there have an entry in `gpus` and `efa`."""
    if not spec.gpus:
        return
    if (there := _entries(gpus)) < spec.gpus:
        yield f"{there} GPUs are there, {spec.gpus} are needed; drain the node (reason Action:Replace)", ELSEWHERE
    instance = named(spec.instance) if spec.instance else None
    if instance is not None and spec.nodes > 1 and (there := _entries(efa)) < instance.efa:
        yield f"{there} of {instance.efa} EFA devices are there; drain the node (reason Action:Replace)", ELSEWHERE


def _entries(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all findings on this node. Returns 0, or the exit code that the gravest asks for."""
    parser = argparse.ArgumentParser(prog="python -m framework.launch.preflight", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the run's folder")
    options = parser.parse_args(arguments)
    findings = list(on_node(load(options.folder)))
    for message, _ in findings:
        print(f"preflight {socket.gethostname()}: {message}", file=sys.stderr)
    return max((code for _, code in findings), default=0)


if __name__ == "__main__":
    sys.exit(main())
