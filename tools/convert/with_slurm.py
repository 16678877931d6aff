"""Writes parts by an array job of Slurm, whose nodes share the folders and this checkout.

folder/slurm/
    job.json             the array that was submitted last
    element-0000.json    what an element of it writes: the conversion and its parts
    element-0000.log     its log
    failed/part-00000    why a part failed
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from framework.data.shards.parts import WORK, PartJob, is_written
from framework.data.shards.processes import TRIES, Outcome, in_processes
from framework.launch.schedulers.sbatch import EXPORTED
from framework.launch.schedulers.slurm import CONF, SlurmError, SlurmScheduler, active_elements
from framework.launch.spec import SpecError
from framework.run.files import read_json, write_json, write_text
from framework.scene.types import SceneError
from tools.convert.conversion import Conversion

log = logging.getLogger(__name__)

POLL_S = 5.0
"""Seconds between two looks at the parts and the queue."""
PASSED = ("PYTHONPATH", "RECORDINGS", "CONVERSATIONS", "OMP_NUM_THREADS", CONF)
"""Variables of the submitting process that elements get where they are set."""


@dataclass(frozen=True)
class SlurmEngine:
    """See `Engine`. When the process that waits is killed the array goes on; started again, it waits for it."""

    conversion: Conversion
    """What is converted."""
    placement: Mapping[str, str | None]
    """Options that place the jobs: partition, account, qos, constraint."""
    elements: int
    """Elements of the array."""
    workers: int
    """Processes, and cores, of an element."""
    minutes: int
    """Time limit of an element."""

    def __call__(self, job: PartJob, numbers: Sequence[int]) -> Iterator[Outcome]:
        """Yields the outcome of each part. Raises `SceneError` where Slurm refuses the array."""
        folder, waiting = job.folder / "slurm", list(numbers)
        (folder / "failed").mkdir(parents=True, exist_ok=True)
        last = read_json(folder / "job.json")
        array: str | None = last["job"] if last and _active(last["job"]) else None
        if array is None:  # what an earlier array gave up is tried again
            _forget_failures(folder)
        failed: list[Outcome] = []
        for tries in range(TRIES + 1):  # the first is for an array that runs since before
            if tries and waiting:
                _forget_failures(folder)
                array = self._submit(job, folder, waiting)
            while array is not None and waiting:
                active = _active(array)
                for number in [number for number in waiting if is_written(job.folder, number)]:
                    waiting.remove(number)
                    yield number, None
                if not active:
                    break
                time.sleep(POLL_S)
            for number, failure in _failures(folder, waiting):
                waiting.remove(number)
                failed.append((number, failure))
        failed += [(number, f"array {array} ended without it; see {folder}/element-*.log") for number in waiting]
        yield from failed
        if not failed:
            shutil.rmtree(folder)

    def _submit(self, job: PartJob, folder: Path, numbers: Sequence[int]) -> str:
        """Submits an array that writes parts, dealt in turn. Returns its number."""
        count = min(self.elements, len(numbers))
        for element in range(count):
            parts = {number: job.parts[number] for number in numbers[element::count]}
            facts = {"conversion": asdict(self.conversion), "shard_bytes": job.shard_bytes, "workers": self.workers}
            write_json(_element_file(folder, element), {**facts, "parts": parts}, durable=False)
        partition = self.placement.get("partition") or os.environ.get("SBATCH_PARTITION")
        if partition is None:
            raise SceneError("--partition: none is given, and SBATCH_PARTITION is not set")
        options = {name: value for name, value in self.placement.items() if value and name != "partition"}
        try:
            scheduler = SlurmScheduler(partition=partition, **options)
            script = self._script(scheduler, folder, count)
            write_text(folder / "job.sbatch", script)
            array = scheduler.submit(script)
        except (SpecError, SlurmError) as error:
            raise SceneError(f"--engine slurm: {error}") from error
        write_json(folder / "job.json", {"job": array})
        log.info("array %s of %d elements writes %d parts", array, count, len(numbers))
        return array

    def _script(self, scheduler: SlurmScheduler, folder: Path, count: int) -> str:
        directives = {
            **scheduler.placement,
            "array": f"0-{count - 1}",
            "job-name": f"convert-{folder.parent.name}",
            "ntasks": "1",
            "cpus-per-task": str(self.workers),
            "time": str(self.minutes),
            "requeue": "",
            "open-mode": "append",
            "output": f"{folder}/element-%a.log",
            "export": ",".join(EXPORTED),
            "chdir": str(Path.cwd()),
        }
        lines = [f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in directives.items()]
        passed = [f"export {name}={shlex.quote(os.environ[name])}" for name in PASSED if name in os.environ]
        run = f"exec {shlex.quote(sys.executable)} -m tools.convert.with_slurm {shlex.quote(str(folder))}"
        return "\n".join(["#!/bin/bash", *lines, "", *passed, f'{run} "$SLURM_ARRAY_TASK_ID"', ""])


def write_element(folder: Path, element: int) -> int:
    """Writes the parts of an element of the array of `folder`. Returns the number of those that failed."""
    facts = json.loads(_element_file(folder, element).read_text())
    words = facts["conversion"]
    conversion = Conversion(tuple(words["sources"]), words["input"], words["split"], tuple(words["overrides"]))
    if differences := conversion.differences(json.loads((folder.parent / WORK).read_text())):
        raise SceneError(f"{folder.parent}: {'; '.join(differences)}; convert with one state of the code")
    parts = {
        int(number): [(split, [tuple(item) for item in items]) for split, items in pieces]
        for number, pieces in facts["parts"].items()
    }
    job = PartJob(folder.parent, parts, conversion.scenes, conversion.tasks, facts["shard_bytes"])
    failed = 0
    todo = [number for number in parts if not is_written(job.folder, number)]
    for number, error in in_processes(job, todo, facts["workers"]):
        print(f"{job.name(number)}: {error or 'written'}", flush=True)
        if error is not None:
            failed += 1
            write_text(_failure_file(folder, number), error)
    return failed


def _element_file(folder: Path, element: int) -> Path:
    return folder / f"element-{element:04d}.json"


def _failure_file(folder: Path, number: int) -> Path:
    return folder / "failed" / f"part-{number:05d}"


def _failures(folder: Path, numbers: Sequence[int]) -> list[tuple[int, str]]:
    """Returns the parts of those numbers that an element gave up, each with the reason."""
    files = {number: _failure_file(folder, number) for number in numbers}
    return [(number, file.read_text()) for number, file in files.items() if file.is_file()]


def _forget_failures(folder: Path) -> None:
    for path in (folder / "failed").iterdir():
        path.unlink()


def _active(array: str) -> bool:
    """Returns whether an element of the array waits or runs, and that it does where Slurm gives no answer."""
    try:
        return bool(active_elements(array))
    except SlurmError as error:
        log.warning("%s; asked again in %.0f s", error, POLL_S)
        return True


if __name__ == "__main__":
    sys.exit(1 if write_element(Path(sys.argv[1]), int(sys.argv[2])) else 0)
