"""A soak: random faults strike one run, nobody helps it, and it must end as if nothing had happened.

python -m tools.soak --folder outputs/soak --faults 20 --seed 0

Two supervisors on this machine train the tiny curriculum, first undisturbed, then with faults; ranks, nodes, the
object store, the disk and the checkpoint daemon are struck in turn, shuffled, at random steps. Needs moto; a full disk
is only tried where a small one may be mounted.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from framework.launch.supervisor.restart import DONE, FailureLedger
from framework.run.goodput import accounts
from framework.run.phases import Phase, read_phases, spans
from tools.goodput import report
from tools.soak.faults import FAULTS, Scene, disk_full, small_disk, unmount
from tools.soak.nodes import LOOK_S, Job
from tools.soak.storage import Store, quiet, words_of, write_stream
from tools.soak.verdict import differences

EVERY = 4
"""Steps from one checkpoint to the next."""
STEPS_A_FAULT = 20
"""A run is so much longer for each fault: it must have room for the steps before it and during it."""
DISK = "512m"
WORDS = (
    "recipe=supervised", "scale=tiny", "checkpoint/save_mode=process", f"checkpoint.every={EVERY}",
    "data.micro_batch=2",
    "sizes.hard_scenes=16", "sizes.eval_scenes=2", "evals.held_out.tasks={answer: 4}",
    "evals.zero_shot.scenes=1", "parallel.devices=1",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak; print what happened, what it cost and what differs in the end. Returns 1 when anything does."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description="Random faults strike one run.")
    parser.add_argument("--folder", type=Path, required=True, help="for the runs; an undisturbed run in it is kept")
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of what strikes when")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    store = Store()
    steps = EVERY + STEPS_A_FAULT * options.faults
    try:
        words, environment = prepare(folder, store, steps // 2)
        undisturbed, soaked = folder / f"undisturbed-{steps}", folder / f"soak-{options.seed}-{int(time.time())}"
        if not (undisturbed / "report.html").exists():
            finish(Job(undisturbed, [*words, f"run.name={undisturbed.name}"], environment))
        job = Job(soaked, [*words, f"run.name={soaked.name}"], environment, silent_s=longest_silence(undisturbed))
        soak(job, store, options.faults, random.Random(options.seed))
    finally:
        store.stop()
    found = list(differences(soaked, undisturbed))
    print(f"\n{report(accounts(soaked, time.time()))}\n")
    print("\n".join(found) or "weights and optimizer state are bit-equal to the undisturbed run's, every sample once")
    return 1 if found else 0


def prepare(folder: Path, store: Store, steps: int) -> tuple[list[str], dict[str, str]]:
    """The samples in the store; the words and the environment of a run of `steps` steps a stage."""
    stream, limit_gb = write_stream(folder)
    url = store.put(stream, "world")
    paths = [f"paths.runs={folder}", f"paths.cache={folder}/cache", f"sizes.tiny_steps={steps}"]
    return [*WORDS, *paths, *words_of(url, folder / "cache" / "stream", limit_gb)], quiet(store.environment)


def longest_silence(undisturbed: Path) -> float:
    """How long (s) a node of this machine may be silent where it trains no steps: three times what it needed when
    nothing happened, and a little.
    """
    found = [span for lines in read_phases(undisturbed).values() for span in spans(lines, time.time())]
    needed = max(span.seconds for span in found if span.line.phase not in (Phase.PRODUCTIVE, Phase.QUEUE))
    return 3.0 * needed + 15.0


def finish(job: Job) -> None:
    """Wait for the end of a job, which must be a good one."""
    try:
        codes = job.end()
    finally:
        job.kill()
    if set(codes) != {DONE}:
        raise SystemExit(f"the job ended with codes {codes}; see {job.log(0)}")


def soak(job: Job, store: Store, count: int, dice: random.Random) -> None:
    """Let `count` faults strike the job, and wait for its end."""
    disk = job.folder / "checkpoints"
    mounted = small_disk(disk, DISK)
    scene = Scene(job, store, disk if mounted else None, dice)
    began = time.monotonic()
    try:
        for number, fault in enumerate(draw(count, dice, mounted), start=1):
            strike(scene, fault, number, began)
        finish(job)
    finally:
        job.kill()
        if mounted:
            keep(disk)


def draw(count: int, dice: random.Random, with_disk: bool) -> list[Callable[[Scene], str | None]]:
    """`count` faults: every kind equally often, as far as that goes, in random order."""
    kinds = [fault for fault in FAULTS if with_disk or fault is not disk_full]
    drawn: list[Callable[[Scene], str | None]] = []
    while len(drawn) < count:
        dice.shuffle(kinds)
        drawn += kinds
    return drawn[:count]


def strike(scene: Scene, fault: Callable[[Scene], str | None], number: int, began: float) -> None:
    """Wait for some steps, or now and then for none, and strike until it hits."""
    target = scene.job.step() + scene.dice.choice((0, 1, 2, EVERY, EVERY + 1, 2 * EVERY))
    failed = len(FailureLedger(scene.job.folder).history)
    while not scene.job.over:
        if scene.job.step() >= target and (told := fault(scene)) is not None:
            where = f"step {scene.job.step()}, after {failed} failed attempts"
            print(f"{time.monotonic() - began:7.1f} s  fault {number}: {told}; {where}", flush=True)
            return
        time.sleep(LOOK_S)
    raise SystemExit(f"the job ended before fault {number}; see {scene.job.log(0)}")


def keep(disk: Path) -> None:
    """Move what the small disk holds to where it was mounted."""
    import shutil

    copy = disk.with_name("kept")
    shutil.copytree(disk, copy)
    unmount(disk)
    disk.rmdir()
    copy.rename(disk)


if __name__ == "__main__":
    sys.exit(main())
