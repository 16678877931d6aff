"""A soak test: random faults strike one run, which must end as if nothing had happened.

python -m tools.soak --folder outputs/soak --faults 20 --seed 0

Two supervisors on this machine train the tiny curriculum, first undisturbed, then with faults. Ranks, nodes, the object
store, the disk and the checkpoint daemon are struck in random order at random steps. Needs moto; a full disk is only
tried where a small one may be mounted.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from framework.launch.exit_codes import ExitCode
from framework.launch.supervisor.restart import FailureLedger
from framework.run.goodput import accounts
from framework.run.phases import Phase, intervals, read_phases
from tools.goodput import report
from tools.soak.faults import FAULTS, Targets, disk_full, small_disk, unmount
from tools.soak.nodes import POLL_S, SoakedRun
from tools.soak.storage import Store, stream_overrides, worker_environment, write_stream
from tools.soak.verdict import differences

EVERY = 4
"""Steps from one checkpoint to the next."""
STEPS_PER_FAULT = 12
"""Steps added to the run for each fault, trained before it and during it."""
DISK = "512m"
OVERRIDES = (
    "recipe=supervised", "scale=tiny", "checkpoint/save_mode=process", f"checkpoint.every={EVERY}",
    "data.micro_batch=2",
    "sources.world_hard.scenes=16", "sources.world_held_out.scenes=2", "evals=[held_out]",
    "evals.held_out.tasks={answer: 4}", "parallel.devices=1",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak a run; print the faults, their cost and what differs in the end. Returns 1 when anything does."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description="Random faults strike one run.")
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of the runs; an undisturbed run in it is reused"
    )
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of what strikes when")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    store = Store()
    steps = EVERY + STEPS_PER_FAULT * options.faults
    try:
        overrides, environment = prepare(folder, store, steps // 2)
        undisturbed, soaked = folder / f"undisturbed-{steps}", folder / f"soak-{options.seed}-{int(time.time())}"
        if not (undisturbed / "report.html").exists():
            finish(SoakedRun(undisturbed, [*overrides, f"run.name={undisturbed.name}"], environment))
        run = SoakedRun(
            soaked, [*overrides, f"run.name={soaked.name}"], environment, silent_s=longest_silence(undisturbed)
        )
        soak(run, store, options.faults, random.Random(options.seed))
    finally:
        store.stop()
    different = list(differences(soaked, undisturbed))
    print(f"\n{report(accounts(soaked, time.time()))}\n")
    print(
        "\n".join(different) or "weights and optimizer state are bit-equal to the undisturbed run's, every sample once"
    )
    return 1 if different else 0


def prepare(folder: Path, store: Store, steps: int) -> tuple[list[str], dict[str, str]]:
    """Put the samples into the store. Returns the overrides and the environment of a run of `steps` steps per stage."""
    stream, limit_gb = write_stream(folder)
    url = store.put(stream, "world")
    paths = [f"paths.runs={folder}", f"paths.cache={folder}/cache", f"curriculum.max_steps_per_stage={steps}"]
    return [*OVERRIDES, *paths, *stream_overrides(url, folder / "cache" / "stream", limit_gb)], worker_environment(
        store.environment
    )


def longest_silence(undisturbed: Path) -> float:
    """Return how long a node may be silent outside of steps (s): three times as long as in the undisturbed run, and a
    little more.
    """
    phases = [each for lines in read_phases(undisturbed).values() for each in intervals(lines, time.time())]
    needed = max(each.seconds for each in phases if each.line.phase not in (Phase.PRODUCTIVE, Phase.QUEUE))
    return 3.0 * needed + 15.0


def finish(run: SoakedRun) -> None:
    """Wait for the end of a run. Exits where it failed."""
    try:
        codes = run.wait()
    finally:
        run.kill()
    if set(codes) != {ExitCode.DONE}:
        raise SystemExit(f"the run ended with codes {codes}; see {run.log(0)}")


def soak(run: SoakedRun, store: Store, count: int, rng: random.Random) -> None:
    """Let `count` faults strike the run, and wait for its end."""
    disk = run.folder / "checkpoints"
    mounted = small_disk(disk, DISK)
    targets = Targets(run, store, disk if mounted else None, rng)
    started = time.monotonic()
    try:
        for number, fault in enumerate(draw(count, rng, mounted), start=1):
            strike(targets, fault, number, started)
        finish(run)
    finally:
        run.kill()
        if mounted:
            keep(disk)


def draw(count: int, rng: random.Random, with_disk: bool) -> list[Callable[[Targets], str | None]]:
    """Return `count` faults in random order, every kind equally often as far as possible."""
    kinds = [fault for fault in FAULTS if with_disk or fault is not disk_full]
    drawn: list[Callable[[Targets], str | None]] = []
    while len(drawn) < count:
        rng.shuffle(kinds)
        drawn += kinds
    return drawn[:count]


def strike(targets: Targets, fault: Callable[[Targets], str | None], number: int, started: float) -> None:
    """Wait for some steps, sometimes for none, and strike until the fault hits."""
    first = targets.run.step() + targets.rng.choice((0, 1, 2, EVERY, EVERY + 1, 2 * EVERY))
    failed = len(FailureLedger(targets.run.folder).history)
    while not targets.run.ended:
        if targets.run.step() >= first and (effect := fault(targets)) is not None:
            where = f"step {targets.run.step()}, after {failed} failed attempts"
            print(f"{time.monotonic() - started:7.1f} s  fault {number}: {effect}; {where}", flush=True)
            return
        time.sleep(POLL_S)
    raise SystemExit(f"the run ended before fault {number}; see {targets.run.log(0)}")


def keep(disk: Path) -> None:
    """Replace the small disk by a folder with its content."""
    import shutil

    copy = disk.with_name("kept")
    shutil.copytree(disk, copy)
    unmount(disk)
    disk.rmdir()
    copy.rename(disk)


if __name__ == "__main__":
    sys.exit(main())
